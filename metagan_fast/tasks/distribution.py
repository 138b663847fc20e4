"""Distribution over tasks: classes are drawn, then disjoint support and query images of each."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from .._utils import coerce
from . import draws
from .batch import TaskBatch
from .images import ImageSet, to_float


class TaskDistribution:
    """Distribution of tasks over labelled images; a batch is a function of (seed, step) alone.

    Where classes have groups, a group is drawn uniformly first, then a class in the group. Classes of a batch
    differ, unless it has more tasks than there are classes; then every class comes before any repeats.
    """

    def __init__(self, images: ImageSet, *, seed: int = 0, name: str = "images") -> None:
        self.name = name
        self.seed = coerce.seed(seed)
        self.classes = images.classes
        self.groups = images.groups
        self.counts = images.counts
        self._images = torch.from_numpy(np.ascontiguousarray(images.images))
        self._starts = images.first_images
        self._counts = np.array(images.counts, np.int64)
        sizes = Counter(self.groups or ())
        self._weights = np.array([1 / sizes[group] for group in self.groups]) if self.groups else np.ones(len(self))

    def __len__(self) -> int:
        return len(self.classes)

    def __repr__(self) -> str:
        return f"TaskDistribution({self.name!r}, classes={len(self)}, images={sum(self.counts)})"

    def _repr_html_(self) -> str:
        """Show some classes and their first images in a notebook."""
        from .showing import distribution_html  # slow to import

        return distribution_html(self)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of an image, (channels, height, width)."""
        channels, height, width = self._images.shape[1:]
        return channels, height, width

    def images(self, name: str) -> Tensor:
        """Return all images of a class, `[n, channels, height, width]` uint8, without a copy."""
        if name not in self.classes:
            raise ValueError(f"{self.name} has no class {name!r}; its classes are in .classes")
        index = self.classes.index(name)
        return self._images[self._starts[index] : self._starts[index] + self._counts[index]]

    def sample(
        self, tasks: int = 8, shots: int = 4, query: int = 0, step: int = 0, *, mixed: bool = False
    ) -> TaskBatch:
        """Return the task batch of a step.

        Args:
            tasks: number of tasks. Up to the number of classes, a smaller batch begins a larger one.
            shots: support images of a task.
            query: query images of a task, disjoint from its support images; 0 for none.
            step: the draw's counter; the same (seed, step) gives the same batch on any machine.
            mixed: draw each image from a class of its own, for `MetaGAN.joint_step`.

        Returns:
            A float32 TaskBatch in [-1, 1], with the names of the classes, unless they are mixed.

        Raises:
            ValueError: a count is out of range, or a class has fewer than `shots + query` images.
        """
        tasks, shots = coerce.count("tasks", tasks, least=1), coerce.count("shots", shots, least=1)
        query, step = coerce.count("query", query), coerce.count("step", step)
        self._check_images(*((1, 0) if mixed else (shots, query)))
        classes, each = (tasks * (shots + query), 1) if mixed else (tasks, shots + query)
        rounds = -(-classes // len(self))
        drawn = draws.words(self.seed, draws.Stream.CLASSES, step, (rounds, len(self)))
        chosen = draws.weighted_orders(self._weights, drawn).ravel()[:classes]
        drawn = draws.words(self.seed, draws.Stream.IMAGES, step, (classes, 2, each))
        positions = self._starts[chosen, None] + draws.subsets(self._counts[chosen], each, drawn)
        pixels = self._images[torch.from_numpy(positions.reshape(tasks, shots + query))]
        images = to_float(pixels)
        return TaskBatch(
            support=images[:, :shots],
            query=images[:, shots:] if query else None,
            classes=None if mixed else tuple(self.classes[index] for index in chosen),
        )

    def _check_images(self, shots: int, query: int) -> None:
        if not self.classes:
            raise ValueError(f"{self.name} has no classes to draw tasks from; give it a larger share of the split")
        fewest = min(self.counts)
        if fewest < shots + query:
            raise ValueError(
                f"{self.name}: class {self.classes[self.counts.index(fewest)]!r} has {fewest} images, but "
                f"shots={shots} and query={query} need {shots + query}; "
                f"min_images={shots + query} when loading leaves such classes out"
            )
