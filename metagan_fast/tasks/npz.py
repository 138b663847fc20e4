"""Labelled images in an `.npz` file."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .images import ImageSet, as_channels_first, gather
from .split import PARTS


def recognises(path: Path) -> bool:
    """Return whether the path is an `.npz` file, by its name."""
    return path.is_file() and path.suffix.lower() == ".npz"


def read(path: Path) -> ImageSet:
    """Read the arrays `images`, `labels` and, if there, `groups` and `parts`; others, such as sources, are passed over.

    Images are uint8, `[n, H, W]`, `[n, H, W, C]` or `[n, C, H, W]`; labels and groups `[n]` integers or
    strings. Equal labels in different groups are different classes: with groups a class is named
    "group/label". Parts are `[n]` strings, train, validation or test, one for all images of a class.

    Raises:
        ValueError: not such a file; the message names the file.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in ("images", "labels", "groups", "parts") if key in stored.files}
            present = stored.files
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if "images" not in arrays or "labels" not in arrays:
        raise ValueError(f"{path}: expected the arrays images and labels, found {', '.join(present) or 'none'}")
    images = as_channels_first(arrays["images"], str(path))
    labels = _names(arrays["labels"], len(images), "labels", path)
    if "groups" in arrays:
        groups = _names(arrays["groups"], len(images), "groups", path)
        pairs, indices = np.unique(np.stack([_as_index(groups), _as_index(labels)]), axis=1, return_inverse=True)
        indices = indices.ravel()
        group_names, label_names = _as_strings(np.unique(groups)), _as_strings(np.unique(labels))
        names = [f"{group_names[group]}/{label_names[label]}" for group, label in pairs.T]
        found = gather(images, indices, names, [group_names[group] for group in pairs[0]])
    else:
        unique, indices = np.unique(labels, return_inverse=True)
        found = gather(images, indices, _as_strings(unique))
    if "parts" not in arrays:
        return found
    return replace(found, parts=_parts(_names(arrays["parts"], len(images), "parts", path), indices, found, path))


def _parts(parts: NDArray[np.generic], indices: NDArray[np.integer], found: ImageSet, path: Path) -> tuple[str, ...]:
    """Return the part of each class, from that of each image and the images' classes."""
    unknown = set(_as_strings(parts)) - set(PARTS)
    if unknown:
        raise ValueError(f"{path}: parts must be {', '.join(PARTS)}, got {min(unknown)!r}")
    of_class: list[str] = []
    for index, name in enumerate(found.classes):
        mine = set(_as_strings(parts[indices == index]))
        if len(mine) > 1:
            raise ValueError(
                f"{path}: expected one part for all images of a class, got {' and '.join(sorted(mine))} for {name!r}"
            )
        of_class += mine
    return tuple(of_class)


def _names(array: NDArray[np.generic], count: int, what: str, path: Path) -> NDArray[np.generic]:
    if array.shape != (count,):
        raise ValueError(f"{path}: expected {what} of shape [{count}], one an image, got {list(array.shape)}")
    if array.dtype.kind not in "iuU":
        raise ValueError(f"{path}: {what} must be integers or strings, got {array.dtype}")
    return array


def _as_index(array: NDArray[np.generic]) -> NDArray[np.intp]:
    return np.unique(array, return_inverse=True)[1]


def _as_strings(array: NDArray[np.generic]) -> list[str]:
    return [str(name) for name in array.tolist()]
