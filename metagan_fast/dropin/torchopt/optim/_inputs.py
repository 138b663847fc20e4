"""Checks of optimizer inputs: a transformation, and a loss to differentiate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def gradients(loss: Tensor, params: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Differentiate a loss with `create_graph`; None for parameters on which it does not depend.

    Raises:
        RuntimeError: the loss has no graph, or is not a scalar.
    """
    if not loss.requires_grad:
        raise RuntimeError("the loss has no graph (does not require grad): compute it with grad enabled")
    return torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)


def check_transformation(impl: Any) -> None:
    """Raise TypeError unless `impl` has `init` and `update`."""
    if not (callable(getattr(impl, "init", None)) and callable(getattr(impl, "update", None))):
        raise TypeError(f"expected a gradient transformation, with init() and update(), got {type(impl).__name__}")
