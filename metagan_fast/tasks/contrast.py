"""Contrast of strokes and background: light on dark or dark on light."""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils.tensors import every
from .distribution import TaskDistribution
from .images import to_float

_CLASSES, _IMAGES = 32, 8  # looked at: classes of a distribution, images of each
_CLEAR = 0.9  # share of images that agree on a clear background
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


def _border(images: Tensor) -> Tensor:
    """Return the outermost pixels of `[n, 1, height, width]`, `[n, pixels]`."""
    rows = images[:, 0, [0, -1], :].flatten(1)
    columns = images[:, 0, 1:-1, [0, -1]].flatten(1)
    return torch.cat([rows, columns], dim=1)
