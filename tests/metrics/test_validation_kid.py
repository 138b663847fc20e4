"""Validation KID: repeatable, and as computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from metagan_fast import metrics
from metagan_fast.metrics import FeatureExtractor
from metagan_fast.metrics.validation import ValidationKID
from striped_classes import Bars, learner


@pytest.fixture(scope="module")
def features() -> FeatureExtractor:
    return FeatureExtractor.train(Bars(range(0, 40, 3)), steps=40, batch_size=32)  # type: ignore[arg-type]


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
