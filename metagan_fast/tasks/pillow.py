"""Pixels of Pillow's images: upright, opaque, 8 bits, grey or colour."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import limits
from .images import Pixels, fit

if TYPE_CHECKING:
    from PIL import Image

Resize = Callable[["Image.Image", tuple[int, int]], "Image.Image"]
"""Function that resizes an image to (height, width)."""

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # Pillow starts Ghostscript for some others

_SIXTEEN_BITS_AS_32 = ("PPM", "PNG")  # formats whose mode I holds 16 bits; PNG before Pillow 11

_ORIENTATION = 0x0112  # EXIF tag; the transposition that each value needs, 1 (upright) none:
_TURNS: Mapping[object, str] = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file of the kinds that loaders read, of at most as many pixels as `limits` allows.

    Raises:
        ValueError: any other file, or an error of Pillow while it is open; the message names the file.
    """
    from PIL import Image

    try:
        # In memory, since Pillow reads as many bytes of a file as a damaged header says, and allocates them first.
        with Image.open(io.BytesIO(path.read_bytes()), formats=_FORMATS) as image:
            limits.check_pixels(*image.size)
            yield image
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise ValueError(f"cannot read the image {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return f"it is not an image of the kinds {', '.join(_FORMATS)}, or is damaged"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {limits.limit(limits.PIXELS_VARIABLE):,} pixels; make it smaller"
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def is_grey(image: Image.Image) -> bool:
    """Return whether an image has no colours, by its mode."""
    return image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")


def to_pixels(image: Image.Image, image_size: tuple[int, int] | None, channels: int, resize: Resize = fit) -> Pixels:
    """Return `[C, H, W]`, C 1 or 3; transparent pixels become white, 16-bit grey 8-bit.

    Args:
        image: of any mode.
        image_size: (height, width); None keeps the image's own.
        channels: 1 or 3.
        resize: resizes an image to `image_size`.

    Raises:
        ValueError: pixels of 32 bits. Pillow raises further kinds for damaged files.
    """
    from PIL import Image

    image.load()
    upright = _turned(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS_AS_32):
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits; store it with 8 or 16")
    elif image.mode == "LAB":
        upright = upright.convert("RGB")  # Pillow cannot convert it to grey
    if upright.has_transparency_data:
        coloured = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    plain = upright.convert("L" if channels == 1 else "RGB")
    if image_size is not None:
        plain = resize(plain, image_size)
    array = np.asarray(plain)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _turned(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; unlike `ImageOps.exif_transpose`, do not rewrite the EXIF data."""
    from PIL import Image

    turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    return image if turn is None else image.transpose(Image.Transpose[turn])
