"""Pixels of arrays, tensors and PIL images in memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._utils import coerce
from . import pillow
from .images import Pixels, stack

if TYPE_CHECKING:
    from PIL import Image

_logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOGS = 10.0
_HALF_LEVEL = 0.5 / 255  # of the range: floats outside it by less are rounded
_RANGES = "floats in [0, 1] or [-1, 1]"


class PixelValues:
    """Mapping of pixel values to 0..255.

    Floats without a given range are in [-1, 1] if the first that are seen have a negative one, else in [0, 1].
    """

    def __init__(self, given: tuple[float, float] | None) -> None:
        self._given = None if given is None else coerce.reals("value_range", given, 2)
        if self._given is not None and not -np.inf < self._given[0] < self._given[1] < np.inf:
            raise ValueError(f"expected value_range to be (black, white) with black < white, got {tuple(self._given)}")
        self._of_floats: tuple[float, float] | None = None

    def see(self, pixels: NDArray[Any] | Tensor) -> tuple[float, float]:
        """Return the range of floats; the first call decides."""
        if self._of_floats is None:
            is_float = pixels.is_floating_point() if isinstance(pixels, Tensor) else pixels.dtype.kind == "f"
            if not is_float or 0 in pixels.shape:
                return (0.0, 1.0)
            self._of_floats = (-1.0, 1.0) if pixels.min().item() < -_HALF_LEVEL else (0.0, 1.0)
        return self._of_floats

    def to_uint8(self, pixels: NDArray[Any]) -> Pixels:
        """Return pixels in 0..255.

        Raises:
            ValueError: another dtype or values outside the range; the message says what to pass.
        """
        if self._given is None:
            if pixels.dtype == np.uint8:
                return pixels
            if pixels.dtype == np.bool_:
                return pixels.astype(np.uint8) * np.uint8(255)
            if pixels.dtype.kind != "f":
                hint = (
                    "pass value_range=(black, white), such as (0, 255)" if pixels.dtype.kind in "iu" else "convert it"
                )
                raise ValueError(f"expected uint8, bool or {_RANGES}, got {pixels.dtype}: {hint}")
        elif pixels.dtype.kind not in "buif":
            raise ValueError(f"expected numbers, got {pixels.dtype}")
        black, white = self.see(pixels) if self._given is None else self._given
        scaled = (pixels.astype(np.float64) - black) / (white - black)
        low, high = float(scaled.min()), float(scaled.max())
        if not (low >= -_HALF_LEVEL and high <= 1 + _HALF_LEVEL):  # NaN fails too
            raise ValueError(self._outside(float(pixels.min()), float(pixels.max())))
        return np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)

    def _outside(self, low: float, high: float) -> str:
        found = f"values from {low:.4g} to {high:.4g}"
        if self._given is not None:
            return f"{found}, outside value_range={tuple(self._given)}"
        if self._of_floats == (0, 1) and low >= -1 - 2 * _HALF_LEVEL and high <= 1 + _HALF_LEVEL:
            return f"{found}, after floats in [0, 1]: pass value_range=(-1, 1)"
        return f"{found}, expected {_RANGES}: pass value_range=(black, white), or images before their normalization"


def read_images(
    images: Any, values: PixelValues, size: tuple[int, int] | None, channels: int | None, name: str, noun: str
) -> Pixels:
    """Return `[n, C, H, W]`; with `channels` None C is 1 if all images are grey, else 3."""
    arrays = []
    for index, image in enumerate(_logged(images, name)):
        try:
            opened = _as_pillow(image, values)
            own = 1 if pillow.is_grey(opened) else 3
            arrays.append(pillow.to_pixels(opened, size, own if channels is None else channels))
        except Exception as error:  # Pillow raises many kinds for damaged files
            raise ValueError(f"{name}: cannot use {noun} {index}: {reason(error)}") from error
    if not arrays:
        raise ValueError(f"{name} holds no images")
    most = max(len(array) for array in arrays)
    return stack(
        [array if len(array) == most else np.repeat(array, most, axis=0) for array in arrays],
        lambda index: f"{noun} {index} of {name}",
    )


def _logged(images: Any, name: str) -> Iterator[Any]:
    """Yield images, with a log line at intervals."""
    begun = time.monotonic()
    for index, image in enumerate(images):
        if (now := time.monotonic()) - begun > _SECONDS_BETWEEN_LOGS:
            begun = now
            _logger.info("%s: read %d of %d images", name, index, len(images))
        yield image


def _as_pillow(image: Any, values: PixelValues) -> Image.Image:
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor):
        plain = image.detach().cpu()
        image = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    if not isinstance(image, np.ndarray):
        raise ValueError(f"expected an array, a tensor or a PIL image, got a value of type {type(image).__name__}")
    return Image.fromarray(np.ascontiguousarray(values.to_uint8(_channels_last(image))))


def _channels_last(image: NDArray[Any]) -> NDArray[Any]:
    """Return `[H, W]` or `[H, W, 3]` from `[H, W]`, `[H, W, C]` or `[C, H, W]` with C 1 or 3.

    Raises:
        ValueError: another layout, or a shape that fits two.
    """
    shape = list(image.shape)
    if 0 in shape:
        raise ValueError(f"expected pixels, got the shape {shape}")
    if image.ndim == 2:
        return image
    first, last = (image.ndim == 3 and shape[axis] in (1, 3) for axis in (0, 2))
    if first and last:
        raise ValueError(f"the shape {shape} may be [H, W, C] or [C, H, W]: pass a PIL image")
    if not first and not last:
        raise ValueError(f"expected [H, W], or [H, W, C] or [C, H, W] with C 1 or 3, got {shape}")
    moved = image if last else image.transpose(1, 2, 0)
    return moved[..., 0] if moved.shape[2] == 1 else moved


def reason(error: Exception) -> str:
    """Return an error's text in one line, with its type unless the text explains itself."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")
