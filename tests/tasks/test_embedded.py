"""The data sets inside the package."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest
import torch

from metagan_fast import tasks
from metagan_fast.tasks import embedded

# Digest of load_digits().images as uint8, sorted by target (stably), in scikit-learn 1.9.1.
DIGITS_HASH = "3c5ac39e561738e0c959930a99bd11e4fc9f7944ff26898fa795b4e4644f34b4"
PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def glyphs() -> tasks.Tasks:
    return tasks.load("glyphs-latin")


def everything(loaded: tasks.Tasks) -> dict[str, torch.Tensor]:
    return {name: part.images(name) for part in map(loaded.__getattribute__, PARTS) for name in part.classes}


def test_notices() -> None:
    notice = (embedded.FOLDER / "LICENSE.glyphs-latin.txt").read_text()
    assert "Brian Kent" in notice and "Yes, you can redistribute any of my fonts" in notice
    assert "scikit-learn developers" in (embedded.FOLDER / "LICENSE.digits.txt").read_text()


def test_glyphs_are_many_classes_of_many_drawings(glyphs: tasks.Tasks) -> None:
    assert glyphs.image_shape == (1, 32, 32)
    images = everything(glyphs)
    assert len(images) == 69
    assert {*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *"123456789"} <= set(images)
    assert not {*"0cosvwxz"} & set(images)  # drawn like O, C, S, ...
    assert all(60 <= len(drawings) <= 150 for drawings in images.values())
    assert [len(getattr(glyphs, part)) for part in PARTS] == [48, 7, 14]


def test_glyphs_are_white_on_black_centred_and_not_blank(glyphs: tasks.Tasks) -> None:
    pixels = torch.cat(list(everything(glyphs).values()))[:, 0]
    assert torch.equal(pixels.unique(), torch.arange(0, 256, 17, dtype=torch.uint8))  # 16 levels, all of them used
    border = torch.cat([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], 1)
    assert border.float().mean() < 0.02 * 255  # the paper is black
    ink = pixels.float().mean((1, 2)) / 255
    assert ink.min() > 0.01 and ink.max() < 0.9
    for rows_or_columns in (pixels.amax(2), pixels.amax(1)):
        inked = rows_or_columns > 0
        before, after = inked.int().argmax(1), inked.flip(1).int().argmax(1)
        assert (before - after).abs().max() <= 2  # as wide a margin on either side
    assert (pixels.amax(2) > 0).sum(1).float().median() >= 24


def test_glyphs_have_no_duplicates_within_a_class(glyphs: tasks.Tasks) -> None:
    for name, drawings in everything(glyphs).items():
        assert len({drawing.numpy().tobytes() for drawing in drawings}) == len(drawings), name


def test_glyphs_of_a_class_are_alike(glyphs: tasks.Tasks) -> None:
    """Nearest class means of half of the drawings classify most of the other half: chance is one in 69."""
    images = everything(glyphs)
    means = torch.stack([drawings[::2].float().mean(0).flatten() for drawings in images.values()])
    hits, total = 0, 0
    for index, drawings in enumerate(images.values()):
        nearest = torch.cdist(drawings[1::2].float().flatten(1), means).argmin(1)
        hits += int((nearest == index).sum())
        total += len(nearest)
    assert hits / total > 0.4


def test_glyphs_load_quickly(glyphs: tasks.Tasks) -> None:
    start = time.process_time()
    embedded.read_glyphs_latin()
    assert time.process_time() - start < 0.8  # 0.03 s on an idle machine


def test_packing_keeps_sixteen_levels() -> None:
    levels = np.arange(16, dtype=np.uint8).reshape(1, 2, 8) * 17
    assert np.array_equal(embedded.unpack(embedded.pack(levels), 2, 8), levels)
    noise = np.random.default_rng(0).integers(0, 256, (3, 6, 4), dtype=np.uint8)
    restored = embedded.unpack(embedded.pack(noise), 6, 4)
    assert np.abs(restored.astype(int) - noise).max() <= 8


def test_digits_are_scikit_learns() -> None:
    loaded = tasks.load("digits")
    images = everything(loaded)
    assert sorted(images) == list("0123456789")
    assert loaded.image_shape == (1, 8, 8)
    assert sum(map(len, images.values())) == 1797
    assert [len(getattr(loaded, part)) for part in PARTS] == [7, 1, 2]
    levels = [np.rint(images[digit][:, 0].numpy() * (16 / 255)).astype(np.uint8) for digit in "0123456789"]
    assert hashlib.sha256(np.concatenate(levels).tobytes()).hexdigest() == DIGITS_HASH


def test_samples_are_in_range() -> None:
    for name in ("glyphs", "glyphs-latin", "digits"):
        batch = tasks.load(name).test.sample(tasks=2, shots=4, query=4)
        assert batch.support.dtype == torch.float32
        assert batch.support.min() == -1 and batch.support.max() == 1
