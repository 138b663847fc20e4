"""Validation of a learner while it trains: KID on held-out classes, the same at each call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._utils.tensors import every
from ..distributed import Ranks
from ..tasks import TaskBatch
from ..tasks.images import to_float
from .adaptation import adapted_samples
from .distances import kernel_distance
from .features import FeatureExtractor

if TYPE_CHECKING:
    from ..learner import MetaGAN
    from ..tasks import TaskDistribution

_CLASSES = 16
_MOST_TASKS = 4  # adapted at once; bounds the time until a stop
_IMAGES = 128  # of a class


class ValidationKID:
    """Mean KID per class of a learner on held-out classes, on the same images with the same noise at every call.

    A class is divided once into `shots` support images and references: all others. At most 16 classes, evenly spaced
    among all, and 128 images of each are used.

    Args:
        distribution: the held-out classes; those with fewer than `shots` + 2 images are left out.
        features: feature space of the comparison; None on a rank that only adapts.
        shots: support images a class.
        samples: generated images a class.
        seed: of the divisions, the noise and the samples.

    Raises:
        ValueError: no class has enough images.
    """

    def __init__(
        self,
        distribution: TaskDistribution,
        features: FeatureExtractor | None,
        *,
        shots: int,
        samples: int = 64,
        seed: int = 0,
    ) -> None:
        self.check(distribution, shots)
        names = _with_enough(distribution, shots)
        names = names[every(len(names), _CLASSES)]
        self._features = features
        self._samples, self._seed = samples, seed
        self._references: list[Tensor] = []
        support = []
        for index, name in enumerate(names):
            images = torch.as_tensor(distribution.images(name))
            images = images[every(len(images), _IMAGES)]
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed + index))
            support.append(to_float(images[order[:shots]]))
            if features is not None:
                self._references.append(features(to_float(images[order[shots:]])))
        self._batch = TaskBatch(torch.stack(support), classes=tuple(names))

    @staticmethod
    def check(distribution: TaskDistribution, shots: int) -> None:
        """Raise ValueError unless a class has `shots` + 2 images."""
        if not _with_enough(distribution, shots):
            raise ValueError(
                f"expected validation classes of at least {shots + 2} images ({shots} shots, 2 references) to keep the "
                "best checkpoint by, got none; give them a share of the split, or use fewer shots"
            )

    def __call__(self, learner: MetaGAN, check: Callable[[], None] | None = None, ranks: Ranks | None = None) -> float:
        """Return the mean over classes; NaN if the learner diverged on one.

        `check` is called every few classes; an exception ends the measurement. With `ranks`, which share the classes,
        it is called once, and the first rank compares.
        """
        progress = None if check is None else lambda _: check()
        generated = adapted_samples(
            learner, self._batch, self._samples, seed=self._seed, most_tasks=_MOST_TASKS, progress=progress, ranks=ranks
        )
        return self._compare(generated) if ranks is None else ranks.share(lambda: self._compare(generated))

    def _compare(self, generated: Tensor) -> float:
        assert self._features is not None
        if not generated.isfinite().all():
            return math.nan
        pairs = zip(self._features(generated), self._references, strict=True)
        return sum(kernel_distance(found, reference).item() for found, reference in pairs) / len(generated)


def _with_enough(distribution: TaskDistribution, shots: int) -> list[str]:
    """Return the classes with support images and two references."""
    return [name for name, count in zip(distribution.classes, distribution.counts, strict=True) if count >= shots + 2]
