"""Diversity, recognisability and few-shot accuracy against closed forms, loops and scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from torch import Tensor

from metagan_fast import metrics
from metagan_fast.metrics import recognition
from tolerances import tolerance

ROUNDING = tolerance("float64-rounding")


def clusters(counts: list[int], d: int, seed: int = 0, spread: float = 1.0) -> list[Tensor]:
    """Return features of classes around random centres, in one distribution for every seed."""
    centres = torch.randn(len(counts), d, generator=torch.Generator().manual_seed(1234), dtype=torch.float64)
    noise = torch.Generator().manual_seed(seed)
    return [
        centre + spread * torch.randn(count, d, generator=noise, dtype=torch.float64)
        for centre, count in zip(centres, counts, strict=True)
    ]


def joined(classes: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    labels = np.concatenate([np.full(len(part), index) for index, part in enumerate(classes)])
    return torch.cat(classes).numpy(), labels


@given(m=st.integers(2, 12), d=st.integers(1, 9), scale=st.floats(0.1, 10), seed=st.integers(0, 100))
def test_diversity_is_the_root_mean_square_of_standard_deviations(m: int, d: int, scale: float, seed: int) -> None:
    features = scale * np.random.default_rng(seed).normal(size=(3, m, d)) + 5
    actual = metrics.diversity(torch.from_numpy(features))
    deviations = features.std(axis=1, ddof=1)
    np.testing.assert_allclose(actual.numpy(), np.sqrt((deviations**2).mean(1)), rtol=100 * ROUNDING)
    assert (actual.numpy() >= deviations.mean(1) * (1 - ROUNDING)).all()


def test_diversity_has_the_features_unit_and_no_axes() -> None:
    features = torch.randn(20, 6).double()
    rotation = torch.linalg.qr(torch.randn(6, 6).double()).Q
    expected = 3 * float(metrics.diversity(features))
    assert float(metrics.diversity(3 * features @ rotation + 7)) == pytest.approx(expected, rel=10 * ROUNDING)


def test_diversity_of_copies_is_exactly_zero() -> None:
    assert metrics.diversity(torch.rand(4, 1, 30).expand(4, 11, 30) + 10).eq(0).all()


@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=6), d=st.integers(1, 5), seed=st.integers(0, 100))
def test_recognisability_equals_a_loop(counts: list[int], d: int, seed: int) -> None:
    samples, references = clusters(counts, d, seed), clusters(counts[::-1], d, seed + 1)
    actual = metrics.recognisability(samples, references)
    for own, part in enumerate(samples):
        recognised = 0
        for sample in part:
            distances = [math.dist(sample.tolist(), prototypes.mean(0).tolist()) for prototypes in references]
            recognised += distances.index(min(distances)) == own
        assert float(actual[own]) == pytest.approx(recognised / len(part), rel=ROUNDING)


def test_recognisability_equals_scikit_learn() -> None:
    samples, references = clusters([9] * 12, 5, seed=1), clusters([20] * 12, 5, seed=2)
    flat, labels = joined(samples)
    expected = (NearestCentroid().fit(*joined(references)).predict(flat) == labels).reshape(12, 9).mean(1)
    assert 0.2 < expected.mean() < 0.95
    np.testing.assert_allclose(metrics.recognisability(samples, references).numpy(), expected, rtol=ROUNDING)


def test_samples_of_another_class_are_not_recognised() -> None:
    references = clusters([8] * 5, 4, spread=0.01)
    assert metrics.recognisability(references, references).eq(1).all()
    assert metrics.recognisability(references[1:] + references[:1], references).eq(0).all()


def whitened(training: list[Tensor], others: list[Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return both sets by the documented formula, the labels and the weights of the training set."""
    flat, labels = joined(training)
    weights = np.concatenate([np.full(len(part), 1 / len(part)) for part in training])
    mean = np.average(flat, axis=0, weights=weights)
    covariance = np.cov(flat.T, aweights=weights, ddof=0)
    covariance = covariance + 0.1 * np.trace(covariance) / len(mean) * np.eye(len(mean))
    left, values, _ = np.linalg.svd(covariance)
    root = left @ np.diag(values**-0.5) @ left.T
    return (flat - mean) @ root, (joined(others)[0] - mean) @ root, labels, weights


@pytest.mark.parametrize("counts", [[1] * 7, [4] * 7, [3, 20, 5, 1, 9, 2, 11], [40] * 7])
def test_few_shot_accuracy_equals_scikit_learn(counts: list[int]) -> None:
    training, test = clusters(counts, 6, seed=1), clusters([60] * 7, 6, seed=2)
    inputs, test_inputs, labels, weights = whitened(training, test)
    model = LogisticRegression(C=10, tol=1e-10, max_iter=10_000).fit(inputs, labels, sample_weight=weights)
    expected = (model.predict(test_inputs) == joined(test)[1]).reshape(7, 60).mean(1)
    assert 0.3 < expected.mean() < 0.95
    actual = metrics.few_shot_accuracy(training, test).numpy()
    np.testing.assert_allclose(actual, expected, atol=1 / 60 + ROUNDING)  # one on the border a class
    assert abs(actual.mean() - expected.mean()) <= 3 / 420


@pytest.mark.parametrize("counts", [[2] * 5, [3, 20, 5, 1, 9]])
def test_regression_coefficients_equal_scikit_learn(counts: list[int]) -> None:
    inputs, _, labels, weights = whitened(clusters(counts, 6), clusters(counts, 6))
    model = LogisticRegression(C=10, tol=1e-10, max_iter=10_000).fit(inputs, labels, sample_weight=weights)
    tensors = (torch.from_numpy(array) for array in (inputs, labels, weights))
    actual = recognition._fit(*tensors, classes=5).numpy()
    bound = tolerance("logistic-solver") * np.abs(model.coef_).max()
    np.testing.assert_allclose(actual[:-1].T, model.coef_, atol=bound)
    biases = actual[-1] - actual[-1].mean()  # softmax is blind to a common one
    np.testing.assert_allclose(biases, model.intercept_ - model.intercept_.mean(), atol=bound)


def test_few_shot_accuracy_does_not_depend_on_unit_axes_or_repetition() -> None:
    training, test = clusters([5, 3, 8, 4], 6, seed=1), clusters([100] * 4, 6, seed=2)
    expected = metrics.few_shot_accuracy(training, test)
    rotation = torch.linalg.qr(torch.randn(6, 6).double()).Q

    def moved(classes: list[Tensor]) -> list[Tensor]:
        return [1e4 * part @ rotation + 50 for part in classes]

    repeated = [part.repeat(index + 1, 1) for index, part in enumerate(training)]
    for found in (metrics.few_shot_accuracy(moved(training), moved(test)), metrics.few_shot_accuracy(repeated, test)):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=0.01 + ROUNDING)  # one on the border


def test_more_training_features_help_and_the_wrong_ones_harm() -> None:
    test = clusters([50] * 20, 10, seed=3)
    few, many = clusters([2] * 20, 10, seed=4), clusters([40] * 20, 10, seed=4)
    accuracies = [float(metrics.few_shot_accuracy(part, test).mean()) for part in (many[1:] + many[:1], few, many)]
    assert accuracies == sorted(accuracies) and accuracies[0] < 0.05 and accuracies[2] - accuracies[1] > 0.05


def test_few_shot_accuracy_of_equal_features_is_chance() -> None:
    same = [torch.full((3, 4), 0.1)] * 5
    assert float(metrics.few_shot_accuracy(same, same).mean()) == pytest.approx(1 / 5)


def test_accuracy_is_the_same_on_every_call_and_any_number_of_threads(set_threads: Callable[[int], None]) -> None:
    training, test = clusters([9] * 30, 20, seed=1, spread=2), clusters([20] * 30, 20, seed=2, spread=2)
    first = metrics.few_shot_accuracy(training, test)
    assert metrics.few_shot_accuracy(training, test).equal(first)
    with torch.inference_mode():
        assert metrics.few_shot_accuracy([part.clone() for part in training], test).equal(first)
    set_threads(2)
    assert abs(metrics.few_shot_accuracy(training, test) - first).max() < 1 / 20 + ROUNDING  # one on the border


CLASSIFIERS = [metrics.recognisability, metrics.few_shot_accuracy]


@pytest.mark.parametrize("classify", CLASSIFIERS)
def test_stacked_classes_are_a_sequence(classify: Any) -> None:
    first, second = torch.randn(4, 6, 3), torch.randn(4, 5, 3)
    found = classify(first, second)
    assert found.shape == (4,) and found.dtype == torch.float64
    assert found.equal(classify(list(first), list(second)))


@pytest.mark.parametrize("classify", CLASSIFIERS)
def test_bad_classes_are_refused(classify: Any) -> None:
    good = list(torch.randn(3, 4, 2))
    with pytest.raises(ValueError, match="got 3 and 2 classes"):
        classify(good, good[:2])
    with pytest.raises(ValueError, match="got 0 and 0 classes"):
        classify([], [])
    with pytest.raises(ValueError, match=r"\[at least 1, 2\] of each class, got \[4, 1\]"):
        classify(good, [*good[:2], torch.zeros(4, 1)])
    with pytest.raises(ValueError, match=r"of each class, got \[0, 2\]"):
        classify(good, [*good[:2], torch.zeros(0, 2)])
    with pytest.raises(ValueError, match="finite features"):
        classify([*good[:2], torch.full((4, 2), math.nan)], good)


def test_diversity_needs_two_finite_samples() -> None:
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        metrics.diversity(torch.zeros(3, 1, 4))
    with pytest.raises(ValueError, match="finite features"):
        metrics.diversity(torch.tensor([[1.0], [math.inf]]))
