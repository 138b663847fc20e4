"""Contrast of strokes and background, which decides whether a user's images are inverted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import metagan_fast as mgf
from metagan_fast.tasks.contrast import clear_contrast, contrast, evened, is_grey, is_opposite


def photographs(count: int = 5, size: int = 32) -> Tensor:
    """Return dark strokes on light, unevenly lit paper: a gradient and a vignette."""
    random = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    images = []
    for index in range(count):
        slope = torch.rand(2, generator=random) * 0.3
        paper = 0.5 + slope[0] * rows + slope[1] * columns - 0.2 * (rows**2 + columns**2)
        strokes = ((rows - 0.3 * columns * (index - 2)).abs() < 0.08) & (columns.abs() < 0.7)
        noise = 0.03 * torch.randn(size, size, generator=random)
        images.append(torch.where(strokes, paper - 0.9, paper) + noise)
    return torch.stack(images)[:, None].clamp(-1, 1)


def test_the_sign_is_that_of_the_strokes() -> None:
    images = photographs()
    assert (contrast(images) < 0).all() and (contrast(-images) > 0).all()
    assert (images.mean((1, 2, 3)) > images[:, 0, 0].mean(1)).any()  # a comparison of means with the border would err
    assert contrast(torch.zeros(2, 1, 1, 1)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("invert", [False, True])
def test_data_with_a_clear_background(invert: bool) -> None:
    usual = clear_contrast(mgf.tasks.load("glyphs", invert=invert).train)
    assert usual is not None and (usual < 0) == invert
    assert is_opposite(photographs(), usual) != invert
    assert is_opposite(-photographs(), usual) == invert


def test_data_without_a_clear_background() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(40) % 4
    colour = random.integers(0, 30, (40, 8, 8, 3), dtype=np.uint8)
    busy = random.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    glyphs = np.zeros((40, 8, 8), np.uint8)
    glyphs[:, 3:5, 2:6] = 255
    mixed = np.where(np.arange(40)[:, None, None] < 20, glyphs, 255 - glyphs)
    for images in (colour, busy, mixed, np.zeros_like(glyphs)):
        assert clear_contrast(mgf.tasks.from_arrays(images, labels).train) is None
    assert clear_contrast(mgf.tasks.from_arrays(glyphs, labels).train) == 2.0
    assert not is_opposite(photographs(), None)
    assert not is_opposite(photographs().expand(-1, 3, -1, -1), 2.0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_photographs_are_evened_out(sign: float) -> None:
    images = -sign * photographs()
    assert is_grey(images, sign) and not is_grey(images, None)
    found = sign * evened(images, sign)
    strokes = sign * images > (sign * images).flatten(1).quantile(0.95, dim=1)[:, None, None, None]
    assert found[strokes].mean() > 0.6 and found[~strokes].mean() < -0.85
    assert (sign * found).abs().max() <= 1 and not is_grey(sign * found, sign)


def test_drawings_of_the_package_are_not_grey() -> None:
    batch = mgf.tasks.load("glyphs").test.sample(tasks=8, shots=4)
    assert not any(is_grey(images, 1.0) for images in batch.support)
    blank = torch.zeros(1, 1, 3, 3)
    assert evened(blank, 1.0).unique().tolist() == [-1.0]
