"""Density and coverage of generated images: fidelity and diversity by nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils import coerce
from . import _check


def density_coverage(samples: Tensor, references: Tensor, *, nearest: int = 5) -> tuple[Tensor, Tensor]:
    """Return density and coverage of samples among references (Naeem et al. 2020, arXiv:2002.09797).

    A reference's ball B_i reaches to its k-th nearest other reference, border excluded as in the authors' code. Density
    is `1 / (k m) sum_j sum_i [y_j in B_i]` over samples y_j, coverage `1 / n sum_i [some y_j in B_i]`. Of n references
    and m samples from one distribution, density is 1 on average, coverage
    `1 - (n - 1)! (n + m - k - 1)! / ((n - k - 1)! (n + m - 1)!)`.

    Args:
        samples: features `[..., m, d]`, m at least 1; computed in float64.
        references: features `[..., n, d]`, n greater than `nearest`. Where more than `nearest` are equal, their balls
            are empty.
        nearest: k.

    Returns:
        Density, of at least 0 and at most n / `nearest`, and coverage, from 0 to 1; each `[...]`, float64.

    Raises:
        ValueError: too few references, no sample, disagreeing features, NaN or infinite ones.
    """
    nearest = coerce.count("nearest", nearest, least=1)
    _check.same_kind(samples, references)
    if references.shape[-2] <= nearest or not samples.shape[-2]:
        raise ValueError(
            f"expected a sample and at least {nearest + 1} references (nearest={nearest}), "
            f"got {samples.shape[-2]} and {references.shape[-2]}"
        )
    _check.finite(samples, references)
    samples, references = samples.double(), references.double()
    # The smallest distance is a reference's own, 0, so the kth neighbour has the (k + 1)th smallest.
    radii = _distances(references, references).kthvalue(nearest + 1).values
    held = _distances(references, samples) < radii.unsqueeze(-1)
    density = held.sum(-2).double().mean(-1) / nearest
    return density, held.any(-1).double().mean(-1)


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Return distances from exact differences: the inner-product expansion would round those of near copies."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
