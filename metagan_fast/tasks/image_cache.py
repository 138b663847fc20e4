"""Decoded images of a folder tree, in one memory-mapped file of the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .._utils.user_cache import cache_folder
from . import listing
from .images import Pixels

LEAST = 1000
"""Images from which a tree is cached unless the caller names a place; fewer are decoded in a moment."""

DECODER = 1
"""Version of the conversion from files to pixels; another one makes all caches anew."""

_MAGIC = b"metagan_fast images 1\n"
_START = 4096  # of the pixels, a page
_ABANDONED = 24 * 3600.0  # seconds after which a temporary file is of a killed process

Shape = tuple[int, int, int]


@dataclass
class Contents:
    """Description of the pixels in a cache, stored behind them as JSON.

    Attributes:
        key: of the tree and the conversion.
        shape: (channels, height, width).
        digests: folder -> digest of its entries, of all folders of the tree, relative to it.
        classes, counts, greys: of each class its folder, its images, and whether all were grey (None: not known).
        left_out: reason -> names that the reader skipped.
    """

    key: str
    shape: Shape = (0, 0, 0)
    digests: dict[str, str] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    greys: list[bool | None] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the pixels."""
        return sum(self.counts) * int(np.prod(self.shape))


class ImageCache:
    """Cache file that was read: its contents and its pixels, memory-mapped, `[n, channels, height, width]`."""

    def __init__(self, contents: Contents, pixels: Pixels) -> None:
        self.contents = contents
        self.pixels = pixels
        self._ends = np.cumsum([0, *contents.counts])
        self._places = {name: index for index, name in enumerate(contents.classes)}

    def is_current(self, root: Path) -> bool:
        """Return whether the tree is as it was when it was decoded."""
        try:
            found = listing.digests(root / folder for folder in self.contents.digests)
        except OSError:
            return False
        return found == list(self.contents.digests.values())

    def rows(self, name: str, digest: str) -> Pixels | None:
        """Return the pixels of a class, or None if its folder has changed."""
        if not self._is_same(name, digest):
            return None
        place = self._places[name]
        return self.pixels[self._ends[place] : self._ends[place + 1]]

    def grey(self, name: str, digest: str) -> bool | None:
        """Return whether all images of a class are grey, or None if it is not known."""
        return self.contents.greys[self._places[name]] if self._is_same(name, digest) else None

    def _is_same(self, name: str, digest: str) -> bool:
        return name in self._places and self.contents.digests.get(name) == digest


def place(given: str | os.PathLike[str] | bool | None) -> Path | None:
    """Return the folder of caches, or None if there are none to be.

    Args:
        given: a folder; False or "off" for none; None or True for the user's cache folder.
    """
    if given is False or given == "off":
        return None
    return cache_folder() if given is None or given is True else Path(given).expanduser()


def key(root: Path, image_size: tuple[int, int] | None, channels: int | None, skip_broken: bool) -> str:
    """Return the name of a tree's cache for one conversion."""
    from PIL import __version__ as pillow

    described = [os.fsdecode(root.resolve()), image_size, channels, skip_broken, DECODER, pillow]
    return hashlib.blake2b(json.dumps(described).encode(), digest_size=16).hexdigest()


def read(folder: Path, key: str) -> ImageCache | None:
    """Map a cache; None if there is none, or it is cut short, damaged or of something else."""
    path = _path(folder, key)
    try:
        with open(path, "rb") as file:
            contents = _read_contents(file)
            if contents is None or contents.key != key:
                return None
            return ImageCache(contents, _mapped(file, contents))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write(folder: Path, contents: Contents, blocks: Iterable[Pixels]) -> ImageCache:
    """Write a cache, block after block, and return it mapped; it has its name once it is whole.

    The blocks' maker completes `contents` (shape, counts). Two processes that write at once replace each other's file
    by an equal one.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    path = _path(folder, contents.key)
    temporary = folder / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(_MAGIC.ljust(_START, b"\0"))
            for block in blocks:
                file.write(np.ascontiguousarray(block).data)
            trailer = json.dumps(asdict(contents)).encode()
            file.write(trailer + hashlib.sha256(trailer).digest() + len(trailer).to_bytes(8, "little") + _MAGIC)
            file.flush()
            os.fsync(file.fileno())
        with open(temporary, "rb") as whole:
            cache = ImageCache(contents, _mapped(whole, contents))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return cache


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.images"


def _mapped(file: BinaryIO, contents: Contents) -> Pixels:
    shape = (sum(contents.counts), *contents.shape)
    return np.memmap(file, np.uint8, mode="c", offset=_START, shape=shape)  # private pages: PyTorch expects writable


def _read_contents(file: BinaryIO) -> Contents | None:
    """Return the description behind the pixels if head, end, hash and size agree, else None."""
    end = 32 + 8 + len(_MAGIC)
    size = os.fstat(file.fileno()).st_size
    if file.read(len(_MAGIC)) != _MAGIC or size < _START + end:
        return None
    file.seek(size - end)
    last = file.read()
    length = int.from_bytes(last[32:40], "little")
    if last[40:] != _MAGIC or length > size - _START - end:
        return None
    file.seek(size - end - length)
    trailer = file.read(length)
    if hashlib.sha256(trailer).digest() != last[:32]:
        return None
    contents = Contents(**json.loads(trailer))
    channels, height, width = contents.shape
    contents.shape = (channels, height, width)
    return contents if contents.size and size == _START + contents.size + length + end else None


def _remove_abandoned(folder: Path) -> None:
    for path in folder.glob(".*.images.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()
