"""Labels and groups in memory."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from torch import Tensor

from .images import ImageSet, Pixels, gather

Label = int | str


def arranged(pixels: Pixels, labels: Sequence[Label], groups: Any, name: str) -> ImageSet:
    """Return the images as a set with a class for each label, sorted.

    Args:
        pixels: `[n, C, H, W]`.
        labels: n integers or n strings.
        groups: a mapping of label to group, or n of them; None for none.
        name: of the data, for errors.

    Raises:
        ValueError: a label without a group or with several.
    """
    found = sorted(set(labels))  # all of one type
    index = {label: number for number, label in enumerate(found)}
    numbers = np.fromiter((index[label] for label in labels), np.intp, len(labels))
    return gather(pixels, numbers, [str(label) for label in found], _groups_of(found, labels, groups, name))


def one_an_image(what: str, given: Any, count: int, name: str) -> list[Label]:
    """Return labels or groups as a list of integers or of strings.

    Raises:
        ValueError: another number of them, other types, or both types.
    """
    shape = getattr(given, "shape", None)
    if not isinstance(given, Sized) or isinstance(given, (str, bytes)) or (shape is not None and len(shape) != 1):
        found = f"the shape {list(shape)}" if shape is not None else f"a value of type {type(given).__name__}"
        raise ValueError(f"{name}: expected {what} of shape [{count}], one an image, got {found}")
    if len(given) != count:
        raise ValueError(f"{name}: expected {what} of shape [{count}], one an image, got [{len(given)}]")
    entries: list[Label] = []
    listed: Any = given.tolist() if isinstance(given, (np.ndarray, Tensor)) else given
    for index, entry in enumerate(listed):
        try:
            entries.append(as_label(entry))
        except ValueError as error:
            raise ValueError(f"{name}: {what}[{index}]: {error}") from None
    check_one_type(what, entries, name)
    return entries


def as_label(value: Any, what: str = "label") -> Label:
    """Return an integer or a string, of Python, NumPy or PyTorch; ValueError for anything else."""
    if isinstance(value, str):
        return str(value)
    try:
        if isinstance(value, bool) or getattr(value, "ndim", 0) != 0:
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"expected an integer or a string as a {what}, got {value!r:.80}") from None


def check_one_type(what: str, entries: Iterable[Label], name: str) -> None:
    """Raise ValueError unless entries are all integers or all strings."""
    if len(set(map(type, entries))) > 1:
        raise ValueError(f"{name}: {what} must be all integers or all strings, got both")


def _groups_of(found: Sequence[Label], labels: Sequence[Label], groups: Any, name: str) -> list[str] | None:
    """Return the group of each label found."""
    if groups is None:
        return None
    if not isinstance(groups, Mapping):
        groups = one_an_image("groups", groups, len(labels), name)
        of_label: dict[Label, Label] = {}
        for label, group in zip(labels, groups, strict=True):
            if of_label.setdefault(label, group) != group:
                raise ValueError(
                    f"{name}: expected one group for all images of a class, got {of_label[label]!r} and {group!r} for "
                    f"{label!r}: give the classes labels of their own, such as {f'{group}/{label}'!r}"
                )
        groups = of_label
    missing = [label for label in found if label not in groups]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"{name}: groups has no entry for {', '.join(map(repr, missing[:3]))}{more}")
    return [str(as_label(groups[label], "group")) for label in found]
