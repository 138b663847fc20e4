"""Pictures of a report: adaptation over inner steps, interpolations, sample grids of the run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...display import image_grids
from ...display.image_grids import with_transparent_gaps
from ...executors import InnerLoopResult
from ...learner import MetaGAN
from ...noise import draw_sample_latents
from ...tasks import TaskBatch, TaskDistribution, Tasks, pillow

INNER_STEPS = (0, 1, 2, 5, 10, 20)

_CLASSES = 4
_SLOW = 10_000_000  # parameters of both networks; beyond, inner steps take long and one class is shown
_COLUMNS = 4, 8  # fewest and most images in a row
_BETWEEN = 9  # images from one latent to the other, both included
_GRIDS = 8
_GRID_CLASSES = 8
_GRID_BYTES = 3_000_000  # of all sample grids in a page


@dataclass(frozen=True)
class HeldOut:
    """Images of adapted generators, on the CPU.

    A column of `generated` has one latent, so its rows differ by the inner steps alone.
    """

    part: str  # of the split
    classes: tuple[str, ...]
    shots: int
    steps: tuple[int, ...]
    trained_steps: int  # of the inner loop in training; one of `steps`
    support: Tensor  # [classes, shown shots, C, H, W]
    generated: Tensor  # [classes, steps, columns, C, H, W]
    interpolated: Tensor  # [classes, images, C, H, W]

    @property
    def adaptation(self) -> Tensor:
        """Grid of support images above generated ones, one row a number of steps, the classes side by side."""
        missing = self.generated.shape[2] - self.support.shape[1]
        blocks = []
        for support, rows in zip(self.support, self.generated, strict=True):
            filled = torch.cat([support, image_grids.blank(support, missing)])
            blocks.append(image_grids.task_grid(filled[None], rows.flatten(0, 1)[None]))
        return image_grids.beside(blocks)


def held_out(learner: MetaGAN, tasks: Tasks, shots: int) -> HeldOut:
    """Adapt to a few held-out classes, the first of the validation batch, by each number of steps of `INNER_STEPS`.

    The learner's own number of steps is added. Without validation classes test classes are used, else training ones.
    """
    part, distribution = _part(tasks, shots)
    is_slow = size(learner.generator) + size(learner.discriminator) > _SLOW
    count = min(1 if is_slow else _CLASSES, len(distribution.classes))
    batch = distribution.sample(tasks=count, shots=shots, step=0)
    columns = min(max(shots, _COLUMNS[0]), _COLUMNS[1])
    steps = tuple(sorted({*INNER_STEPS, learner.inner.steps}))
    generated, interpolated = [], []
    for task in range(batch.tasks):  # one at a time, which bounds memory
        rows, between = torch.full((len(steps), columns, *batch.image_shape), math.nan), None
        for number, adapted in _stages(learner, batch.slice(task, task + 1), steps[-1]):
            if number in steps:
                rows[steps.index(number)] = learner.sample_tasks(adapted, columns, first_task=task)[0].float().cpu()
            if number == learner.inner.steps:
                between = _interpolate(learner, adapted.generator[0], task)
        generated.append(rows)
        interpolated.append(torch.full((_BETWEEN, *batch.image_shape), math.nan) if between is None else between)
    return HeldOut(
        part,
        batch.classes or (),
        shots,
        steps,
        learner.inner.steps,
        batch.support[:, :columns].float().cpu(),
        torch.stack(generated).nan_to_num(0.0),
        torch.stack(interpolated).nan_to_num(0.0),
    )


def _stages(learner: MetaGAN, one: TaskBatch, steps: int) -> Iterator[tuple[int, InnerLoopResult]]:
    """Yield the number of inner steps and the networks after them, from 0 on, as far as they stay finite."""
    yield 0, learner.inner_loop(one, steps=0)
    with contextlib.suppress(FloatingPointError):
        yield from enumerate(learner.adaptation(one.support[0], steps), 1)


def class_names(distribution: TaskDistribution, count: int, shots: int) -> tuple[str, ...]:
    """Return the names of the first classes of its batch of step 0; none for a count of 0."""
    return distribution.sample(tasks=count, shots=shots, step=0).classes or () if count else ()


def size(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _part(tasks: Tasks, shots: int) -> tuple[str, TaskDistribution]:
    parts = {"validation": tasks.validation, "test": tasks.test}
    for name, distribution in parts.items():
        if distribution.counts and min(distribution.counts) >= shots:
            return name, distribution
    return "training", tasks.train


@torch.no_grad()
def _interpolate(learner: MetaGAN, params: Tensor, task: int) -> Tensor:
    """Generate images along the arc cos(t) a + sin(t) b between two latents; each point is standard normal, too."""
    generator = learner.generator_layout.instantiate(learner.generator, params).train()
    kind = {"device": params.device, "dtype": params.dtype}
    first, second = draw_sample_latents(1, 2, learner.latent_dim, seed=0, first_task=task, **kind)[0]  # type: ignore[arg-type]
    angles = torch.linspace(0, math.pi / 2, _BETWEEN, **kind)[:, None]  # type: ignore[call-overload]
    images: Tensor = generator(angles.cos() * first + angles.sin() * second)
    return images.float().cpu()


class GridLayout(NamedTuple):
    """Layout of a run's sample grids."""

    classes: tuple[str, ...]
    shots: int
    rows: int  # of generated images
    image_size: tuple[int, int]


class SampleRows(NamedTuple):
    """Class of the sample grids as PNG files: its examples, and generated images by meta-step."""

    name: str
    support: bytes
    generated: dict[int, bytes]


def sample_rows(paths: Sequence[Path], layout: GridLayout) -> tuple[list[SampleRows], dict[int, bytes]]:
    """Return a few of a run's sample grids, the first and the last among them, class by class.

    Files that cannot be read are left out.

    Returns:
        The first row of generated images of each class, and whole grids, of another layout than `layout`, by meta-step.
    """
    shown = min(layout.shots, _COLUMNS[1])
    boxes = image_grids.task_grid_rows(layout.image_size, len(layout.classes), layout.shots, layout.rows, shown)
    size = _grid_size(layout)
    rows: dict[str, SampleRows] = {}
    others = {}
    for path in _chosen(paths):
        step = int(path.stem.rpartition("-")[2])
        try:
            with pillow.opened(path) as picture:
                picture.load()
        except ValueError:  # damaged
            continue
        if picture.size != size:
            others[step] = path.read_bytes()
            continue
        for name, (support, first, *_) in list(zip(layout.classes, boxes, strict=True))[:_GRID_CLASSES]:
            cut = [with_transparent_gaps(picture.crop(box), shown, layout.image_size) for box in (support, first)]
            rows.setdefault(name, SampleRows(name, cut[0], {})).generated[step] = cut[1]
    return list(rows.values()), others


def _grid_size(layout: GridLayout) -> tuple[int, int] | None:
    """Return width and height of the PNG file of a grid; None without classes."""
    if not layout.classes:
        return None
    support = torch.ones(len(layout.classes), layout.shots, 1, *layout.image_size)
    height, width = image_grids.task_grid(support, support.repeat(1, layout.rows, 1, 1, 1)).shape[1:]
    factor = image_grids.enlargement(layout.image_size[1])
    return factor * width, factor * height


def _chosen(paths: Sequence[Path]) -> list[Path]:
    """Return evenly spaced files, as many as a page may hold."""
    for count in range(_GRIDS, 1, -1):
        chosen = evenly(paths, count)
        if sum(path.stat().st_size for path in chosen) <= _GRID_BYTES:
            return chosen
    return evenly(paths, 1)


def evenly(items: Sequence[Path], count: int) -> list[Path]:
    """Return at most `count` items, evenly spaced, the first and the last among them; the last if `count` is 1."""
    if len(items) <= count:
        return list(items)
    last = len(items) - 1
    return [items[last - index * last // max(count - 1, 1)] for index in reversed(range(count))]
