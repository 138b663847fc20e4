"""Gradient descent with a learned gradient transform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._gradients import grad_of
from ..utils import update_module


class LearnableOptimizer(nn.Module):
    """Optimizer whose transforms receive gradients from the next loss of the module that it stepped.

    Args:
        model: module to optimize; not a submodule. `step` replaces its parameters by tensors with a graph.
        transform: takes a parameter; returns a module from its gradient to its update.
        lr: factor of every update.

    Raises:
        AssertionError: `model` is not a module.
    """

    def __init__(self, model: nn.Module, transform: Callable[[Tensor], nn.Module], lr: float = 1.0) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise AssertionError(f"expected a module, got {type(model).__name__}")
        self.info = {"model": model}
        self.transforms = nn.ModuleList([transform(x) for x in model.parameters()])
        self.lr = lr

    def step(self, closure: Any = None) -> None:
        """Step each parameter that has a `grad`, detached from earlier steps."""
        model = self.info["model"]
        for x, transform in zip(model.parameters(), self.transforms, strict=True):
            gradient = grad_of(x)
            if gradient is not None:
                x.update = -self.lr * transform(gradient.detach())  # type: ignore[attr-defined]
                x.detach_()
        update_module(model)
        for x in model.parameters():
            x.retain_grad()

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Reset the model's gradients; the transforms' gradients are kept."""
        for x in self.info["model"].parameters():
            if grad_of(x) is not None:
                x.grad = None if set_to_none else torch.zeros_like(x.detach())
