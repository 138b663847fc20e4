"""Plots of generated images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._utils import coerce
from ..display import image_grids
from ..tasks import TaskBatch
from ..tasks.batch import one_task
from .style import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from ..learner import AdaptedGAN, MetaGAN

_STEPS = (0, 1, 2, 5, 10)  # rows of `adaptation`, and the learner's own number
_INCHES = 0.75  # an image's side
_LABEL = 1.0  # inches


def samples(adapted: AdaptedGAN, count: int = 16, *, seed: int = 0) -> Figure:
    """Plot images of an adapted GAN, those of `AdaptedGAN.sample`.

    Args:
        adapted: as `MetaGAN.adapt` returns it.
        count: number of images.
        seed: decides the latents.

    Raises:
        ValueError, FloatingPointError: as `AdaptedGAN.sample`.
    """
    images = adapted.sample(count, seed=seed)
    return _grid(image_grids.rows_of(images))


def adaptation(
    learner: MetaGAN,
    images: Tensor | NDArray[Any],
    steps: int | Sequence[int] | None = None,
    *,
    count: int = 8,
    seed: int = 0,
) -> Figure:
    """Plot the images of a class and, below them, generated ones after several numbers of inner steps.

    A column keeps its latent, so its images differ by the adaptation alone.

    Args:
        learner: unchanged.
        images: `[shots, channels, height, width]` in [-1, 1], a tensor or a NumPy array.
        steps: numbers of inner steps, a row each, or one number, for 0 steps up to it; None: 0, 1, 2, 5, 10 and the
            learner's own number, as far as that.
        count: images in a row.
        seed: decides the latents.

    Raises:
        TypeError, ValueError, FloatingPointError: as `MetaGAN.adapt`.
    """
    support, count = one_task(images), coerce.count("count", count, least=1)
    if steps is None:
        steps = [n for n in _STEPS if n < learner.inner.steps] + [learner.inner.steps]
    elif not isinstance(steps, Sequence):
        steps = range(coerce.count("steps", steps) + 1)
    numbers = sorted({coerce.count("steps", n) for n in steps})
    if not numbers:
        raise ValueError("expected at least one number of steps, got none")
    last = numbers[-1]
    stages = enumerate(learner.adaptation(support[0], last), 1)
    found = {0: learner.inner_loop(TaskBatch(support), steps=0)} if 0 in numbers else {}
    rows = [learner.sample_tasks(each, count, seed)[0].float().cpu() for each in found.values()]
    rows += [learner.sample_tasks(each, count, seed)[0].float().cpu() for n, each in stages if n in numbers]
    examples = support[0, :count].detach().float().cpu()
    rows.insert(0, torch.cat([examples, examples.new_full((count - len(examples), *examples.shape[1:]), torch.nan)]))
    names = [f"{n} step" if n == 1 else f"{n} steps" for n in numbers]
    return _grid(torch.stack(rows), ["examples", *names])


def _grid(images: Tensor, names: Sequence[str] = ()) -> Figure:
    """Plot images `[rows, columns, C, H, W]`; those that are NaN stay empty.

    Raises:
        ValueError: images that are neither grey nor coloured.
    """
    rows, columns, channels, height, width = images.shape
    if channels not in (1, 3):
        raise ValueError(f"expected images of 1 or 3 channels to plot, got {channels}; select some of them")
    filled = images.isfinite().to(images.dtype)[:, :, :1].cpu() * 2 - 1
    alpha = image_grids.grid(filled) == 1  # the gaps have another value
    colours = image_grids.to_bytes(image_grids.grid(images.nan_to_num(0.0))).expand(3, -1, -1)
    pixels = torch.cat([colours, alpha.to(torch.uint8) * 255]).permute(1, 2, 0).numpy()
    figure = canvas(columns * _INCHES * width / height + (_LABEL if names else 0), rows * _INCHES)
    axes = figure.add_subplot()
    axes.imshow(pixels, interpolation="nearest")
    axes.set_frame_on(False)
    axes.set_xticks([])
    pitch = pixels.shape[0] / rows
    axes.set_yticks([pitch * (row + 0.5) for row in range(len(names))], names)
    axes.tick_params(length=0)
    return figure
