"""Metrics against closed forms and double loops; the evaluation against methods whose order is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
import torchmetrics.image.kid
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from metagan_fast import checkpoint, metrics
from metagan_fast.metrics import FeatureExtractor
from striped_classes import Bars
from tolerances import tolerance

ROUNDING = tolerance("float64-rounding")


def brute_force_kid(first: np.ndarray, second: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    m, n = len(first), len(second)
    within_first = sum(kernel(first[i], first[j]) for i in range(m) for j in range(m) if i != j)
    within_second = sum(kernel(second[i], second[j]) for i in range(n) for j in range(n) if i != j)
    between = sum(kernel(x, y) for x in first for y in second)
    return within_first / (m * (m - 1)) + within_second / (n * (n - 1)) - 2 * between / (m * n)


@given(m=st.integers(2, 5), n=st.integers(2, 5), d=st.integers(1, 4), seed=st.integers(0, 100))
def test_kid_equals_a_double_loop(m: int, n: int, d: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    first, second = generator.normal(size=(m, d)), generator.normal(size=(n, d)) + 0.5
    actual = metrics.kernel_distance(torch.from_numpy(first), torch.from_numpy(second))
    expected = brute_force_kid(first, second)
    assert float(actual) == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)


@given(n=st.integers(2, 30), d=st.integers(1, 20), shift=st.floats(-2, 2), seed=st.integers(0, 100))
def test_kid_equals_torchmetrics(n: int, d: int, shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    second = second + shift
    expected = torchmetrics.image.kid.poly_mmd(first, second, degree=3, gamma=1 / d, coef=1)
    largest = float((torch.cat([first, second]).square().sum(1).max() / d + 1) ** 3)  # the differences cancel
    assert metrics.kernel_distance(first, second).item() == pytest.approx(expected.item(), abs=ROUNDING * largest)


def test_kid_is_batched_and_accumulates_in_float64() -> None:
    first, second = torch.randn(3, 6, 4), torch.randn(3, 5, 4)
    actual = metrics.kernel_distance(first, second)
    assert actual.shape == (3,) and actual.dtype == torch.float64
    for row in range(3):
        assert actual[row] == metrics.kernel_distance(first[row].double(), second[row].double())


def test_kid_is_unbiased() -> None:
    """The mean over many draws from one distribution is 0, for sets of any size."""
    draws = metrics.kernel_distance(torch.randn(4000, 3, 2), torch.randn(4000, 8, 2))
    assert abs(draws.mean()) < 4 * draws.std() / math.sqrt(len(draws))
    shifted = metrics.kernel_distance(torch.randn(4000, 3, 2), torch.randn(4000, 8, 2) + 1)
    assert shifted.mean() > 20 * shifted.std() / math.sqrt(len(shifted))


def with_moments(mean: Tensor, covariance: Tensor, count: int) -> Tensor:
    """Return a set whose sample mean and covariance are exactly these."""
    white = torch.randn(count, len(mean), dtype=torch.float64)
    white -= white.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(white.T)), white.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_fid_of_commuting_gaussians() -> None:
    """|m1 - m2|^2 + sum (s1 - s2)^2 over the common axes."""
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    spread1, spread2 = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 2.0, 0.5]).double()
    mean1, mean2 = torch.zeros(3).double(), torch.tensor([1.0, -2.0, 0.0]).double()
    first = with_moments(mean1, rotation @ torch.diag(spread1**2) @ rotation.T, 50)
    second = with_moments(mean2, rotation @ torch.diag(spread2**2) @ rotation.T, 80)
    expected = 5 + float(((spread1 - spread2) ** 2).sum())
    assert metrics.frechet_distance(first, second) == pytest.approx(expected, rel=1e3 * ROUNDING)


def test_fid_of_other_gaussians_equals_scipy() -> None:
    first, second = torch.randn(40, 5).double() @ torch.randn(5, 5).double(), torch.randn(30, 5).double() + 1
    covariances = [np.cov(features.numpy().T) for features in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    shift = float((first.mean(0) - second.mean(0)).square().sum())
    expected = shift + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert metrics.frechet_distance(first, second) == pytest.approx(expected, rel=1e3 * ROUNDING)


def test_fid_of_fewer_images_than_features_is_finite_and_zero_for_equal_sets() -> None:
    few = torch.randn(5, 20)
    assert metrics.frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("distance", [metrics.kernel_distance, metrics.frechet_distance])
def test_sets_must_match_and_hold_two(distance: object) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        distance(torch.zeros(1, 3), torch.zeros(5, 3))  # type: ignore[operator]
    with pytest.raises(ValueError, match="same kind"):
        distance(torch.zeros(5, 4), torch.zeros(5, 3))  # type: ignore[operator]


def test_nearest_distance() -> None:
    support = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    samples = torch.tensor([[3.0, 4.0], [0.0, 1.0], [3.0, 2.0]])
    expected = torch.tensor([0.0, 1.0, 2.0]).double() / math.sqrt(2)
    assert torch.allclose(metrics.nearest_distance(samples, support), expected, rtol=ROUNDING)


def test_nearest_distance_of_a_copy_is_exactly_zero() -> None:
    images = torch.rand(6, 1024) + 10
    assert metrics.nearest_distance(images[:2], images).eq(0).all()


@pytest.fixture(scope="module")
def features() -> FeatureExtractor:
    return FeatureExtractor.train(Bars(range(0, 40, 3)), steps=40, batch_size=32)  # type: ignore[arg-type]


def test_features_are_deterministic_and_leave_the_global_generator(features: FeatureExtractor) -> None:
    before = torch.get_rng_state()
    again = FeatureExtractor.train(Bars(range(0, 40, 3)), steps=40, batch_size=32)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)
    assert again.digest == features.digest
    other = FeatureExtractor.train(Bars(range(0, 40, 3)), steps=40, batch_size=32, seed=1)  # type: ignore[arg-type]
    assert other.digest != features.digest


def test_features_learn_and_are_standardised(features: FeatureExtractor) -> None:
    assert features.record["training_accuracy"] > 0.5
    pool = Bars(range(0, 40, 3))
    images = torch.cat([pool.images(name) for name in pool.classes]).float() / 127.5 - 1
    found = features(images)
    assert found.mean(0).abs().max() < 1e-3
    assert found.std(0).max() < 1.001


def test_features_take_any_leading_dimensions(features: FeatureExtractor) -> None:
    images = torch.rand(2, 3, 1, 8, 8) * 2 - 1
    assert torch.allclose(features(images)[1, 2], features(images[1, 2]), atol=1e-5)
    with pytest.raises(ValueError, match=r"expected images \[1, 8, 8\], got \[1, 16, 16\]"):
        features(torch.zeros(2, 1, 16, 16))


def test_features_survive_a_file(features: FeatureExtractor, tmp_path: Path) -> None:
    features.save(tmp_path / "features.safetensors")
    loaded = FeatureExtractor.load(tmp_path / "features.safetensors")
    assert (loaded.digest, loaded.record) == (features.digest, features.record)
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    assert torch.equal(loaded(images), features(images))
    checkpoint.write(tmp_path / "other", {"x": torch.zeros(1)}, {})
    with pytest.raises(checkpoint.CheckpointError, match="'features' is missing"):
        FeatureExtractor.load(tmp_path / "other")


@pytest.mark.parametrize("objective", ["classifier", "prototype"])
@pytest.mark.parametrize("shape", [(3, 5, 9), (1, 64, 64), (1, 1, 2)])
def test_features_of_odd_and_large_images(shape: tuple[int, int, int], objective: str) -> None:
    class Noise:
        classes = ("a", "b")

        def images(self, name: str) -> Tensor:
            return torch.randint(0, 256, (8, *shape), dtype=torch.uint8)

    features = FeatureExtractor.train(Noise(), objective, steps=2, batch_size=4)  # type: ignore[arg-type]
    assert features(torch.zeros(2, *shape)).isfinite().all()


@pytest.mark.parametrize("distance", [metrics.kernel_distance, metrics.frechet_distance])
def test_distances_need_finite_features(distance: Any) -> None:
    bad = torch.randn(4, 3).index_fill(0, torch.tensor([1]), float("nan"))
    for pair in ((bad, torch.randn(4, 3)), (torch.randn(4, 3), bad)):
        with pytest.raises(ValueError, match="expected finite features"):
            distance(*pair)
