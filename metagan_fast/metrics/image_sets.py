"""Images of several classes with their features, and the division of held-out ones by episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..tasks.images import to_float
from .episodes import Episodes

if TYPE_CHECKING:
    from ..tasks import TaskDistribution

FeatureSpace = Callable[[Tensor], Tensor]
"""Map from images `[n, C, H, W]` in [-1, 1] to features `[n, d]`."""

_MOST_IMAGES = 512  # embedded at once; bounds memory


@dataclass(frozen=True)
class ImageSets:
    """Images of each class with their features.

    Attributes:
        images: `[m, C, H, W]` in [-1, 1], one tensor a class.
        features: space -> `[m, d]`, one tensor a class.
    """

    images: Sequence[Tensor]
    features: Mapping[str, Sequence[Tensor]]

    @classmethod
    def embed(cls, images: Sequence[Tensor] | Tensor, spaces: Mapping[str, FeatureSpace]) -> ImageSets:
        """Return the images with their features in all spaces."""
        images = list(images)
        sizes = [len(each) for each in images]
        flat = torch.cat(images)
        features = {
            name: torch.cat([space(part) for part in flat.split(_MOST_IMAGES)]).split(sizes)
            for name, space in spaces.items()
        }
        return cls(images, features)

    def take(self, indices: Sequence[Sequence[int] | Tensor]) -> ImageSets:
        """Return images of each class by index."""
        chosen = [torch.as_tensor(index) for index in indices]

        def pick(tensors: Sequence[Tensor]) -> list[Tensor]:
            return [tensor[index] for tensor, index in zip(tensors, chosen, strict=True)]

        return ImageSets(pick(self.images), {name: pick(each) for name, each in self.features.items()})

    def repeated(self, classes: int) -> ImageSets:
        """Return the images of the only class for each of several."""
        return ImageSets([*self.images] * classes, {name: [*each] * classes for name, each in self.features.items()})

    def shifted(self) -> ImageSets:
        """Return to each class the images of the next one."""

        def shift(tensors: Sequence[Tensor]) -> list[Tensor]:
            return [*tensors[1:], tensors[0]]

        return ImageSets(shift(self.images), {name: shift(each) for name, each in self.features.items()})


class HeldOut:
    """All images of the judged classes with their features, divided by episodes."""

    def __init__(self, distribution: TaskDistribution, episodes: Episodes, spaces: Mapping[str, FeatureSpace]) -> None:
        images = [to_float(torch.as_tensor(distribution.images(name))) for name in episodes.classes]
        self._all = ImageSets.embed(images, spaces)
        self._episodes = episodes

    def division(self, draw: int, shots: int) -> tuple[ImageSets, ImageSets, ImageSets]:
        """Return support, references and other images of a draw."""
        episodes = self._episodes.draws[draw]
        return (
            self._all.take([episode.support[:shots] for episode in episodes]),
            self._all.take([episode.references for episode in episodes]),
            self._all.take([episode.others for episode in episodes]),
        )
