"""A step of gradient descent."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..._gradients import grad_of
from ...utils import update_module


class DifferentiableSGD(nn.Module):
    """Step a module's parameters by `-lr` times their gradients, in a differentiable way.

    Args:
        lr: learning rate.
    """

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr

    def forward(self, module: nn.Module, gradients: Sequence[Tensor | None] | None = None) -> None:
        """Put the stepped tensors in the places of the module's parameters.

        Args:
            module: changed in place; its tensors are not.
            gradients: one for each of `module.parameters()`, None leaves one as it is; by default their `grad`.
        """
        if gradients is None:
            gradients = [grad_of(x) for x in module.parameters()]
        update_module(module, [None if g is None else g.mul(-self.lr) for g in gradients])
