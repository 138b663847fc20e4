"""Objects show themselves in notebooks: whole markup, exact images, bounded size, no trace elsewhere."""

from __future__ import annotations

import base64
import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import metagan_fast as mgf
from evaluations import made_up_evaluation
from metagan_fast.display import image_grids, notebook
from metagan_fast.metrics.results import FIGURES, METHODS
from networks import tiny_batch, tiny_gan

SCRIPT = "<script>alert('&\x00')</script>"


def parsed(html: str) -> ElementTree.Element:
    """Return the tree; raises unless the markup is whole."""
    assert "\x00" not in html
    return ElementTree.fromstring(html)


def pictures(html: str) -> list[Image.Image]:
    sources = [image.attrib["src"].removeprefix("data:image/png;base64,") for image in parsed(html).iter("img")]
    return [Image.open(io.BytesIO(base64.b64decode(source))) for source in sources]


def texts(html: str) -> list[str]:
    return [text for text in parsed(html).itertext() if text.strip()]


def cells(picture: Image.Image, side: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the images `[count, side, side]` of a strip of grey ones, reduced to their pixels, and the opacity."""
    factor = image_grids.enlargement(side)
    pixels = torch.from_numpy(np.asarray(picture.convert("LA")).copy())
    small = pixels[::factor, ::factor]
    assert torch.equal(small.repeat_interleave(factor, 0).repeat_interleave(factor, 1), pixels)  # crisp
    pitch = side + 2
    return torch.stack([small[:, n * pitch : n * pitch + side, 0] for n in range(count)]), small[..., 1]


def test_a_batch_shows_every_task_with_its_images() -> None:
    images = torch.rand(3, 6, 1, 8, 8) * 2 - 1
    batch = mgf.TaskBatch(images[:, :4], images[:, 4:], classes=("a", SCRIPT, "c"), first_task=5)
    html = batch._repr_html_()
    found = pictures(html)
    assert len(found) == 6  # support and query of three tasks
    for task in range(3):
        for strip, part in zip(found[2 * task : 2 * task + 2], (batch.support, batch.query), strict=True):
            assert part is not None
            shown, opacity = cells(strip, 8, part.shape[1])
            assert torch.equal(shown, image_grids.to_bytes(part[task, :, 0]))
            assert opacity[:, 8:10].eq(0).all() and opacity[:, :8].eq(255).all()
    assert "TaskBatch: 3 tasks of 4 and 2 images, 8\N{MULTIPLICATION SIGN}8 pixels, grey" in texts(html)
    assert "5: a" in texts(html) and "<script>" not in html


def test_a_batch_is_a_picture_too() -> None:
    batch = mgf.TaskBatch(torch.rand(3, 4, 3, 8, 8) * 2 - 1, torch.rand(3, 2, 3, 8, 8) * 2 - 1)
    png = batch._repr_png_()
    assert png is not None
    picture, factor = np.asarray(Image.open(io.BytesIO(png))), image_grids.enlargement(8)
    corner = picture[: 8 * factor : factor, : 8 * factor : factor]
    assert np.array_equal(corner, image_grids.to_bytes(batch.support[0, 0]).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("shape", [(30, 20, 3, 32, 32), (9, 9, 3, 200, 300), (1, 4, 1, 4, 900)])
def test_batches_of_any_size_stay_small(shape: tuple[int, ...]) -> None:
    batch = mgf.TaskBatch(torch.rand(shape) * 2 - 1)
    html, png = batch._repr_html_(), batch._repr_png_()
    assert png is not None and pictures(html)
    assert len(html) <= notebook.LIMIT and len(png) <= notebook.LIMIT
    assert all(max(picture.size) <= 8 * 2 * (32 + 2) for picture in pictures(html))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_batches_in_any_dtype_show_themselves(dtype: torch.dtype) -> None:
    support = torch.zeros(1, 2, 1, 8, 8, dtype=dtype, requires_grad=True)
    assert len(pictures(mgf.TaskBatch(support)._repr_html_())) == 1


def test_images_of_other_channels_are_counted() -> None:
    batch = mgf.TaskBatch(torch.zeros(2, 3, 4, 8, 8))
    assert "3 images of 4 channels" in texts(batch._repr_html_())
    assert batch._repr_png_() is None


def test_tasks_and_their_parts_show_examples() -> None:
    digits = mgf.tasks.load("digits", split=(0.8, 0.2, 0.0))
    html = digits._repr_html_()
    rows = [[*row.itertext()] for row in parsed(html).iter("tr")]
    assert [row[:2] for row in rows[1:]] == [["train", "8"], ["validation", "2"], ["test", "0"]]
    assert [int(row[3].replace(",", "")) for row in rows[1:]] == [
        sum(part.counts) for part in (digits.train, digits.validation, digits.test)
    ]
    first, _ = cells(pictures(html)[0], 8, 8)
    assert torch.equal(first, torch.stack([digits.train.images(name)[0, 0] for name in digits.train.classes]))
    assert len(pictures(digits.train._repr_html_())) == 8
    assert pictures(digits.test._repr_html_()) == []
    assert len(repr(digits)) < 400 and "classes=8" in repr(digits)


def test_names_of_classes_are_escaped() -> None:
    images = np.zeros((8, 8, 8), np.uint8)
    tasks = mgf.tasks.from_arrays(images, [SCRIPT, "b", "c", "d"] * 2, split=(1.0, 0.0, 0.0))
    html = tasks.train._repr_html_()
    assert "<script>" not in html and len(pictures(html)) == 4


@pytest.fixture
def adapted() -> mgf.AdaptedGAN:
    torch.manual_seed(1)
    learner = mgf.MetaGAN(*tiny_gan(), latent_dim=6, inner=mgf.InnerLoop(steps=2))
    return learner.adapt(tiny_batch(tasks=1, query=0).support[0])


def test_an_adapted_gan_shows_its_images_and_metrics(adapted: mgf.AdaptedGAN) -> None:
    before = torch.get_rng_state()
    html, png = adapted._repr_html_(), adapted._repr_png_()
    assert torch.equal(torch.get_rng_state(), before)
    strips, images = pictures(html), adapted.sample(16)
    assert len(strips) == 2 and png is not None
    for strip, row in zip(strips, images.split(8), strict=True):
        assert torch.equal(cells(strip, images.shape[-1], 8)[0], image_grids.to_bytes(row[:, 0]))
    assert {name.replace("_", " ") for name in adapted.metrics} <= set(texts(html))
    assert "parameters" in repr(adapted) and "loss_generator=" in repr(adapted)


def test_an_adapted_gan_that_diverged_says_so(adapted: mgf.AdaptedGAN) -> None:
    with torch.no_grad():
        next(adapted.generator.parameters()).fill_(float("nan"))
    assert "Its images are NaN or infinite." in texts(adapted._repr_html_())
    assert adapted._repr_png_() is None


def test_an_evaluation_shows_its_tables() -> None:
    html = made_up_evaluation()._repr_html_()
    found = texts(html)
    assert set(METHODS) <= set(found) and {kind.heading for kind in FIGURES.values()} <= set(found)
    assert found.count("1.000 to 1.500") == len(METHODS) * 4  # KID and accuracy in two spaces
    assert not pictures(html)
