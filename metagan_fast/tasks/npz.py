"""Labelled images in an `.npz` file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .images import ImageSet, as_channels_first, gather


def recognises(path: Path) -> bool:
    """Return whether the path is an `.npz` file, by its name."""
    return path.is_file() and path.suffix.lower() == ".npz"


def read(path: Path) -> ImageSet:
    """Read the arrays `images`, `labels` and, if there, `groups`.

    Images are uint8, `[n, H, W]`, `[n, H, W, C]` or `[n, C, H, W]`; labels and groups `[n]` integers or
    strings. Equal labels in different groups are different classes: with groups a class is named
    "group/label".

    Raises:
        ValueError: not such a file; the message names the file.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in ("images", "labels", "groups") if key in stored.files}
            found = stored.files
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if "images" not in arrays or "labels" not in arrays:
        raise ValueError(f"{path}: expected the arrays images and labels, found {', '.join(found) or 'none'}")
    images = as_channels_first(arrays["images"], str(path))
    labels = _names(arrays["labels"], len(images), "labels", path)
    if "groups" not in arrays:
        names, indices = np.unique(labels, return_inverse=True)
        return gather(images, indices, _as_strings(names))
    groups = _names(arrays["groups"], len(images), "groups", path)
    pairs, indices = np.unique(np.stack([_as_index(groups), _as_index(labels)]), axis=1, return_inverse=True)
    group_names = _as_strings(np.unique(groups))
    label_names = _as_strings(np.unique(labels))
    names_of_pairs = [f"{group_names[group]}/{label_names[label]}" for group, label in pairs.T]
    return gather(images, indices.ravel(), names_of_pairs, [group_names[group] for group in pairs[0]])


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
