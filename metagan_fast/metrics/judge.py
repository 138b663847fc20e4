"""Figures of one method in one feature space, class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .coverage import density_coverage
from .distances import frechet_distance, kernel_distance, nearest_distance
from .intervals import bootstrap_interval, ratio_interval
from .recognition import diversity, few_shot_accuracy, recognisability
from .results import FIGURES, Figure

_NEAREST = 5  # references of a ball's radius; fewer where a class has no more


class Judge:
    """Comparison of images with one draw's references and support images, in one feature space.

    Args:
        references, support: features `[n, d]`, one tensor a class.
    """

    def __init__(self, references: Sequence[Tensor], support: Sequence[Tensor]) -> None:
        self._references, self._support = references, support

    def __call__(self, found: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return figures of features `[m, d]`, one tensor a class: name -> `[classes]`, or `[]` for the pooled FID.

        Coverage grows with the number of samples, so it and density take as many as there are references, which is
        what real images have. `nearest` is the mean distance to the nearest support image, of which `tallied` makes
        the copy ratio.
        """
        pairs = list(zip(found, self._references, strict=True))
        around = [
            density_coverage(features[: len(references)], references, nearest=min(_NEAREST, len(references) - 1))
            for features, references in pairs
        ]
        training = [torch.cat(parts) for parts in zip(self._support, found, strict=True)]
        fid = frechet_distance(torch.cat(list(found)), torch.cat(list(self._references)))
        return {
            "kid": torch.stack([kernel_distance(features, references) for features, references in pairs]),
            "density": torch.stack([density for density, _ in around]),
            "coverage": torch.stack([coverage for _, coverage in around]),
            "recognisability": recognisability(found, self._references),
            "diversity": torch.stack([diversity(features) for features in found]),
            "nearest": nearest(found, self._support),
            "accuracy": few_shot_accuracy(training, self._references),
            "fid": torch.tensor(fid, dtype=torch.float64),
        }


def nearest(found: Sequence[Tensor], support: Sequence[Tensor]) -> Tensor:
    """Return the mean distance of each class's elements `[m, d]` to the nearest of its support `[n, d]`."""
    return torch.stack([nearest_distance(x, s).mean() for x, s in zip(found, support, strict=True)])


_LEAST = 1e-12
_RATIOS = {"copy_ratio": "nearest", "pixel_copy_ratio": "nearest_pixel"}  # to the same of real images


def tallied(values: Mapping[str, Tensor], real: Mapping[str, Tensor], seed: int) -> dict[str, Figure]:
    """Return figures with intervals of values of `Judge`, averaged over draws; `real` are those of real images."""
    figures = {}
    for name in FIGURES:
        if name in _RATIOS:
            distance = real[_RATIOS[name]].clamp_min(_LEAST)  # 0 where all real images of a class are equal
            figures[name] = Figure(*ratio_interval(values[_RATIOS[name]], distance, seed=seed))
        elif values[name].ndim == 0:
            figures[name] = Figure(values[name].item())
        else:
            figures[name] = mean_of(values[name], seed)
    return figures


def mean_of(values: Tensor, seed: int) -> Figure:
    """Return the mean `[classes]` with its bootstrap interval."""
    return Figure(values.mean().item(), *bootstrap_interval(values, seed=seed))
