"""IDX files of MNIST and its relatives, gzip-compressed or not."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import limits
from .images import ImageSet, Pixels, as_channels_first, gather
from .left_out import LeftOut, Reason

_UNSIGNED_BYTES = 0x08
_PART_WORDS = frozenset({"train", "t10k", "test", "validation", "images", "idx3", "ubyte"})  # not names of a set


def recognises(path: Path) -> bool:
    """Return whether the path is an IDX file of images, or a folder with one."""
    return _is_images(path) if path.is_file() else path.is_dir() and any(map(_is_images, _image_files(path)))


def read(path: Path, labels: str | Path | None = None, subset: str | None = None) -> ImageSet:
    """Read images with their labels; each label is a class.

    Args:
        path: a file of images, or a folder, of which all files with "images" in the name are read (so MNIST's
            training and test files together), one of each that is there packed and unpacked.
        labels: the file of labels, if it is not beside the images under MNIST's naming
            (`train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, with or without `.gz`).
        subset: which of several sets in a folder, such as EMNIST's "emnist-letters" or "letters"; their labels
            differ in meaning, so several sets are never read together.

    Raises:
        ValueError: a file is truncated, of another kind, or has no partner; the message names it. A folder of
            several sets without `subset`, or with another one.
    """
    left_out = LeftOut()
    files = [path] if path.is_file() else _files_of_one_set(path, subset, left_out)
    if labels is not None and len(files) > 1:
        raise ValueError(f"{path} holds {len(files)} files of images; name one of them to go with labels={labels}")
    images: list[Pixels] = []
    indices: list[NDArray[np.int64]] = []
    for file in files:
        beside = _labels_beside(file) if labels is None else Path(labels)
        images.append(_read(file, 3))
        indices.append(_read(beside, 1).astype(np.int64))
        if len(images[-1]) != len(indices[-1]):
            raise ValueError(f"{file} has {len(images[-1])} images, but {beside} has {len(indices[-1])} labels")
    if len({image.shape[1:] for image in images}) > 1:
        raise ValueError(f"{path}: the files hold images of different sizes; name one of them")
    together = np.concatenate(indices)
    names = [str(label) for label in range(256)]
    found = gather(as_channels_first(np.concatenate(images), str(path)), together, names)
    return replace(found, left_out=left_out)


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _contents(path: Path, count: int) -> bytes:
    """Return the first `count` bytes, unpacked; ValueError if they cannot be read."""
    try:
        with gzip.open(path) if _is_compressed(path) else path.open("rb") as stream:
            return stream.read(count)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def _is_images(path: Path) -> bool:
    try:
        return _contents(path, 4) == bytes([0, 0, _UNSIGNED_BYTES, 3])
    except ValueError:
        return False


def _image_files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if "images" in file.name and file.is_file()]


def _files_of_one_set(folder: Path, subset: str | None, left_out: LeftOut) -> list[Path]:
    """Return the image files of one set, one each part (training, test)."""
    sets: dict[str, dict[tuple[str, ...], Path]] = {}
    for words, _, file in sorted((_words(file), file.suffix == ".gz", file) for file in _image_files(folder)):
        if not _is_images(file):
            left_out.add(Reason.OTHER, file.name)
            continue
        name = "-".join(word for word in words if word not in _PART_WORDS)
        sets.setdefault(name, {}).setdefault(words, file)  # prefers the unpacked of two
    chosen = [subset] if subset in sets else [n for n in sets if subset is None or n.endswith(f"-{subset}")]
    if len(chosen) == 1:
        return list(sets[chosen[0]].values())
    *others, last = (name or "''" for name in sets)
    names = f"{', '.join(others)} or {last}" if others else last
    if subset is not None:
        raise ValueError(f"{folder}: expected subset to be {names}, got {subset!r}")
    raise ValueError(
        f"{folder} holds several sets whose labels differ in meaning: choose one with subset={next(iter(sets))!r} "
        f"(on the command line --subset), of {names}"
    )


def _words(file: Path) -> tuple[str, ...]:
    return tuple(re.split(r"[-_.]", file.name.removesuffix(".gz")))


def _labels_beside(images: Path) -> Path:
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    bare = name.removesuffix(".gz")
    for candidate in (images.with_name(name), images.with_name(bare), images.with_name(f"{bare}.gz")):
        if candidate != images and candidate.is_file():
            return candidate
    raise ValueError(f"found no labels for {images}: expected {images.with_name(name)}, or labels=FILE")


def _read(path: Path, dimensions: int) -> Pixels:
    start = 4 + 4 * dimensions
    head = _contents(path, start)
    if head[:4] != bytes([0, 0, _UNSIGNED_BYTES, dimensions]):
        raise ValueError(f"{path} is not an IDX file of unsigned bytes in {dimensions} dimensions")
    if len(head) < start:
        raise ValueError(f"{path} is truncated within its header")
    shape = tuple(int(size) for size in np.frombuffer(head, ">u4", dimensions, 4))
    promised = math.prod(shape)
    length = path.stat().st_size
    if _is_compressed(path):
        limits.check_unpacked(str(path), promised, length)
        data = _contents(path, start + promised + 1)  # one more byte than there should be
        found = str(len(data) - start) if len(data) <= start + promised else "more"
    else:
        data = _contents(path, start + promised) if length == start + promised else b""
        found = str(length - start)
    if len(data) - start != promised:
        raise ValueError(f"{path} is damaged: its header promises {promised} bytes, it has {found}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
