"""Objectives by which the feature networks are trained, as data: each states its network and draws its own batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..tasks.images import to_float
from .networks import FeatureNetwork, PlainNetwork, ResidualNetwork


@dataclass(frozen=True)
class Pool:
    """Training images `[n, C, H, W]` uint8, class after class, and the number of each class."""

    images: Tensor
    counts: Tensor

    @property
    def starts(self) -> Tensor:
        """Index of the first image of each class."""
        return self.counts.cumsum(0) - self.counts


class Objective(nn.Module):
    """Base: a feature network, and scores of a drawn batch for cross-entropy.

    Attributes:
        network_class: architecture of its network.
    """

    network_class: ClassVar[type[FeatureNetwork]]

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.network = self.network_class(channels)

    def forward(self, pool: Pool, batch_size: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a batch, and return scores `[n, k]` and the label of each row, 0 to k - 1."""
        raise NotImplementedError


class Classification(Objective):
    """All training classes at once, through a linear layer; images drawn uniformly by class and then by image."""

    network_class = PlainNetwork

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.head = nn.Linear(self.network.size, classes)

    def forward(self, pool: Pool, batch_size: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(len(pool.counts), (batch_size,), generator=draws)
        offsets = (torch.rand(batch_size, generator=draws) * pool.counts[labels]).long()
        return self.head(self.network(to_float(pool.images[pool.starts[labels] + offsets]))), labels


class PrototypicalEpisodes(Objective):
    """Episodes in which each query belongs to the nearest mean of a class's support (Snell et al. 2017, equation 2).

    An episode has as many classes as the batch holds, at least two, of two support and two query images each. The score
    of a class is minus the squared Euclidean distance. Classes of fewer than four images repeat some.
    """

    network_class = ResidualNetwork
    _SUPPORT, _QUERY = 2, 2

    def forward(self, pool: Pool, batch_size: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        each = self._SUPPORT + self._QUERY
        classes = torch.randperm(len(pool.counts), generator=draws)[: max(2, batch_size // each)]
        counts = pool.counts[classes, None]
        order = torch.rand(len(classes), max(each, int(counts.max())), generator=draws)
        order += torch.arange(order.shape[1]) >= counts  # own images come first
        chosen = pool.starts[classes, None] + order.argsort(1)[:, :each] % counts
        embedded = self.network(to_float(pool.images[chosen.flatten()])).unflatten(0, chosen.shape)
        prototypes = embedded[:, : self._SUPPORT].mean(1)
        queries = embedded[:, self._SUPPORT :].flatten(0, 1)
        distances = (queries[:, None] - prototypes).square().sum(2)
        return -distances, torch.arange(len(classes)).repeat_interleave(self._QUERY)


OBJECTIVES: Mapping[str, type[Objective]] = {"classifier": Classification, "prototype": PrototypicalEpisodes}
"""Objectives by name, in the order in which reports show their spaces."""
