"""Distances between sets of feature vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _check


def kernel_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return KID: the unbiased estimate of the squared maximum mean discrepancy under a cubic kernel.

    The kernel is `k(x, y) = (x . y / d + 1)^3` (Binkowski et al. 2018, arXiv:1801.01401). Being unbiased, the
    estimate may be negative, and its mean does not depend on the sizes of the sets.

    Args:
        first, second: features `[..., m, d]` and `[..., n, d]`, m and n at least 2; computed in float64.

    Returns:
        `[...]`, float64.

    Raises:
        ValueError: a set of fewer than two, or disagreeing features.
    """
    _check_sets(first, second)
    first, second = first.double(), second.double()
    return _mean_of_pairs(first) + _mean_of_pairs(second) - 2 * _kernel(first, second).mean((-2, -1))


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.mT / first.shape[-1] + 1) ** 3


def _mean_of_pairs(features: Tensor) -> Tensor:
    """Average the kernel over ordered pairs of different elements."""
    count = features.shape[-2]
    kernel = _kernel(features, features)
    return (kernel.sum((-2, -1)) - kernel.diagonal(dim1=-2, dim2=-1).sum(-1)) / (count * (count - 1))


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Return FID: the squared Frechet distance between Gaussians fitted to two sets.

    `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))` (Heusel et al. 2017, arXiv:1706.08500), covariances divided
    by n - 1. It is biased upwards for small sets, and pooled over classes it cannot see images that are good
    but of the wrong class.

    Args:
        first, second: features `[m, d]` and `[n, d]`, m and n at least 2; computed in float64.

    Raises:
        ValueError: a set of fewer than two, or disagreeing features.
    """
    _check_sets(first, second)
    first, second = first.double(), second.double()
    first_covariance, second_covariance = torch.cov(first.T), torch.cov(second.T)
    # tr (C1 C2)^(1/2) by symmetric matrices alone: C1 C2 and C1^(1/2) C2 C1^(1/2) have the same eigenvalues.
    root = _square_root(first_covariance)
    cross = torch.linalg.eigvalsh(root @ second_covariance @ root).clamp_min(0).sqrt().sum()
    shift = (first.mean(0) - second.mean(0)).square().sum()
    return float(shift + first_covariance.trace() + second_covariance.trace() - 2 * cross)


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt() @ vectors.mT


def nearest_distance(samples: Tensor, support: Tensor) -> Tensor:
    """Return the distance of each sample to the nearest support element; 0 for a copy.

    Args:
        samples, support: `[..., m, d]` and `[..., n, d]`.

    Returns:
        `[..., m]`: root mean square over d, float64.
    """
    # Exact differences: the rounding of the inner-product expansion would hide copies.
    distances = torch.cdist(samples.double(), support.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.amin(-1) / samples.shape[-1] ** 0.5


def _check_sets(first: Tensor, second: Tensor) -> None:
    _check.same_kind(first, second)
    if min(first.shape[-2], second.shape[-2]) < 2:
        raise ValueError(f"expected at least 2 elements in each set, got {first.shape[-2]} and {second.shape[-2]}")
    _check.finite(first, second)
