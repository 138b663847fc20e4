"""Splits of classes into training, validation and test, and their records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from . import draws
from .images import ImageSet

PARTS = ("train", "validation", "test")

Split = Sequence[float] | Mapping[str, Any]
"""Shares of the classes for each part, or the classes of each part by name (a record)."""

SHARES = (0.7, 0.1, 0.2)
"""Shares of data without parts of their own."""

UNITS = ("class", "group")
"""Units that a draw keeps whole."""

_IDENTITY = "sha256"  # key of a record: the hash of data that no path names
_DESCRIPTION = ("data", "version", "seed", "shares", "split_by")  # keys of a record that describe its origin


def split_set(
    found: ImageSet, split: Split | None, split_by: str | None, seed: int, source: str
) -> tuple[dict[str, tuple[str, ...]], dict[str, Any]]:
    """Return part -> classes, and the record's account of the draw.

    Args:
        found: the data.
        split: as for `split_classes`; None for the data's own parts, or `SHARES` where it has none.
        split_by: "class", or "group" to draw whole groups; None for "group" where the data has own parts.
        seed, source: as for `split_classes`.

    Raises:
        ValueError: as `split_classes`; groups are asked for and the data has none.
    """
    if split_by not in (None, *UNITS):
        raise ValueError(f"split_by must be class or group, got {split_by!r}")
    if isinstance(split, Mapping):
        return split_classes(found.classes, split, seed, source), {"seed": seed, "shares": None}
    unit = split_by or ("class" if found.parts is None else "group")
    account: dict[str, Any] = {"seed": seed, "shares": None, "split_by": unit}
    if unit == "group" and found.groups is None:
        raise ValueError(f"split_by='group' needs data with groups; {source} has none")
    if unit == "group" and split is None and found.parts is not None:
        named = list(zip(found.classes, found.parts, strict=True))
        return {part: tuple(name for name, of in named if of == part) for part in PARTS}, account
    shares = SHARES if split is None else split
    account["shares"] = list(shares)
    if unit == "class":
        return split_classes(found.classes, shares, seed, source), account
    assert found.groups is not None
    drawn = split_classes(tuple(dict.fromkeys(found.groups)), shares, seed, f"the groups of {source}", "groups")
    pairs = list(zip(found.classes, found.groups, strict=True))
    return {part: tuple(name for name, group in pairs if group in drawn[part]) for part in PARTS}, account


def split_classes(
    classes: Sequence[str], split: Split, seed: int, source: str, noun: str = "classes"
) -> dict[str, tuple[str, ...]]:
    """Return part -> classes, in the order in which `classes` has them.

    Args:
        classes: all names.
        split: three shares that add up to 1, drawn by `seed`; or a mapping of part to names, for
            which the seed has no effect. Without `train`, the classes that the mapping does not name train.
        seed: of the draw, 0 .. 2**64 - 1. The draw depends on the set of names, not on their order.
        source, noun: names of the data and of what is split, for errors.

    Raises:
        ValueError: the shares are invalid or leave nothing to train on; the mapping names classes that do
            not exist, names one twice or leaves some out.
    """
    if not isinstance(split, Mapping):
        return _in_order(classes, _drawn(classes, split, seed, source, noun))
    return _in_order(classes, _named(classes, split, source))


def _in_order(classes: Sequence[str], parts: Mapping[str, set[str]]) -> dict[str, tuple[str, ...]]:
    return {part: tuple(name for name in classes if name in parts[part]) for part in PARTS}


def record(parts: Mapping[str, Iterable[str]], split: Split | None, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON-able record; passed as `split` it reproduces the parts and the record.

    Args:
        parts: part -> classes.
        split: as given; a record keeps its own description of its origin, and lacks what it lacked but the hash.
        origin: description of a new split: `data`, its `version` or, of data in memory, `sha256`, if any, and the
            account of `split_set`.
    """
    if isinstance(split, Mapping) and any(key in split for key in _DESCRIPTION):
        identity = {_IDENTITY: origin[_IDENTITY]} if _IDENTITY in origin else {}
        origin = {key: split[key] for key in _DESCRIPTION if key in split} | identity
    return {**origin, **{part: list(parts[part]) for part in PARTS}}


def check_identity(split: Split | None, sha256: str, source: str) -> None:
    """Raise ValueError if a split is the record of other data in memory."""
    recorded = split.get(_IDENTITY, sha256) if isinstance(split, Mapping) else sha256
    if recorded != sha256:
        raise ValueError(
            f"{source}: the split is the record of data with sha256 {recorded:.12}..., these have {sha256:.12}...: "
            f"give the same images, labels and options in the same order, or a split of only {', '.join(PARTS)}"
        )


def is_same_data(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Return whether two records have the same data in memory and parts; True unless both have a hash."""
    if _IDENTITY not in recorded or _IDENTITY not in current:
        return True
    return all(recorded.get(key) == current.get(key) for key in (_IDENTITY, *PARTS))


def _drawn(classes: Sequence[str], shares: Sequence[float], seed: int, source: str, noun: str) -> dict[str, set[str]]:
    if len(shares) != 3 or not min(shares) >= 0 or not abs(sum(shares) - 1) <= 1e-6:  # NaN fails too
        raise ValueError(
            f"split must be three shares for train, validation and test that add up to 1, got {tuple(shares)}"
        )
    total = len(classes)
    validation, test = (max(1, round(share * total)) if share > 0 else 0 for share in shares[1:])
    train = total - validation - test
    if train < 1:
        raise ValueError(
            f"{source}: {total} {noun} are too few for the split {tuple(shares)}: "
            f"{validation} for validation and {test} for test leave none to train on"
        )
    drawn = draws.words(seed, draws.Stream.SPLIT, 0, (total,))
    by_name = sorted(classes)
    order = [by_name[index] for index in np.argsort(drawn, kind="stable")]
    return {
        "train": set(order[:train]),
        "validation": set(order[train : train + validation]),
        "test": set(order[train + validation :]),
    }


def _named(classes: Sequence[str], split: Mapping[str, Any], source: str) -> dict[str, set[str]]:
    unknown_keys = [key for key in split if key not in (*PARTS, *_DESCRIPTION, _IDENTITY)]
    if unknown_keys or not any(part in split for part in PARTS):
        raise ValueError(f"a split by name has the keys {', '.join(PARTS)}, got {', '.join(map(repr, split))}")
    names = [name for part in PARTS for name in split.get(part, ())]
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise ValueError(f"the split names {_some(unknown)}, not among the {len(classes)} classes of {source}")
    if len(set(names)) < len(names):
        raise ValueError(f"the split names {_some(sorted({n for n in names if names.count(n) > 1}))} more than once")
    rest = sorted(set(classes) - set(names))
    if rest and "train" in split:
        raise ValueError(
            f"{source} has {_some(rest)}, not named in the split; remove them, or draw a new split by shares"
        )
    return {part: set(split.get(part, rest if part == "train" else ())) for part in PARTS}


def _some(names: Sequence[str]) -> str:
    """List at most three classes."""
    shown = ", ".join(map(repr, names[:3]))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"the class{'es' if len(names) > 1 else ''} {shown}{more}"
