"""Augmented copies of images, the baseline that a few-shot generator has to beat."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._utils import coerce

_INTERPOLATIONS = ("bilinear", "nearest")
_GRID: dict[str, tuple[Any, ...]] = {
    "interpolation": _INTERPOLATIONS,
    "shift": (0.0, 1.0, 2.0, 4.0),
    "rotation": (0.0, 5.0, 10.0, 20.0, 30.0),
    "scale": (0.0, 0.05, 0.1, 0.2),
}


@dataclass(frozen=True)
class Augmentation:
    """Random shift, rotation and scale; calling it moves each image by a draw of its own.

    Attributes:
        shift: largest shift along either axis, in pixels.
        rotation: largest rotation about the centre, in degrees.
        scale: largest change of size, a share below 1: factors lie between 1 - scale and 1 + scale.
        interpolation: "bilinear", or "nearest", which keeps edges sharp: feature spaces of line drawings tell blurred
            copies from real images (docs/tuning.md).
    """

    shift: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        coerce.convert(self, coerce.non_negative, "shift", "rotation", "scale")
        if self.scale >= 1:
            raise ValueError(f"expected a scale below 1, got {self.scale}")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"expected an interpolation of {_INTERPOLATIONS}, got {self.interpolation!r}")

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """Return moved images, in the shape and dtype of the given ones.

        An image is scaled and rotated about its centre, then shifted; beyond its border the border pixels are
        repeated. All four draws are uniform, and the same for every augmentation: a stronger one moves an image
        farther in the same direction.

        Args:
            images: `[n, C, H, W]`, floating point.
            seed: of the draws.

        Raises:
            ValueError: images of another shape or dtype.
        """
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(f"expected floating-point images [n, C, H, W], got {images.dtype} {list(images.shape)}")
        generator = torch.Generator().manual_seed(coerce.seed(seed))
        draws = torch.rand(len(images), 4, generator=generator, dtype=torch.float64).to(images.device) * 2 - 1
        right, down, turn, growth = draws.T.view(4, -1, 1, 1)
        angle, factor = turn * math.radians(self.rotation), 1 + growth * self.scale
        height, width = images.shape[-2:]
        # Each pixel of the result takes the value at (x, y) of the image, both measured from its centre.
        y, x = (torch.arange(side, device=images.device).double() - (side - 1) / 2 for side in (height, width))
        x, y = x - right * self.shift, y.unsqueeze(-1) - down * self.shift
        cosine, sine = angle.cos() / factor, angle.sin() / factor
        source = torch.stack([(cosine * x + sine * y) * 2 / width, (cosine * y - sine * x) * 2 / height], -1)
        moved = F.grid_sample(images.double(), source, self.interpolation, "border", align_corners=False)
        return moved.to(images.dtype)


def tune(score: Callable[[Augmentation], float]) -> Augmentation:
    """Return the augmentation with the lowest score, by one sweep of coordinate descent on a grid: 12 scores.

    The grid is both interpolations, shifts of 0, 1, 2 and 4 pixels, rotations of 0, 5, 10, 20 and 30 degrees and scales
    of 0, 0.05, 0.1 and 0.2. The sweep starts from the second of each number and takes the best interpolation, then the
    best shift, rotation and scale; bilinear, or the weakest, among equals.

    Args:
        score: score of an augmentation, lower is better: KID of its copies on validation classes.

    Raises:
        ValueError: a score that is NaN.
    """
    scores: dict[Augmentation, float] = {}

    def known_score(augmentation: Augmentation) -> float:
        if augmentation not in scores:
            scores[augmentation] = coerce.real("score", score(augmentation))
            if math.isnan(scores[augmentation]):
                raise ValueError(f"expected a score that is a number, got NaN for {augmentation}")
        return scores[augmentation]

    best = Augmentation(shift=1, rotation=5, scale=0.05)
    for name, values in _GRID.items():
        best = min((replace(best, **{name: value}) for value in values), key=known_score)
    return best
