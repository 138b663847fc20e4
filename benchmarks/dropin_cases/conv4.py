"""The few-shot classifier of the MAML papers at Omniglot's image size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from metagan_fast.benchmarks.contenders import Prepared
from torch import Tensor, nn

WAYS, SHOTS, QUERY, TASKS, STEPS, LR = 5, 1, 15, 4, 5, 0.1


class Conv4(nn.Sequential):
    """Four blocks of convolution, batch norm, ReLU and pooling, then a linear layer: `[n, 1, 28, 28]` to `[n, 5]`."""

    def __init__(self, channels: int = 64) -> None:
        layers: list[nn.Module] = []
        for before in (1, channels, channels, channels):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.Flatten(), nn.Linear(channels, WAYS))


@dataclass(frozen=True)
class Episodes:
    """A network and a meta-batch of 5-way tasks.

    Attributes:
        network: the classifier; a meta-step leaves its parameters unchanged.
        support: `[tasks, ways * shots, 1, 28, 28]`.
        query: `[tasks, ways * query, 1, 28, 28]`.
        support_labels, query_labels: labels of one task, the same for all.
        steps: inner SGD steps.
        lr: learning rate of the inner steps.
    """

    network: nn.Module
    support: Tensor
    query: Tensor
    support_labels: Tensor
    query_labels: Tensor
    steps: int = STEPS
    lr: float = LR

    @classmethod
    def draw(cls, quick: bool = False) -> Episodes:
        """Initialise the network and draw random images, whose content does not affect speed."""
        torch.manual_seed(0)
        tasks = 1 if quick else TASKS
        images = torch.rand(tasks, WAYS * (SHOTS + QUERY), 1, 28, 28)
        labels = torch.arange(WAYS)
        episodes = cls(
            Conv4(),
            images[:, : WAYS * SHOTS],
            images[:, WAYS * SHOTS :],
            labels.repeat(SHOTS),
            labels.repeat(QUERY),
        )
        return dataclasses.replace(episodes, steps=2) if quick else episodes

    def meta_gradient(self) -> Tensor:
        """Return the network's gradients as one vector, and reset them."""
        gradient = torch.cat([p.grad.reshape(-1) for p in self.network.parameters() if p.grad is not None])
        self.network.zero_grad(set_to_none=True)
        return gradient


def contenders(quick: bool, meta_steps: Mapping[str, Callable[[Episodes], None]]) -> dict[str, Prepared[Tensor]]:
    """Set up each named meta-step on its own copy of the same episodes; a meta-step leaves gradients in the network."""

    def prepared(meta_step: Callable[[Episodes], None]) -> Prepared[Tensor]:
        episodes = Episodes.draw(quick)
        return Prepared(lambda: meta_step(episodes), lambda _: episodes.meta_gradient())

    return {name: prepared(meta_step) for name, meta_step in meta_steps.items()}
