"""How task batches and data sets show themselves in notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .._utils.tensors import every
from ..display import image_grids, notebook
from ..display.markup import Markup, plural, table
from .batch import TaskBatch
from .distribution import TaskDistribution
from .images import to_float

_TASKS = 12  # rows of a batch
_IMAGES = 8  # of a row
_CLASSES = 8  # rows of a distribution, and examples of a part
_DASH = "\N{EN DASH}"

PARTS = ("Part", "Classes", "Groups", "Images", "Images a class")
"""Head of `part_row`."""


def batch_html(batch: TaskBatch) -> Markup:
    """Return a table with a row a task: its class, support images and query images."""

    def rows(count: int) -> Markup:
        head = ["Task", "Support"] + ([] if batch.query is None else ["Query"])
        lines = []
        for task in range(count):
            number = str(batch.first_task + task)
            name = number if batch.classes is None else f"{number}: {batch.classes[task]}"
            images = (batch.support,) if batch.query is None else (batch.support, batch.query)
            strips = [notebook.strip(each[task, :_IMAGES], f"Images of task {name}") for each in images]
            lines.append([name, *strips])
        return table(_caption("tasks", count, batch.tasks), head, lines)

    query = f" and {batch.query_shots}" if batch.query_shots else ""
    title = f"TaskBatch: {plural(batch.tasks, 'task')} of {batch.shots}{query} images, {_size(batch.image_shape)}"
    return notebook.fragment(title, notebook.fitting(rows, min(batch.tasks, _TASKS)))


def batch_png(batch: TaskBatch) -> bytes | None:
    """Return a grid with a row a task, support images on the left and query images on the right."""
    if not notebook.is_drawable(batch.support):
        return None
    parts = [batch.support] if batch.query is None else [batch.support, batch.query]
    rows = [torch.stack([notebook.reduced(images[:_IMAGES]) for images in part[:_TASKS]]) for part in parts]

    def png(count: int) -> bytes:
        laid_out = image_grids.beside([image_grids.grid(each[:count]) for each in rows])
        return image_grids.grid_png(laid_out, rows[0].shape[-1])

    return notebook.fitting(png, len(rows[0]))


def distribution_html(distribution: TaskDistribution) -> Markup:
    """Return a table with a row a class, of some evenly spaced ones."""

    def rows(count: int) -> Markup:
        names = distribution.classes[every(len(distribution), count)] if count else ()
        lines = [
            [name, f"{len(images):,}", notebook.strip(to_float(images[:_IMAGES]), f"Images of {name}")]
            for name in names
            for images in (distribution.images(name),)
        ]
        return table(
            _caption("classes", len(lines), len(distribution)), ["Class", "Images", "The first of them"], lines
        )

    title = f"TaskDistribution {distribution.name}: {facts(distribution)}"
    return notebook.fragment(title, notebook.fitting(rows, min(len(distribution), _CLASSES)))


def tasks_html(name: str, image_shape: Sequence[int], parts: Mapping[str, TaskDistribution]) -> Markup:
    """Return a table with a row a part of the split, each with images of some classes."""
    lines = [[*part_row(part, each), _examples(part, each)] for part, each in parts.items()]
    title = f"Tasks {name}: images of {_size(image_shape)}; no class is in two parts"
    return notebook.fragment(title, table("Parts of the split", [*PARTS, "Examples"], lines))


def part_row(part: str, distribution: TaskDistribution) -> list[str]:
    """Return a part's name, and its numbers of classes, groups and images, in the order of `PARTS`."""
    counts, groups = distribution.counts, set(distribution.groups or ())
    sizes = dict.fromkeys(map(str, (min(counts), max(counts)))) if counts else [_DASH]
    number_of_groups = str(len(groups)) if groups else _DASH
    return [part, f"{len(counts):,}", number_of_groups, f"{sum(counts):,}", " to ".join(sizes)]


def facts(distribution: TaskDistribution) -> str:
    """Return the numbers of classes and images, and their size, in one line."""
    classes, images = plural(len(distribution), "class", "classes"), plural(sum(distribution.counts), "image")
    return f"{classes}, {images} of {_size(distribution.image_shape)}"


def _examples(part: str, distribution: TaskDistribution) -> str:
    names = distribution.classes[every(len(distribution), _CLASSES)] if len(distribution) else ()
    if not names:
        return _DASH
    first: list[Tensor] = [distribution.images(name)[:1] for name in names]
    return notebook.strip(to_float(torch.cat(first)), f"An image of each of {len(names)} classes of the {part} part")


def _size(image_shape: Sequence[int]) -> str:
    channels, height, width = image_shape
    colours = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    return f"{height}\N{MULTIPLICATION SIGN}{width} pixels, {colours}"


def _caption(things: str, shown: int, total: int) -> str:
    return f"All {total:,} {things}" if shown == total else f"{shown:,} of {total:,} {things}"
