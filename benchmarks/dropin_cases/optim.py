"""Optimizer steps on existing gradients: torch.optim's default, its fused step, and `metagan_fast.optim`."""

from __future__ import annotations

import functools
from typing import Any

import torch
from metagan_fast.benchmarks.contenders import Prepared
from metagan_fast.benchmarks.dropin_cases import DropInCase
from torch import Tensor, nn

from metagan_fast import optim

Shapes = tuple[tuple[int, ...], ...]


def resnet18() -> Shapes:
    """Return the parameter shapes of a ResNet-18 (He et al. 2016, arXiv:1512.03385): 62 tensors, 11.7 M elements."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    before = 64
    for channels in (64, 128, 256, 512):
        for _ in range(2):
            shapes += [(channels, before, 3, 3), (channels,), (channels,)]
            shapes += [(channels, channels, 3, 3), (channels,), (channels,)]
            if before != channels:
                shapes += [(channels, before, 1, 1), (channels,), (channels,)]
            before = channels
    return (*shapes, (1000, 512), (1000,))


SHAPES: dict[str, Shapes] = {"200x10000": ((10_000,),) * 200, "resnet18": resnet18()}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 1e-3, "momentum": 0.9},
    "Adam": {},
    "AdamW": {},
    "RMSprop": {},
}


def _prepare(name: str, shapes: Shapes, quick: bool) -> dict[str, Prepared[Tensor]]:
    chosen = shapes[: max(4, len(shapes) // 10)] if quick else shapes
    arguments = ARGUMENTS[name]
    prepared = {"torch": _contender(torch.optim, name, chosen, arguments)}
    if name != "RMSprop":  # torch has no fused RMSprop
        prepared["torch fused"] = _contender(torch.optim, name, chosen, {**arguments, "fused": True})
    prepared["metagan_fast"] = _contender(optim, name, chosen, arguments)
    return prepared


def _contender(module: Any, name: str, shapes: Shapes, arguments: dict[str, Any]) -> Prepared[Tensor]:
    random = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=random)
    optimizer = getattr(module, name)(params, **arguments)

    def collect(_: object) -> Tensor:
        return torch.cat([param.detach().flatten() for param in params])

    return Prepared(optimizer.step, collect)


CASES: tuple[DropInCase, ...] = tuple(
    DropInCase(f"optim-{name.lower()}-{size}", functools.partial(_prepare, name, shapes), rounds=50, allowed=1e-6)
    for name in ARGUMENTS
    for size, shapes in SHAPES.items()
)
