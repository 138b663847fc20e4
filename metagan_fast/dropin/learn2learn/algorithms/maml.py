"""MAML and its first-order approximation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .._gradients import gradients
from ..utils import clone_module, update_module
from .base_learner import BaseLearner


def maml_update(model: nn.Module, lr: float | Tensor, grads: Sequence[Tensor | None] | None = None) -> nn.Module:
    """Take one step of gradient descent, differentiable, on the parameters of a module.

    Args:
        model: changed in place; its tensors are not.
        lr: learning rate.
        grads: one for each of `model.parameters()`; None leaves a parameter as it is. Without gradients the updates
            in the parameters' attribute `update` are added.

    Returns:
        The module.
    """
    if grads is None:
        return update_module(model)
    return update_module(model, [None if g is None else -lr * g for g in grads])


class MAML(BaseLearner):
    """Learn an initialisation from which gradient descent adapts (Finn et al. 2017, arXiv:1703.03400).

    Args:
        model: any module.
        lr: learning rate of `adapt`.
        first_order: leave second derivatives out (FOMAML).
        allow_unused: leave parameters alone that the loss does not depend on, instead of raising RuntimeError; by
            default what `allow_nograd` is.
        allow_nograd: leave parameters alone that do not require grad, instead of raising RuntimeError.
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
        """Take one gradient step on `loss`: the module's parameters become the stepped ones, with their graph.

        Args:
            loss: one element, computed from this clone.
            first_order: here; by default the learner's.
            allow_unused: here; by default the learner's.
            allow_nograd: here; by default the learner's.

        Raises:
            RuntimeError: the loss has no graph, or not of all parameters.
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
        """Return a learner around `clone_module(self.module)`; what is not given is as here."""
        return MAML(
            clone_module(self.module),
            lr=self.lr,
            first_order=self.first_order if first_order is None else first_order,
            allow_unused=self.allow_unused if allow_unused is None else allow_unused,
            allow_nograd=self.allow_nograd if allow_nograd is None else allow_nograd,
        )
