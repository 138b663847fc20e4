"""Evaluation of a learner on held-out classes, beside baselines and the real-image floor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._utils import coerce
from .._utils.tensors import every
from ..noise import Noise, NoiseShape, Stream, draw_noise
from ..tasks import TaskBatch
from ..tasks.images import to_float
from .distances import frechet_distance, kernel_distance, nearest_distance
from .features import FeatureExtractor
from .intervals import bootstrap_interval

if TYPE_CHECKING:
    from ..learner import MetaGAN
    from ..tasks import TaskDistribution

_MOST_TASKS = 16  # adapted at once; bounds memory
_VALIDATION_TASKS = 4  # adapted at once; bounds the time until a stop
_VALIDATION_CLASSES = 24
_VALIDATION_IMAGES = 128  # of a class

METHODS = {
    "adapted": "the meta-trained GAN, adapted to the support images",
    "unadapted": "its initialisation as it is",
    "random": "a randomly initialised GAN, adapted in the same way",
    "copies": "copies of the support images",
    "real": "other real images of the class: the floor",
}


@dataclass(frozen=True)
class Scores:
    """Scores of one method; lower is better, but a nearest distance near 0 means copies."""

    kid: tuple[float, ...]  # per class, averaged over draws
    fid: float  # pooled over classes, averaged over draws
    nearest_feature: float  # mean distance to the nearest support image in feature space
    nearest_pixel: float  # the same in pixels, root mean square, images in [-1, 1]

    @property
    def mean_kid(self) -> float:
        """Mean KID over classes."""
        return sum(self.kid) / len(self.kid)


@dataclass(frozen=True)
class Difference:
    """Difference in KID: mean over classes and 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`."""

    classes: tuple[str, ...]
    scores: Mapping[str, Scores]  # method -> figures
    differences: Mapping[str, Difference]  # "adapted - unadapted", "adapted - random" -> paired difference in KID
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data."""
        return {
            "classes": list(self.classes),
            "scores": {
                name: {
                    "kid": row.mean_kid,
                    "kid_per_class": dict(zip(self.classes, row.kid, strict=True)),
                    "fid": row.fid,
                    "nearest_feature": row.nearest_feature,
                    "nearest_pixel": row.nearest_pixel,
                }
                for name, row in self.scores.items()
            },
            "differences": {name: vars(row) for name, row in self.differences.items()},
            "settings": dict(self.settings),
        }

    def table(self) -> str:
        """Return the figures as text, one method a line, then the paired differences."""
        lines = [f"{'':12}{'KID/class':>11}{'FID':>9}{'nearest':>9}{'(pixels)':>9}"]
        lines += [
            f"{name:12}{row.mean_kid:11.4f}{row.fid:9.2f}{row.nearest_feature:9.3f}{row.nearest_pixel:9.3f}"
            f"   {METHODS[name]}"
            for name, row in self.scores.items()
        ]
        lines.append(f"\nKID, paired over {len(self.classes)} classes, with 95 % bootstrap interval:")
        lines += [
            f"  {name:24}{row.mean:+9.4f}  [{row.low:+.4f}, {row.high:+.4f}]" for name, row in self.differences.items()
        ]
        return "\n".join(lines)

    def class_table(self) -> str:
        """Return KID class by class as text."""
        width = max(len("class"), *(len(name) for name in self.classes)) + 2
        lines = [f"{'class':{width}}" + "".join(f"{name:>11}" for name in self.scores)]
        for index, name in enumerate(self.classes):
            lines.append(f"{name:{width}}" + "".join(f"{row.kid[index]:11.4f}" for row in self.scores.values()))
        return "\n".join(lines)


def evaluate(
    learner: MetaGAN,
    distribution: TaskDistribution,
    features: FeatureExtractor,
    *,
    random: MetaGAN | None = None,
    shots: int = 4,
    samples: int = 64,
    draws: int = 3,
    steps: int | None = None,
    most_tasks: int = _MOST_TASKS,
    seed: int = 0,
) -> Evaluation:
    """Adapt to held-out classes and compare the samples with real images of the same class.

    Each draw splits a class's images at random into `shots` support images, references, and as many further
    images for the floor. KID is taken class by class, so images of the wrong class count as wrong.

    Args:
        learner: the meta-trained GAN; unchanged.
        distribution: the held-out classes; those with fewer than `shots` + 4 images are left out.
        features: feature space of the comparison.
        random: a learner with random weights and the same inner loop; None: no such row.
        shots: support images a class.
        samples: generated images a class and draw.
        draws: number of random divisions of each class.
        steps: inner steps; None: the learner's own.
        most_tasks: classes adapted at once; bounds memory.
        seed: of the divisions, the noise and the samples.

    Returns:
        An `Evaluation` with the methods of `METHODS`.

    Raises:
        ValueError: no class has enough images, or a count is too small.
        FloatingPointError: a learner diverged on a class.
    """
    shots, draws, most_tasks = (
        coerce.count(name, value, least=1)
        for name, value in (("shots", shots), ("draws", draws), ("most_tasks", most_tasks))
    )
    samples, seed = coerce.count("samples", samples, least=2), coerce.count("seed", seed)
    steps = None if steps is None else coerce.count("steps", steps)
    classes = [_Class(name, torch.as_tensor(distribution.images(name)), features) for name in distribution.classes]
    classes = [entry for entry in classes if len(entry.images) >= shots + 4]
    if not classes:
        raise ValueError(
            f"expected classes of at least {shots + 4} images ({shots} shots, 2 references, 2 for the "
            "floor), got none; use fewer shots"
        )
    learners = {"adapted": learner, "unadapted": learner} | ({} if random is None else {"random": random})
    tallies = {name: _Tally() for name in METHODS if name in learners or name in ("copies", "real")}
    for draw in range(draws):
        splits = [
            entry.split(shots, samples, seed=seed + 1_000_003 * draw + index) for index, entry in enumerate(classes)
        ]
        batch = TaskBatch(
            torch.stack([to_float(entry.images[split.support]) for entry, split in zip(classes, splits, strict=True)]),
            classes=tuple(entry.name for entry in classes),
            first_task=draw * len(classes),  # each draw has its own noise
        )
        images = {
            name: _generate(owner, batch, samples, 0 if name == "unadapted" else steps, most_tasks, seed)
            for name, owner in learners.items()
        }
        for name, tally in tallies.items():
            if name in images:
                _check_finite(name, images[name], batch)
                tally.add(classes, splits, [_Set(x, features(x)) for x in images[name]])
            else:
                indices = [split.copies if name == "copies" else split.others for split in splits]
                tally.add(classes, splits, [entry.take(i) for entry, i in zip(classes, indices, strict=True)])
    return Evaluation(
        classes=tuple(entry.name for entry in classes),
        scores={name: tally.scores() for name, tally in tallies.items()},
        differences={
            f"adapted - {name}": _difference(tallies["adapted"], tallies[name], seed)
            for name in ("unadapted", "random")
            if name in tallies
        },
        settings={
            "shots": shots,
            "samples": samples,
            "draws": draws,
            "steps": learner.inner.steps if steps is None else steps,
            "seed": seed,
            "features": features.digest,
        },
    )


class ValidationKID:
    """Mean KID per class of a learner on held-out classes, on the same images with the same noise at every call.

    A class is divided once into `shots` support images and references: all others. At most 24 classes, evenly spaced
    among all, and 128 images of each are used.

    Args:
        distribution: the held-out classes; those with fewer than `shots` + 2 images are left out.
        features: feature space of the comparison.
        shots: support images a class.
        samples: generated images a class.
        seed: of the divisions, the noise and the samples.

    Raises:
        ValueError: no class has enough images.
    """

    def __init__(
        self,
        distribution: TaskDistribution,
        features: FeatureExtractor,
        *,
        shots: int,
        samples: int = 64,
        seed: int = 0,
    ) -> None:
        self.check(distribution, shots)
        names = _with_enough(distribution, shots)
        names = names[every(len(names), _VALIDATION_CLASSES)]
        self._features = features
        self._samples, self._seed = samples, seed
        self._references: list[Tensor] = []
        support = []
        for index, name in enumerate(names):
            images = torch.as_tensor(distribution.images(name))
            images = images[every(len(images), _VALIDATION_IMAGES)]
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed + index))
            support.append(to_float(images[order[:shots]]))
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

    def __call__(self, learner: MetaGAN, check: Callable[[], None] | None = None) -> float:
        """Return the mean over classes; NaN if the learner diverged on one.

        `check` is called every few classes; an exception ends the measurement.
        """
        most_tasks = 1 if learner.inner.inner_state == "persist" else _VALIDATION_TASKS

        def noise(learner: MetaGAN, part: TaskBatch) -> Noise:
            if check is not None:
                check()
            return self._noise(learner, part)

        generated = _generate(learner, self._batch, self._samples, None, most_tasks, self._seed, noise)
        if not generated.isfinite().all():
            return math.nan
        pairs = zip(self._features(generated), self._references, strict=True)
        return sum(kernel_distance(found, reference).item() for found, reference in pairs) / len(generated)

    def _noise(self, learner: MetaGAN, batch: TaskBatch) -> Noise:
        """Draw the same noise for any number of meta-steps."""
        inner = learner.inner
        shape = NoiseShape(
            batch.tasks, batch.shots, learner.latent_dim, inner.steps, inner.critic_steps, inner.batch_size
        )
        return draw_noise(shape, seed=self._seed, meta_step=0, first_task=batch.first_task, stream=Stream.ADAPTATION)


def _with_enough(distribution: TaskDistribution, shots: int) -> list[str]:
    """Return the classes with support images and two references."""
    return [name for name, count in zip(distribution.classes, distribution.counts, strict=True) if count >= shots + 2]


@dataclass(frozen=True)
class _Set:
    """Images and their features."""

    images: Tensor
    features: Tensor


@dataclass(frozen=True)
class _Split:
    """Division of a class's images in one draw, as indices."""

    support: Tensor
    reference: Tensor
    others: Tensor
    copies: Tensor


class _Class:
    """Held-out class with the features of all its images."""

    def __init__(self, name: str, images: Tensor, features: FeatureExtractor) -> None:
        self.name = name
        self.images = images
        self.features = features(to_float(images))

    def split(self, shots: int, samples: int, seed: int) -> _Split:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.images), generator=generator)
        support, rest = order[:shots], order[shots:]
        half = len(rest) // 2
        copies = support[torch.randint(shots, (samples,), generator=generator)]
        return _Split(support, rest[:half], rest[half : 2 * half], copies)

    def take(self, index: Tensor) -> _Set:
        return _Set(to_float(self.images[index]), self.features[index])


class _Tally:
    """Scores of a method, accumulated over draws."""

    def __init__(self) -> None:
        self.kid: list[Tensor] = []
        self.fid: list[float] = []
        self.nearest: list[Tensor] = []

    def add(self, classes: list[_Class], splits: list[_Split], sets: list[_Set]) -> None:
        references = [entry.features[split.reference] for entry, split in zip(classes, splits, strict=True)]
        pairs = list(zip(sets, references, strict=True))
        self.kid.append(torch.stack([kernel_distance(found.features, reference) for found, reference in pairs]))
        self.fid.append(frechet_distance(torch.cat([found.features for found in sets]), torch.cat(references)))
        for entry, split, found in zip(classes, splits, sets, strict=True):
            support = entry.take(split.support)
            self.nearest.append(
                torch.stack([
                    nearest_distance(found.features, support.features).mean(),
                    nearest_distance(found.images.flatten(1), support.images.flatten(1)).mean(),
                ])
            )  # fmt: skip

    def kid_per_class(self) -> Tensor:
        return torch.stack(self.kid).mean(0)

    def scores(self) -> Scores:
        nearest_feature, nearest_pixel = torch.stack(self.nearest).mean(0).tolist()
        fid = sum(self.fid) / len(self.fid)
        return Scores(tuple(self.kid_per_class().tolist()), fid, nearest_feature, nearest_pixel)


def _difference(first: _Tally, second: _Tally, seed: int) -> Difference:
    values = first.kid_per_class() - second.kid_per_class()
    return Difference(values.mean().item(), *bootstrap_interval(values, seed=seed))


def _generate(
    learner: MetaGAN,
    batch: TaskBatch,
    samples: int,
    steps: int | None,
    most_tasks: int,
    seed: int,
    draw: Callable[[MetaGAN, TaskBatch], Noise] | None = None,
) -> Tensor:
    """Return samples [tasks, samples, C, H, W] of a learner adapted to each task, a few tasks at a time.

    `draw` draws the noise of adaptation; None: the learner's own.
    """
    parts = []
    for start in range(0, batch.tasks, most_tasks):
        part = batch.slice(start, min(start + most_tasks, batch.tasks))
        adapted = learner.inner_loop(part, None if draw is None else draw(learner, part), steps=steps)
        parts.append(learner.sample_tasks(adapted, samples, seed, first_task=part.first_task).float().cpu())
    return torch.cat(parts)


def _check_finite(name: str, images: Tensor, batch: TaskBatch) -> None:
    """Raise FloatingPointError if a learner diverged on a class."""
    bad = (~images.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        assert batch.classes is not None
        raise FloatingPointError(
            f"the {name} GAN makes images that are NaN or infinite of {len(bad)} of {batch.tasks} classes, "
            f"{batch.classes[bad[0]]!r} among them; lower the inner learning rate or take fewer steps"
        )
