"""Digests of folders' entries, which change with any file's name, size or times."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .._native import _core

WORKERS = min(8, os.cpu_count() or 1)
"""Threads that read files."""

_NUMBERS = struct.Struct("=4q")  # type bits of the mode, size, times of modification and of change in ns


def digest(folder: str | Path) -> str:
    """Return a digest of a folder's entries: names, types, targets of links, sizes and times, but not of folders.

    Raises:
        OSError: the folder cannot be read.
    """
    return hashlib.blake2b(_listing()(os.fsencode(folder)), digest_size=16).hexdigest()


def digests(folders: Iterable[str | Path]) -> list[str]:
    """Return the digests of folders, read in parallel."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(digest, folders))


def listing_in_python(folder: bytes) -> bytes:
    """Return the entries as the extension's `folder_listing`, to the byte.

    Sorted by name, each is name, NUL, target of a link or nothing, NUL, and four int64: the numbers of the file behind
    links, zeros where there is none; of a folder the type alone.
    """
    found = bytearray()
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        try:
            target = os.readlink(path)
        except OSError:
            target = b""
        try:
            status = os.stat(path)
        except OSError:
            numbers = (0, 0, 0, 0)
        else:
            kind = stat.S_IFMT(status.st_mode)
            of_file = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            numbers = (kind, *((0, 0, 0) if kind == stat.S_IFDIR else of_file))
        found += name + b"\0" + target + b"\0" + _NUMBERS.pack(*numbers)
    return bytes(found)


def _listing() -> Callable[[bytes], bytes]:
    return getattr(_core, "folder_listing", listing_in_python)  # _core is None without the extension
