"""Contrast of strokes and background: light on dark or dark on light."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .._utils.tensors import every
from .distribution import TaskDistribution
from .images import to_float

_CLASSES, _IMAGES = 32, 8  # looked at: classes of a distribution, images of each
_CLEAR = 0.9  # share of images that agree on a clear background
_GREY = 0.3  # distance from black and white, of 2 between them, beyond which a background is grey
_PLAIN = 0.25  # distance within which half the border lies from its median, where a background is plain


def contrast(images: Tensor) -> Tensor:
    """Return by how much strokes are lighter than the background; negative where they are darker.

    Strokes differ most from the border's median. The extreme 2 % of the pixels on either side decide, so uneven light,
    which changes the background by less than strokes do, does not change the sign.

    Args:
        images: `[n, 1, height, width]` in [-1, 1].

    Returns:
        `[n]`, between -4 and 4.
    """
    background = _border(images).median(dim=1).values
    pixels = images.flatten(1)
    few = max(1, pixels.shape[1] // 50)
    darkest, lightest = (pixels.kthvalue(rank, dim=1).values for rank in (few, pixels.shape[1] + 1 - few))
    return (lightest - background) - (background - darkest)


def clear_contrast(distribution: TaskDistribution) -> float | None:
    """Return the mean contrast of a distribution's images; None for colour images or without a clear background.

    The background is clear if 9 in 10 images have a border of about one grey, and 9 in 10 the same sign of contrast.
    """
    if distribution.image_shape[0] != 1 or not distribution.classes:
        return None
    names = distribution.classes[every(len(distribution.classes), _CLASSES)]
    classes = [torch.as_tensor(distribution.images(name)) for name in names]
    images = to_float(torch.cat([found[every(len(found), _IMAGES)] for found in classes]))
    border = _border(images)
    distances = (border - border.median(dim=1, keepdim=True).values).abs().median(dim=1).values
    found = contrast(images)
    agree = (found * found.mean().sign() > 0).double().mean()
    if (distances <= _PLAIN).double().mean() < _CLEAR or agree < _CLEAR:
        return None
    return round(found.mean().item(), 4)


def is_opposite(images: Tensor, usual: float | None) -> bool:
    """Return whether most images have the opposite contrast to a distribution's `clear_contrast`."""
    if usual is None or images.shape[1] != 1:
        return False
    opposite = contrast(images).sign() == (-1.0 if usual > 0 else 1.0)
    return bool(opposite.double().mean() > 0.5)


def is_grey(images: Tensor, usual: float | None) -> bool:
    """Return whether most images have a background that is neither near black nor near white, as photographs have.

    False without a distribution's `clear_contrast`, and for colour.
    """
    if usual is None or images.shape[1] != 1:
        return False
    background = _border(images).median(dim=1).values
    return bool((background.abs() < 1 - _GREY).double().mean() > 0.5)


def evened(images: Tensor, usual: float) -> Tensor:
    """Return images with an even background, black or white as a distribution's, and strokes of full contrast.

    The background is the morphological opening by a square of a third of the image's side, which thinner strokes leave,
    and is subtracted. Black is then the median, white the brightest 2 % of the pixels.

    Args:
        images: `[n, 1, height, width]` in [-1, 1], with strokes on the same side as `usual`.
        usual: the distribution's `clear_contrast`.
    """
    sign = 1.0 if usual > 0 else -1.0
    light = sign * images
    reach = max(1, min(images.shape[-2:]) // 6)
    padded = functional.pad(light, [reach] * 4, mode="replicate")
    eroded = -functional.max_pool2d(-padded, 2 * reach + 1, stride=1)
    opened = functional.max_pool2d(functional.pad(eroded, [reach] * 4, mode="replicate"), 2 * reach + 1, stride=1)
    strokes = light - opened
    pixels = strokes.flatten(1)
    black = pixels.median(dim=1).values
    white = pixels.kthvalue(pixels.shape[1] + 1 - max(1, pixels.shape[1] // 50), dim=1).values
    black, white = (x[:, None, None, None] for x in (black, white))
    return sign * (2 * ((strokes - black) / (white - black).clamp_min(1e-3)).clamp(0, 1) - 1)


def _border(images: Tensor) -> Tensor:
    """Return the outermost pixels of `[n, 1, height, width]`, `[n, pixels]`."""
    rows = images[:, 0, [0, -1], :].flatten(1)
    columns = images[:, 0, 1:-1, [0, -1]].flatten(1)
    return torch.cat([rows, columns], dim=1)
