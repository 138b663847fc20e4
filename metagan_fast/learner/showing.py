"""How an adapted GAN shows itself in notebooks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..display import image_grids, notebook
from ..display.markup import Markup, element, number, table
from .adapted import AdaptedGAN

_ROWS, _COLUMNS = 2, 8  # of images


def adapted_html(adapted: AdaptedGAN) -> Markup:
    """Return rows of generated images and the metrics."""
    images = _images(adapted)
    if images is None:
        shown = [element("p", "Its images are NaN or infinite.")]
    else:
        rows = [notebook.strip(row, f"Generated images, row {n}") for n, row in enumerate(images.split(_COLUMNS))]
        shown = [element("div", row, style="margin:.2em 0") for row in rows]
    lines = [[name.replace("_", " "), number(value)] for name, value in adapted.metrics.items()]
    metrics = table("After the last inner step", ["Metric", "Value"], lines) if lines else None
    return notebook.fragment(f"AdaptedGAN: {_ROWS * _COLUMNS} generated images", *shown, metrics)


def adapted_png(adapted: AdaptedGAN) -> bytes | None:
    """Return a grid of generated images; None if they are no pictures."""
    images = _images(adapted)
    if images is None or not notebook.is_drawable(images):
        return None
    images = notebook.reduced(images)
    return image_grids.grid_png(image_grids.grid(images.unflatten(0, (_ROWS, _COLUMNS))), images.shape[-1])


def _images(adapted: AdaptedGAN) -> Tensor | None:
    """Return the images of seed 0, without a trace in torch's generators; None if they are not finite."""
    device = next(adapted.generator.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            return adapted.sample(_ROWS * _COLUMNS)
        except FloatingPointError:
            return None
