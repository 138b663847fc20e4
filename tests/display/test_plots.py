"""Figures on request: their images and lines, and no trace in pyplot."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import metagan_fast as mgf
from metagan_fast import plots
from metagan_fast.display import image_grids
from metagan_fast.training.run_folder import RunFolder
from networks import tiny_batch, tiny_gan


@pytest.fixture
def learner() -> mgf.MetaGAN:
    torch.manual_seed(1)
    return mgf.MetaGAN(*tiny_gan(), latent_dim=6, inner=mgf.InnerLoop(lr=0.05, steps=3))


def drawn(figure: object, rows: int, columns: int) -> torch.Tensor:
    """Return the images `[rows, columns, height, width]` of a figure of grey ones, -1 where empty."""
    (axes,) = figure.axes  # type: ignore[attr-defined]
    pixels = torch.from_numpy(np.array(axes.images[0].get_array())).long()
    assert torch.equal(pixels[..., 0], pixels[..., 2])
    values = torch.where(pixels[..., 3] == 255, pixels[..., 0], -1)
    height, width = ((size + 2) // count - 2 for size, count in zip(values.shape, (rows, columns), strict=True))
    return torch.stack(
        [
            torch.stack([values[r * (height + 2) :, c * (width + 2) :][:height, :width] for c in range(columns)])
            for r in range(rows)
        ]
    )


def test_samples_are_those_of_the_adapted_gan(learner: mgf.MetaGAN) -> None:
    adapted = learner.adapt(tiny_batch(tasks=1, query=0).support[0])
    found = drawn(plots.samples(adapted, 5, seed=3), 2, 3).flatten(0, 1)
    assert torch.equal(found[:5], image_grids.to_bytes(adapted.sample(5, seed=3)[:, 0]).long())
    assert found[5].eq(-1).all()


def test_adaptation_has_a_row_a_number_of_steps(learner: mgf.MetaGAN) -> None:
    images = tiny_batch(tasks=1, query=0).support[0]
    figure = plots.adaptation(learner, images, steps=(2, 0, 3), count=6)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "examples", "0 steps", "2 steps", "3 steps"
    ]  # fmt: skip
    rows = drawn(figure, 4, 6)
    assert torch.equal(rows[0, : len(images)], image_grids.to_bytes(images[:, 0]).long())
    assert rows[0, len(images) :].eq(-1).all()
    for row, steps in zip(rows[1:], (0, 2, 3), strict=True):
        expected = learner.adapt(images, steps=steps).sample(6)
        assert torch.equal(row, image_grids.to_bytes(expected[:, 0]).long())
    assert len(plots.adaptation(learner, images, steps=1).axes[0].get_yticks()) == 3
    assert len(plots.adaptation(learner, images).axes[0].get_yticks()) == 5  # 0, 1, 2 and its own 3
    with pytest.raises(ValueError, match="at least one number of steps"):
        plots.adaptation(learner, images, steps=())


def test_curves_have_the_run_s_values(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    for step in (1, 2, 3):
        folder.append_metrics(step, {"loss_generator": step / 2, "gradient_norm": float("nan") if step == 2 else 1.0})
    folder.append_metrics(3, {"validation_loss_generator": 7.0, "validation_kid": 0.25})
    for run in (folder, folder.path, str(folder.path)):
        panels = {axes.get_title(): axes for axes in plots.curves(run).axes}
        assert list(panels) == ["loss generator", "gradient norm", "kid"]
        training, validation = panels["loss generator"].lines
        assert training.get_xydata().tolist() == [[1, 0.5], [2, 1.0], [3, 1.5]]
        assert validation.get_xydata().tolist() == [[3, 7.0]]
        assert panels["gradient norm"].lines[0].get_xydata().tolist() == [[1, 1.0], [3, 1.0]]
    with pytest.raises(FileNotFoundError, match=r"expected metrics of a run in .*nowhere, got none"):
        plots.curves(tmp_path / "nowhere")


def test_figures_show_themselves_once(learner: mgf.MetaGAN) -> None:
    """As PNG, without pyplot, whose inline backend would show its own figures at the end of a cell too."""
    import matplotlib.pyplot as plt

    figure = plots.samples(learner.adapt(tiny_batch(tasks=1, query=0).support[0]))
    assert plt.get_fignums() == []
    png = figure._repr_png_()  # type: ignore[attr-defined]
    assert Image.open(io.BytesIO(png)).size[0] > 100
    copied = pickle.loads(pickle.dumps(figure))
    assert copied._repr_png_() == png


@pytest.mark.slow  # imports the package anew
def test_matplotlib_is_imported_with_the_first_figure() -> None:
    code = (
        "import sys, metagan_fast, metagan_fast.plots, metagan_fast.training.report; print('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
