"""MAML and its first-order approximation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .._gradients import gradients
from ..utils import clone_module, update_module
from .base_learner import BaseLearner


def maml_update(model: nn.Module, lr: float | Tensor, grads: Sequence[Tensor | None] | None = None) -> nn.Module:
    """Apply one differentiable step of gradient descent to a module's parameters.

    Args:
        model: module whose parameters are replaced; the tensors themselves are not written to.
        lr: learning rate.
        grads: one gradient per parameter, None to skip a parameter. If omitted, the updates in the parameters'
            attribute `update` are added.

    Returns:
        The module.
    """
    if grads is None:
        return update_module(model)
    return update_module(model, [None if g is None else -lr * g for g in grads])


class MAML(BaseLearner):
    """Model-agnostic meta-learning: an initialisation for gradient descent (Finn et al. 2017, arXiv:1703.03400).

    Args:
        model: any module.
        lr: learning rate of `adapt`.
        first_order: omit second derivatives (FOMAML).
        allow_unused: skip parameters on which the loss does not depend instead of raising RuntimeError; by default
            equal to `allow_nograd`.
        allow_nograd: skip parameters that do not require grad instead of raising RuntimeError.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        first_order: bool = False,
        allow_unused: bool | None = None,
        allow_nograd: bool = False,
    ) -> None:
        super().__init__()
        self.module = model
        self.lr = lr
        self.first_order = first_order
        self.allow_nograd = allow_nograd
        self.allow_unused = allow_nograd if allow_unused is None else allow_unused

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> None:
        """Take one gradient step on `loss`; the module's parameters become functions of the previous ones.

        Args:
            loss: tensor of one element, computed from this clone.
            first_order, allow_unused, allow_nograd: override the learner's settings for this step.

        Raises:
            RuntimeError: the loss has no graph, or a parameter is unused or frozen without the option that allows it.
        """
        found = gradients(
            loss,
            dict(self.module.named_parameters()),
            create_graph=not (self.first_order if first_order is None else first_order),
            allow_unused=self.allow_unused if allow_unused is None else allow_unused,
            allow_nograd=self.allow_nograd if allow_nograd is None else allow_nograd,
        )
        self.module = maml_update(self.module, self.lr, found)

    def clone(
        self, first_order: bool | None = None, allow_unused: bool | None = None, allow_nograd: bool | None = None
    ) -> MAML:
        """Return a learner around `clone_module(self.module)`; omitted settings are inherited."""
        return MAML(
            clone_module(self.module),
            lr=self.lr,
            first_order=self.first_order if first_order is None else first_order,
            allow_unused=self.allow_unused if allow_unused is None else allow_unused,
            allow_nograd=self.allow_nograd if allow_nograd is None else allow_nograd,
        )
