"""Utility modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Lambda(nn.Module):
    """Call a function as a module.

    Args:
        lmb: the function.
    """

    def __init__(self, lmb: Callable[..., Any]) -> None:
        super().__init__()
        self.lmb = lmb

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.lmb(*args, **kwargs)


class Flatten(nn.Module):
    """Flatten `[n, ...]` to `[n, elements]`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.size(0), -1)


class Scale(nn.Module):
    """Multiply by a learned factor.

    Args:
        shape: shape of the factor; one element by default.
        alpha: initial value.
    """

    def __init__(self, shape: int | tuple[int, ...] | None = None, alpha: float = 1.0) -> None:
        super().__init__()
        shape = (1 if shape is None else shape,) if shape is None or isinstance(shape, int) else shape
        self.alpha = nn.Parameter(torch.full(tuple(shape), float(alpha)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.alpha


def freeze(module: nn.Module) -> nn.Module:
    """Detach every parameter of a module in place, and set `requires_grad` to False."""
    for x in module.parameters():
        x.detach_().requires_grad_(False)
    return module


def unfreeze(module: nn.Module) -> nn.Module:
    """Set `requires_grad` of every parameter of a module to True."""
    for x in module.parameters():
        x.requires_grad_(True)
    return module
