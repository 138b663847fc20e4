"""Density and coverage against the authors' package, closed forms and expectations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prdc import compute_prdc

from metagan_fast import metrics
from tolerances import tolerance

ROUNDING = tolerance("float64-rounding")


@given(
    nearest=st.integers(1, 5),
    m=st.integers(2, 30),
    n=st.integers(2, 20),
    d=st.integers(1, 8),
    shift=st.floats(0, 2),
    seed=st.integers(0, 100),
)
def test_density_and_coverage_equal_prdc(nearest: int, m: int, n: int, d: int, shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(m + nearest, d, generator=generator, dtype=torch.float64) + shift
    references = torch.randn(n + nearest, d, generator=generator, dtype=torch.float64)
    density, coverage = metrics.density_coverage(samples, references, nearest=nearest)
    expected = compute_prdc(references.numpy(), samples.numpy(), nearest)
    assert float(density) == pytest.approx(expected["density"], rel=ROUNDING)
    assert float(coverage) == pytest.approx(expected["coverage"], rel=ROUNDING)


@given(nearest=st.integers(1, 6), more=st.integers(1, 10), d=st.integers(1, 4), seed=st.integers(0, 100))
def test_all_references_as_samples_have_density_and_coverage_1(nearest: int, more: int, d: int, seed: int) -> None:
    """The open ball of each holds itself and nearest - 1 others."""
    references = torch.randn(nearest + more, d, generator=torch.Generator().manual_seed(seed))
    density, coverage = metrics.density_coverage(references, references, nearest=nearest)
    assert float(density) == pytest.approx(1, rel=ROUNDING)
    assert float(coverage) == 1


def test_numbers_on_a_line() -> None:
    """References 0, 1, 3, 7 with radii 1, 1, 2, 4, borders excluded."""
    references = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    samples = torch.tensor([[0.5], [1.0], [4.0], [5.0], [11.0]])
    held = torch.tensor([2, 1, 2, 1, 0]).double()  # [0, 1], [1], [3, 7], [7], none
    density, coverage = metrics.density_coverage(samples, references, nearest=1)
    assert (density, coverage) == (held.mean(), 1.0)
    density, coverage = metrics.density_coverage(samples[:1], references, nearest=1)
    assert (density, coverage) == (2.0, 0.5)


def test_copies_far_from_the_origin_are_found() -> None:
    """The inner-product expansion would round distances of 1e-4 between vectors of length 1e5 to 0."""
    references = torch.randn(9, 4).double() * 1e-4 + 1e5
    density, coverage = metrics.density_coverage(references, references)
    assert float(density) == pytest.approx(1, rel=ROUNDING) and float(coverage) == 1


def test_expectations_under_one_distribution() -> None:
    m, n, k = 12, 9, 3
    density, coverage = metrics.density_coverage(torch.randn(3000, m, 2), torch.randn(3000, n, 2), nearest=k)
    assert density.shape == coverage.shape == (3000,) and density.dtype == coverage.dtype == torch.float64
    expected = 1 - math.comb(n - 1, k) / math.comb(n + m - 1, k)
    assert abs(density.mean() - 1) < 4 * density.std() / math.sqrt(3000)
    assert abs(coverage.mean() - expected) < 4 * coverage.std() / math.sqrt(3000)


def test_stacked_classes_are_apart() -> None:
    samples, references = torch.randn(2, 3, 10, 4), torch.randn(2, 3, 7, 4)
    density, coverage = metrics.density_coverage(samples, references)
    for index in ((0, 0), (1, 2)):
        alone = metrics.density_coverage(samples[index], references[index])
        assert (density[index], coverage[index]) == alone


def test_bad_sets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 6 references \(nearest=5\), got 3 and 5"):
        metrics.density_coverage(torch.zeros(3, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="expected a sample"):
        metrics.density_coverage(torch.zeros(0, 2), torch.zeros(6, 2))
    with pytest.raises(ValueError, match="same kind"):
        metrics.density_coverage(torch.zeros(3, 3), torch.zeros(6, 2))
    with pytest.raises(ValueError, match="nearest"):
        metrics.density_coverage(torch.zeros(3, 2), torch.zeros(6, 2), nearest=0)
    bad = torch.randn(6, 2).index_fill(0, torch.tensor([1]), math.inf)
    for pair in ((bad, torch.randn(6, 2)), (torch.randn(6, 2), bad)):
        with pytest.raises(ValueError, match="finite features"):
            metrics.density_coverage(*pair)
