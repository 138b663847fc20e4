"""Labelled images in an `.npz` file."""

from __future__ import annotations

import math
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import limits
from .images import ImageSet, as_channels_first, gather
from .split import PARTS

_ARRAYS = ("images", "labels", "groups", "parts")
_SHOWN = 10  # names in an error
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


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
        with zipfile.ZipFile(path) as stored:
            present = {info.filename.removesuffix(".npy"): info for info in stored.infolist()}
            arrays = {key: _array(stored, present[key]) for key in _ARRAYS if key in present}
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds for damaged files
        raise ValueError(f"cannot read {path}: {' '.join(str(error).split()) or type(error).__name__}") from error
    if "images" not in arrays or "labels" not in arrays:
        names = [*map(repr, list(present)[:_SHOWN]), *(["..."] if len(present) > _SHOWN else [])]
        raise ValueError(f"{path}: expected the arrays images and labels, found {', '.join(names) or 'none'}")
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


def _array(stored: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """Return an array of an archive, without objects; ValueError before anything is allocated if its sizes disagree."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is compressed by another method than deflate")
    limits.check_unpacked(info.filename, info.file_size, info.compress_size)
    with stored.open(info) as member:
        read_header = _HEADERS.get(np.lib.format.read_magic(member))
        if read_header is None:
            raise ValueError(f"{info.filename} is of another version of NumPy's format than 1.0 and 2.0")
        shape, _, dtype = read_header(member)
        promised, found = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
    if not dtype.hasobject and (promised != found or not dtype.itemsize):  # objects, pickled, are refused below
        raise ValueError(f"{info.filename} is damaged: its header promises {promised:,} bytes, it has {found:,}")
    with stored.open(info) as member:
        array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array


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
        raise ValueError(f"{path}: {what} must be integers or strings, got {array.dtype!s:.100}")
    return array


def _as_index(array: NDArray[np.generic]) -> NDArray[np.intp]:
    return np.unique(array, return_inverse=True)[1]


def _as_strings(array: NDArray[np.generic]) -> list[str]:
    return [str(name) for name in array.tolist()]
