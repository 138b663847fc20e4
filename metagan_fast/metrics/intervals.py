"""Bootstrap intervals of figures with one value a class."""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils import coerce


def bootstrap_interval(
    values: Tensor, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return a percentile bootstrap interval of a mean (Efron 1979).

    Args:
        values: `[n]`, independent draws: one number a class.
        confidence: between 0 and 1.
        resamples: number of bootstrap resamples.
        seed: of the draws; equal seeds give equal intervals.
    """
    confidence, index = _resamples(len(values), confidence, resamples, seed)
    return _percentiles(values.double().cpu()[index].mean(1), confidence)


def ratio_interval(
    numerators: Tensor, denominators: Tensor, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Return the ratio of two means, and its percentile bootstrap interval (Efron 1979).

    Classes are resampled in pairs, so differences between classes that both sets share do not widen the interval.

    Args:
        numerators, denominators: `[n]`, one number a class, of the same classes in the same order.
        confidence: between 0 and 1.
        resamples: number of bootstrap resamples.
        seed: of the draws; equal seeds give equal intervals.

    Returns:
        Ratio of the means, lower and upper limit.

    Raises:
        ValueError: lengths that differ, no class, or denominators that are not all positive.
    """
    if numerators.shape != denominators.shape or numerators.ndim != 1 or not len(numerators):
        raise ValueError(
            "expected a numerator and a denominator of each class, "
            f"got {list(numerators.shape)} and {list(denominators.shape)}"
        )
    numerators, denominators = numerators.double().cpu(), denominators.double().cpu()
    if not (denominators > 0).all():
        raise ValueError(f"expected positive denominators, got {denominators.min().item()}; leave such classes out")
    confidence, index = _resamples(len(numerators), confidence, resamples, seed)
    ratios = numerators[index].mean(1) / denominators[index].mean(1)
    return (numerators.mean() / denominators.mean()).item(), *_percentiles(ratios, confidence)


def _resamples(classes: int, confidence: float, resamples: int, seed: int) -> tuple[float, Tensor]:
    """Return the confidence and the classes `[resamples, classes]` of each resample, arguments checked."""
    confidence, resamples = coerce.real("confidence", confidence), coerce.count("resamples", resamples, least=1)
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, got {confidence}")
    generator = torch.Generator().manual_seed(coerce.count("seed", seed))
    return confidence, torch.randint(classes, (resamples, classes), generator=generator)


def _percentiles(means: Tensor, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
