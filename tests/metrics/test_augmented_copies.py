"""Augmentations against SciPy's affine transform, and their tuning on scores with a known minimum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st

from metagan_fast import metrics
from metagan_fast.metrics import Augmentation
from tolerances import tolerance

ROUNDING = tolerance("float64-rounding")


def moved_by_scipy(images: np.ndarray, augmentation: Augmentation, draws: np.ndarray) -> np.ndarray:
    """Scale and rotate about the centre, then shift: SciPy takes the inverse, from output to input (row, column)."""
    order = {"nearest": 0, "bilinear": 1}[augmentation.interpolation]
    centre = (np.array(images.shape[-2:]) - 1) / 2
    result = np.empty_like(images)
    for image, (right, down, turn, growth), target in zip(images, draws, result, strict=True):
        angle = math.radians(augmentation.rotation * turn)
        cosine, sine = math.cos(angle), math.sin(angle)
        forward = (1 + augmentation.scale * growth) * np.array([[cosine, sine], [-sine, cosine]])
        inverse = np.linalg.inv(forward)
        offset = centre - inverse @ (centre + augmentation.shift * np.array([down, right]))
        for channel, out in zip(image, target, strict=True):
            scipy.ndimage.affine_transform(channel, inverse, offset, output=out, order=order, mode="nearest")
    return result


@given(
    shape=st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 12)] * 2),
    shift=st.floats(0, 5),
    rotation=st.floats(0, 180),
    scale=st.floats(0, 0.9),
    interpolation=st.sampled_from(["bilinear", "nearest"]),
    seed=st.integers(0, 2**64 - 1),
)
def test_images_move_as_scipy_moves_them(
    shape: tuple[int, ...], shift: float, rotation: float, scale: float, interpolation: str, seed: int
) -> None:
    augmentation = Augmentation(shift, rotation, scale, interpolation)
    images = torch.rand(shape, dtype=torch.float64) * 2 - 1
    draws = 2 * torch.rand(shape[0], 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    expected = moved_by_scipy(images.numpy(), augmentation, draws.numpy())
    np.testing.assert_allclose(augmentation(images, seed).numpy(), expected, atol=1e3 * ROUNDING)


@given(height=st.integers(1, 30), width=st.integers(1, 30), seed=st.integers(0, 100))
def test_no_augmentation_copies(height: int, width: int, seed: int) -> None:
    images = torch.rand(2, 3, height, width)
    assert Augmentation(interpolation="nearest")(images, seed).equal(images)
    copies = Augmentation()(images, seed)
    assert copies.dtype == images.dtype
    assert torch.allclose(copies, images, rtol=tolerance("float32-rounding"), atol=100 * ROUNDING)


def test_each_image_has_a_draw_of_its_own_and_seeds_repeat() -> None:
    images = torch.rand(1, 1, 16, 16).expand(5, 1, 16, 16)
    for augmentation in (Augmentation(shift=2), Augmentation(rotation=10), Augmentation(scale=0.1)):
        found = augmentation(images, seed=3)
        assert len(found.flatten(1).unique(dim=0)) == 5
        assert found.equal(augmentation(images, seed=3)) and not found.equal(augmentation(images, seed=4))
        assert found.amin() >= images.amin() and found.amax() <= images.amax()


@pytest.mark.parametrize(
    "fields",
    [
        {"shift": -1},
        {"shift": math.inf},
        {"rotation": math.nan},
        {"scale": -0.1},
        {"scale": 1},
        {"shift": "2"},
        {"interpolation": "cubic"},
    ],
)
def test_bad_strengths_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        Augmentation(**fields)


def test_bad_images_are_refused() -> None:
    for images in (torch.zeros(1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="expected floating-point images"):
            Augmentation()(images, 0)


GRID = ((0.0, 1.0, 2.0, 4.0), (0.0, 5.0, 10.0, 20.0, 30.0), (0.0, 0.05, 0.1, 0.2))


@given(
    minimum=st.tuples(*map(st.sampled_from, GRID)),
    weights=st.tuples(*[st.floats(0.1, 10)] * 3),
    sharp=st.booleans(),
)
def test_tuning_finds_the_minimum_of_a_quadratic(
    minimum: tuple[float, float, float], weights: tuple[float, float, float], sharp: bool
) -> None:
    tried = []

    def score(augmentation: Augmentation) -> float:
        tried.append(augmentation)
        found = (augmentation.shift, augmentation.rotation, augmentation.scale)
        distance = sum(weight * (x - y) ** 2 for weight, x, y in zip(weights, found, minimum, strict=True))
        return distance - 7 + (sharp != (augmentation.interpolation == "nearest"))

    assert metrics.tune(score) == Augmentation(*minimum, "nearest" if sharp else "bilinear")
    assert len(tried) == len(set(tried)) == 12


def test_tuning_takes_the_weakest_of_equals_and_refuses_nan() -> None:
    assert metrics.tune(lambda augmentation: 1.0) == Augmentation()
    assert metrics.tune(lambda augmentation: torch.tensor(-augmentation.shift)) == Augmentation(shift=4)  # type: ignore
    with pytest.raises(ValueError, match="score that is a number, got NaN"):
        metrics.tune(lambda augmentation: math.nan)
