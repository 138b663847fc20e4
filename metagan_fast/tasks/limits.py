"""Limits on what one file of data may take in memory, against files made to exhaust it."""

from __future__ import annotations

import os

from .._utils import coerce

BYTES_VARIABLE = "METAGAN_FAST_MAX_BYTES"
"""Environment variable: most bytes that a compressed file, or one array of it, unpacks to."""

PIXELS_VARIABLE = "METAGAN_FAST_MAX_PIXELS"
"""Environment variable: most pixels of an image file."""

_DEFAULTS = {BYTES_VARIABLE: 1 << 30, PIXELS_VARIABLE: 40_000_000}
_DEFLATE_RATIO = 1032  # bytes that a byte of deflate can stand for, at most


def limit(variable: str) -> int:
    """Return a limit, its default unless the environment has another; ValueError if that is no number."""
    given = os.environ.get(variable)
    if not given:
        return _DEFAULTS[variable]
    try:
        return coerce.count(variable, int(given), least=1)
    except ValueError:
        raise ValueError(f"expected {variable} to be a whole number above 0, got {given!r}") from None


def check_unpacked(source: str, size: int, packed: int) -> None:
    """Raise ValueError if a size read from a file's header exceeds the limit, or its compressed bytes cannot hold it.

    Args:
        source: name of the file or its part, for the error.
        size: promised bytes, unpacked.
        packed: bytes compressed by deflate.
    """
    if size > _DEFLATE_RATIO * packed:
        raise ValueError(f"{source} is damaged: its header promises {size:,} bytes, too many for {packed:,} compressed")
    most = limit(BYTES_VARIABLE)
    if size > most:
        raise ValueError(f"{source} unpacks to {size:,} bytes, more than {most:,}; {BYTES_VARIABLE} raises the limit")


def check_pixels(width: int, height: int) -> None:
    """Raise ValueError for an image of more pixels than the limit."""
    most = limit(PIXELS_VARIABLE)
    if width * height > most:
        raise ValueError(
            f"it has {width:,} x {height:,} pixels, more than {most:,}; make it smaller, or raise the limit with "
            f"{PIXELS_VARIABLE}"
        )
