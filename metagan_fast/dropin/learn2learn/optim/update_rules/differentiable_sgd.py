"""Differentiable gradient descent."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..._gradients import grad_of
from ...utils import update_module


class DifferentiableSGD(nn.Module):
    """Update a module's parameters by `-lr` times their gradients, differentiably.

    Args:
        lr: learning rate.
    """

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr

    def forward(self, module: nn.Module, gradients: Sequence[Tensor | None] | None = None) -> None:
        """Replace the module's parameters by the updated tensors.

        Args:
            module: module whose parameters are replaced; the tensors themselves are not written to.
            gradients: one gradient per parameter, None to skip a parameter; by default the parameters' `grad`.
        """
        if gradients is None:
            gradients = [grad_of(x) for x in module.parameters()]
        update_module(module, [None if g is None else g.mul(-self.lr) for g in gradients])
