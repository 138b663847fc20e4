"""Embedded data sets.

`glyphs` is built by `tools/glyphs`, `glyphs-latin` by `build_glyphs_latin.py`, `digits` by `build_digits.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import npz
from .images import ImageSet, Pixels

FOLDER = Path(__file__).parent / "data"
_GLYPHS = FOLDER / "glyphs.npz"
_GLYPHS_LATIN = FOLDER / "glyphs-latin.npz"
_DIGITS = FOLDER / "digits.npz"


# Deflate reads in a third of LZMA's time; bytes of two rows are smaller than bytes of two columns
# (docs/tuning.md#data-packing-of-glyphs).


def pack(images: Pixels) -> bytes:
    """Pack `[n, height, width]` uint8 images to 4 bits a pixel (the height is even) and compress them."""
    levels = ((images.astype(np.uint16) * 15 + 127) // 255).astype(np.uint8)
    return zlib.compress((levels[:, ::2] << 4 | levels[:, 1::2]).tobytes(), level=9)


def unpack(data: bytes, height: int, width: int) -> Pixels:
    """Return `[n, height, width]` uint8 images of 16 grey levels, 0 to 255."""
    packed = np.frombuffer(zlib.decompress(data), np.uint8).reshape(-1, height // 2, width)
    images = np.empty((len(packed), height, width), np.uint8)
    np.right_shift(packed, 4, out=images[:, ::2])
    np.bitwise_and(packed, 15, out=images[:, 1::2])
    images *= 17
    return images


def save_glyphs(
    path: Path,
    images: Pixels,
    counts: Sequence[int],
    classes: Sequence[str],
    groups: Sequence[str] | None = None,
    parts: Sequence[str] | None = None,
) -> None:
    """Write `[n, height, width]` images, class after class, and each class's group and part if there are any."""
    arrays: dict[str, Any] = {
        "images": np.frombuffer(pack(images), np.uint8),
        "size": np.array(images.shape[1:], np.int32),
        "counts": np.array(counts, np.int32),
        "classes": np.array(classes),
    }
    arrays |= {key: np.array(names) for key, names in (("groups", groups), ("parts", parts)) if names is not None}
    np.savez_compressed(path, **arrays)


def read_glyphs() -> ImageSet:
    """Return characters of many scripts, white on black, 32x32: a class for each, a group for each script.

    Whole scripts are for training, validation or test.
    """
    return _read(_GLYPHS)


def read_glyphs_latin() -> ImageSet:
    """Return characters of Brian Kent's typefaces, white on black, 32x32: a class for each character."""
    return _read(_GLYPHS_LATIN)


def _read(path: Path) -> ImageSet:
    with np.load(path, allow_pickle=False) as stored:
        height, width = stored["size"].tolist()
        images = unpack(stored["images"].tobytes(), height, width)
        names: dict[str, Any] = {key: tuple(stored[key].tolist()) for key in ("groups", "parts") if key in stored}
        return ImageSet(images[:, None], tuple(stored["counts"].tolist()), tuple(stored["classes"].tolist()), **names)


def read_digits() -> ImageSet:
    """Return handwritten digits, white on black, 8x8 in 17 grey levels: ten classes."""
    return npz.read(_DIGITS)
