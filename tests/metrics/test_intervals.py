"""Bootstrap intervals: coverage of known values, paired resampling, limits of many resamples."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metagan_fast import metrics
from tolerances import tolerance

ROUNDING = tolerance("float64-rounding")


def test_bootstrap_interval() -> None:
    """The interval covers a known mean about as often as its level, and is repeatable."""
    assert metrics.bootstrap_interval(torch.full((7,), 2.5)) == (2.5, 2.5)
    values = torch.randn(40).double()
    assert metrics.bootstrap_interval(values, seed=3) == metrics.bootstrap_interval(values, seed=3)
    covered = 0
    for seed in range(200):
        low, high = metrics.bootstrap_interval(torch.randn(40).double() + 1, resamples=500, seed=seed)
        covered += low <= 1 <= high
    assert 0.88 <= covered / 200 <= 0.99
    low, high = metrics.bootstrap_interval(values)
    normal = 1.96 * float(values.std(unbiased=False)) / math.sqrt(40)  # the limit of many resamples
    assert (high - low) / 2 == pytest.approx(normal, rel=0.1)


@given(n=st.integers(1, 20), factor=st.floats(-3, 3), seed=st.integers(0, 100))
def test_the_ratio_of_proportional_classes_has_no_spread(n: int, factor: float, seed: int) -> None:
    """Classes are resampled in pairs: however much they differ, each resample has the same ratio."""
    denominators = torch.rand(n, generator=torch.Generator().manual_seed(seed)) * 100 + 0.1
    found = metrics.ratio_interval(factor * denominators.double(), denominators, resamples=50, seed=seed)
    assert found == pytest.approx((factor,) * 3, rel=10 * ROUNDING, abs=ROUNDING)


def test_ratio_to_ones_is_a_mean() -> None:
    values = torch.randn(30).double()
    ratio, low, high = metrics.ratio_interval(values, torch.ones(30), confidence=0.9, resamples=300, seed=4)
    assert ratio == pytest.approx(float(values.mean()), rel=ROUNDING)
    expected = metrics.bootstrap_interval(values, confidence=0.9, resamples=300, seed=4)
    assert (low, high) == pytest.approx(expected, rel=ROUNDING)


def test_ratio_interval_has_the_width_of_the_delta_method() -> None:
    """Var(a / b) is about Var(a - r b) / (n mean(b)^2)."""
    denominators = torch.rand(200).double() + 1
    numerators = 2 * denominators + torch.randn(200).double()
    ratio, low, high = metrics.ratio_interval(numerators, denominators)
    assert ratio == pytest.approx(float(numerators.mean() / denominators.mean()), rel=ROUNDING)
    residuals = (numerators - ratio * denominators).std(unbiased=False)
    assert (high - low) / 2 == pytest.approx(1.96 * float(residuals / denominators.mean()) / math.sqrt(200), rel=0.1)


def test_ratio_interval_refuses_bad_classes() -> None:
    with pytest.raises(ValueError, match="numerator and a denominator of each class"):
        metrics.ratio_interval(torch.ones(3), torch.ones(4))
    with pytest.raises(ValueError, match="numerator and a denominator of each class"):
        metrics.ratio_interval(torch.ones(0), torch.ones(0))
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"expected positive denominators, got {bad}"):
            metrics.ratio_interval(torch.ones(2), torch.tensor([1.0, bad]))
    with pytest.raises(ValueError, match="confidence between 0 and 1"):
        metrics.ratio_interval(torch.ones(2), torch.ones(2), confidence=1.0)
