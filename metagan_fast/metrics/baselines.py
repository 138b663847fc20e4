"""Rows of an evaluation that are made of real images: copies, those of another class, and the floor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._utils.tensors import every
from ..tasks.images import to_float
from .augmented_copies import Augmentation, tune
from .distances import kernel_distance
from .episodes import Episodes
from .image_sets import FeatureSpace, HeldOut, ImageSets

if TYPE_CHECKING:
    from ..tasks import TaskDistribution

_LEAST_IMAGES = 2  # of a class that is compared as a set
_IMAGES_OF_A_CLASS = 2  # that stand for a training class when the nearest one is sought
_TUNED_CLASSES, _TUNED_COPIES = 24, 16  # validation classes, and copies of each, on which the augmentation is tuned


class Baselines:
    """Methods that return real images, changed or not.

    Args:
        training: classes of which the nearest one's images are a method; None: no such method.
        validation: classes on which the augmented copies are tuned; None: no such method.
        spaces: feature spaces; the first one decides which training class is nearest, and tunes the augmentation.
        shots: support images when the augmentation is tuned.
        samples: images a class, at most.
        seed: of the copies.

    Attributes:
        augmentation: of the augmented copies; None without validation classes.
    """

    def __init__(
        self,
        training: TaskDistribution | None,
        validation: TaskDistribution | None,
        spaces: Mapping[str, FeatureSpace],
        *,
        shots: int,
        samples: int,
        seed: int,
    ) -> None:
        self._spaces, self._samples, self._seed = spaces, samples, seed
        has_sets = training is not None and max(training.counts, default=0) >= _LEAST_IMAGES
        self._training = TrainingClasses(training, spaces, samples) if training is not None and has_sets else None
        self.augmentation = None if validation is None else self._tune(validation, shots)

    def __call__(self, support: ImageSets, others: ImageSets, draw: int) -> Iterator[tuple[str, ImageSets]]:
        """Yield the images of each method, with its name."""
        yield "copies", support.take(self._copies(support, self._samples, draw))
        if self.augmentation is not None:
            images = self._augmented(support, self._samples, self.augmentation, draw)
            yield "augmented copies", ImageSets.embed(images, self._spaces)
        if self._training is not None:
            yield "nearest class", self._training.nearest(support)
        if len(others.images) > 1:
            yield "wrong class", others.shifted()
        yield "real", others

    def _copies(self, support: ImageSets, count: int, draw: int) -> list[Tensor]:
        """Return which support image each copy repeats: each equally often, up to one."""
        first = self._seed + draw * len(support.images)
        return [
            torch.randperm(len(images), generator=torch.Generator().manual_seed(first + index))[
                torch.arange(count) % len(images)
            ]
            for index, images in enumerate(support.images)
        ]

    def _augmented(self, support: ImageSets, count: int, augmentation: Augmentation, draw: int) -> list[Tensor]:
        first = self._seed + draw * len(support.images)
        return [
            augmentation(images[index], seed=first + number)
            for number, (images, index) in enumerate(
                zip(support.images, self._copies(support, count, draw), strict=True)
            )
        ]

    def _tune(self, validation: TaskDistribution, shots: int) -> Augmentation | None:
        """Return the augmentation with the lowest mean KID of augmented copies of validation classes."""
        try:
            episodes = Episodes.draw(validation, shots=shots, draws=1, seed=self._seed)
        except ValueError:  # classes of too few images
            return None
        part = every(len(episodes.classes), _TUNED_CLASSES)
        space = next(iter(self._spaces))
        one = {space: self._spaces[space]}
        support, references, _ = HeldOut(
            validation, Episodes(episodes.classes[part], (episodes.draws[0][part],)), one
        ).division(0, shots)

        def score(augmentation: Augmentation) -> float:
            found = ImageSets.embed(self._augmented(support, _TUNED_COPIES, augmentation, 0), one)
            pairs = zip(found.features[space], references.features[space], strict=True)
            return sum(kernel_distance(copies, real).item() for copies, real in pairs) / len(found.images)

        return tune(score)


class TrainingClasses:
    """Real images of the training classes, for the method that returns those of the nearest class.

    The nearest class has the nearest mean, of 2 images, in the first feature space; classes of one image are left out.
    """

    def __init__(self, distribution: TaskDistribution, spaces: Mapping[str, FeatureSpace], most: int) -> None:
        """Take `most` images of the nearest class at most."""
        self._distribution, self._spaces, self._most = distribution, spaces, most
        self._first = next(iter(spaces))
        counts = zip(distribution.classes, distribution.counts, strict=True)
        self._classes = [name for name, count in counts if count >= _LEAST_IMAGES]
        few = [self._images(name, _IMAGES_OF_A_CLASS) for name in self._classes]
        sets = ImageSets.embed(few, {self._first: spaces[self._first]})
        self._means = torch.stack([features.mean(0) for features in sets.features[self._first]])

    def nearest(self, support: ImageSets) -> ImageSets:
        """Return images of the training class nearest to each class's support images."""
        means = torch.stack([features.mean(0) for features in support.features[self._first]])
        index = torch.cdist(means, self._means).argmin(1).tolist()
        chosen = [self._images(self._classes[each], self._most) for each in index]
        return ImageSets.embed(chosen, self._spaces)

    def _images(self, name: str, most: int) -> Tensor:
        images = torch.as_tensor(self._distribution.images(name))
        index = torch.linspace(0, len(images) - 1, min(most, len(images))).round().long()
        return to_float(images[index])
