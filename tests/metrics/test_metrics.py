"""Metrics against closed forms and double loops; the evaluation against methods whose order is known."""

from __future__ import annotations

import json
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
from torch import Tensor, nn

import metagan_fast as mgf
from metagan_fast import checkpoint, metrics
from metagan_fast.metrics import FeatureExtractor
from metagan_fast.metrics.evaluation import ValidationKID
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


class Bars:
    """Classes of 8x8 images: bars at one height, one period; each image has its own noise."""

    def __init__(self, classes: range, count: int = 24) -> None:
        self.classes = tuple(f"bars-{index}" for index in classes)
        self.counts = (count,) * len(classes)
        self._images = {}
        for name, index in zip(self.classes, classes, strict=True):
            noise = torch.Generator().manual_seed(index)
            image = torch.full((8, 8), 20.0)
            image[index % 8] = 220.0
            image[:, index // 8 % 8] = 220.0
            jitter = torch.randint(-20, 21, (count, 1, 8, 8), generator=noise)
            self._images[name] = (image + jitter).clamp(0, 255).to(torch.uint8)

    def images(self, name: str) -> Tensor:
        return self._images[name]


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


class Brightness(nn.Module):
    """A generator of flat images, which can learn a class's brightness alone."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor([start]))
        self.spread = nn.Parameter(torch.tensor([0.05]))

    def forward(self, latents: Tensor) -> Tensor:
        return torch.tanh(self.level + self.spread * latents[:, :1])[:, :, None, None].expand(-1, 1, 8, 8)


def learner(start: float = 0.0, lr: float = 0.05) -> mgf.MetaGAN:
    torch.manual_seed(0)
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    return mgf.MetaGAN(
        Brightness(start), discriminator, latent_dim=1, loss="wgan-gp", inner=mgf.InnerLoop(lr=lr, steps=8)
    )


def test_evaluation(features: FeatureExtractor) -> None:
    held_out = Bars(range(1, 40, 6))
    trained = learner()
    before = trained.generator_parameters.clone()
    found = metrics.evaluate(
        trained,
        held_out,
        features,
        random=learner(2.0),
        samples=16,
        draws=2,
        most_tasks=3,  # type: ignore[arg-type]
    )
    assert torch.equal(trained.generator_parameters, before) and trained.step == 0
    assert list(found.scores) == ["adapted", "unadapted", "random", "copies", "real"]
    assert found.classes == held_out.classes
    scores = found.scores
    assert abs(scores["real"].mean_kid) < 0.1 * scores["random"].mean_kid
    assert scores["real"].mean_kid < scores["copies"].mean_kid < scores["random"].mean_kid
    assert scores["copies"].nearest_feature == 0 and scores["copies"].nearest_pixel == 0
    assert scores["real"].nearest_pixel > 0.01
    for name in ("unadapted", "random"):
        row = found.differences[f"adapted - {name}"]
        assert row.mean == pytest.approx(scores["adapted"].mean_kid - scores[name].mean_kid)
        assert row.low <= row.mean <= row.high
    assert found.settings["features"] == features.digest
    assert json.loads(json.dumps(found.to_dict()))["scores"]["adapted"]["kid"] == scores["adapted"].mean_kid
    assert found.table().count("\n") == 9 and "adapted - random" in found.table()
    assert found.class_table().count("\n") == len(held_out.classes)


def test_evaluation_does_not_depend_on_how_many_tasks_run_at_once(features: FeatureExtractor) -> None:
    found = [
        metrics.evaluate(learner(), Bars(range(5)), features, samples=6, draws=2, most_tasks=most)  # type: ignore[arg-type]
        for most in (2, 5)
    ]
    for name, scores in found[0].scores.items():
        assert scores.kid == pytest.approx(found[1].scores[name].kid, rel=1e-4)


def test_evaluation_names_a_class_on_which_the_gan_diverged(features: FeatureExtractor) -> None:
    with pytest.raises(FloatingPointError, match=r"adapted GAN makes images .* of 2 of 2 classes, 'bars-1' among them"):
        metrics.evaluate(learner(float("nan")), Bars(range(1, 3)), features, draws=1)  # type: ignore[arg-type]


def test_validation_repeats_and_tells_learners_apart(features: FeatureExtractor) -> None:
    kid = ValidationKID(Bars(range(1, 40, 6)), features, shots=4, samples=16)  # type: ignore[arg-type]
    first = learner()
    value = kid(first)
    first.step = 7  # other noise in training, the same here
    assert kid(first) == value
    again = ValidationKID(Bars(range(1, 40, 6)), features, shots=4, samples=16)  # type: ignore[arg-type]
    assert again(learner()) == value
    assert kid(learner(2.0)) != value
    assert math.isnan(kid(learner(float("nan"))))


def test_validation_compares_with_all_other_images_of_a_class(features: FeatureExtractor) -> None:
    """KID by hand, where the generator makes one image whatever the latent and adaptation."""
    bars = Bars(range(1, 3), count=9)
    fixed = learner(lr=0.0)
    with torch.no_grad():
        fixed.generator.spread.zero_()
    found = ValidationKID(bars, features, shots=4, samples=3)(fixed)  # type: ignore[arg-type]
    flat = features(torch.zeros(3, 1, 8, 8))
    by_class = []
    for index, name in enumerate(bars.classes):
        order = torch.randperm(9, generator=torch.Generator().manual_seed(index))
        real = features(bars.images(name)[order[4:]].float() / 127.5 - 1)
        by_class.append(metrics.kernel_distance(flat, real).item())
    assert found == pytest.approx(sum(by_class) / 2, rel=1e-6)


def test_validation_needs_classes_of_enough_images(features: FeatureExtractor) -> None:
    with pytest.raises(ValueError, match=r"validation classes of at least 6 images \(4 shots, 2 references\)"):
        ValidationKID(Bars(range(3), count=5), features, shots=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("distance", [metrics.kernel_distance, metrics.frechet_distance])
def test_distances_need_finite_features(distance: Any) -> None:
    bad = torch.randn(4, 3).index_fill(0, torch.tensor([1]), float("nan"))
    for pair in ((bad, torch.randn(4, 3)), (torch.randn(4, 3), bad)):
        with pytest.raises(ValueError, match="expected finite features"):
            distance(*pair)


def test_evaluation_needs_enough_images(features: FeatureExtractor) -> None:
    with pytest.raises(ValueError, match="at least 8 images"):
        metrics.evaluate(learner(), Bars(range(3), count=7), features)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="samples to be at least 2"):
        metrics.evaluate(learner(), Bars(range(3)), features, samples=1)  # type: ignore[arg-type]
