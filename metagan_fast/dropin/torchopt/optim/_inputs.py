"""Inputs of optimizers: a transformation, and a loss, of which they need the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def gradients(loss: Tensor, params: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Differentiate a loss, with a graph; None where it does not depend on a parameter.

    Raises:
        RuntimeError: the loss has no graph, or is not a scalar.
    """
    if not loss.requires_grad:
        raise RuntimeError("the loss has no graph (does not require grad): compute it with grad enabled")
    return torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)


def check_transformation(impl: Any) -> None:
    """Raise TypeError for what has no `init` and `update`."""
    if not (callable(getattr(impl, "init", None)) and callable(getattr(impl, "update", None))):
        raise TypeError(f"expected a gradient transformation, with init() and update(), got {type(impl).__name__}")
