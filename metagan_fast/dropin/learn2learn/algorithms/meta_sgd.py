"""Meta-SGD: an initialisation and a learning rate for each of its elements, learned together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._gradients import grad_of, gradients
from ..utils import clone_module, clone_parameters, update_module
from .base_learner import BaseLearner


def meta_sgd_update(
    model: nn.Module, lrs: Sequence[Tensor] | None = None, grads: Sequence[Tensor | None] | None = None
) -> nn.Module:
    """Take one step of gradient descent, differentiable, with a learning rate for each element.

    Args:
        model: changed in place; its tensors are not.
        lrs: one for each of `model.parameters()`, of its shape.
        grads: like `lrs`; None leaves a parameter as it is. Without rates or gradients, those in the parameters'
            attributes `_lr` and `grad` are taken, and reset to None.

    Returns:
        The module.
    """
    parameters = list(model.parameters())
    rates: Sequence[Any] | None = lrs
    if rates is None or grads is None:
        grads = [grad_of(x) for x in parameters]
        rates = [getattr(x, "_lr", None) for x in parameters]
        for x in parameters:
            x.grad = x._lr = None  # type: ignore[attr-defined]
    return update_module(model, [None if g is None else -(lr * g) for lr, g in zip(rates, grads, strict=False)])


class MetaSGD(BaseLearner):
    """Learn an initialisation and the learning rates of its elements (Li et al. 2017, arXiv:1707.09835).

    Args:
        model: any module.
        lr: what every learning rate starts from.
        first_order: leave second derivatives out; learning rates have gradients all the same.
        lrs: learning rates instead of `lr`, one for each of `model.parameters()`.
    """

    def __init__(
        self, model: nn.Module, lr: float = 1.0, first_order: bool = False, lrs: Sequence[Tensor] | None = None
    ) -> None:
        super().__init__()
        self.module = model
        self.lrs: Any = lrs
        if lrs is None:
            self.lrs = nn.ParameterList([nn.Parameter(torch.full_like(x, lr)) for x in model.parameters()])
        self.first_order = first_order

    def clone(self) -> MetaSGD:
        """Return a learner around clones of the module and of the learning rates."""
        return MetaSGD(clone_module(self.module), lrs=clone_parameters(self.lrs), first_order=self.first_order)

    def adapt(self, loss: Tensor, first_order: bool | None = None) -> None:
        """Take one gradient step on `loss`: the module's parameters become the stepped ones, with their graph.

        Args:
            loss: one element, computed from this clone.
            first_order: here; by default the learner's.

        Raises:
            RuntimeError: the loss has no graph, or not of all parameters.
        """
        found = gradients(
            loss,
            dict(self.module.named_parameters()),
            create_graph=not (self.first_order if first_order is None else first_order),
        )
        self.module = meta_sgd_update(self.module, self.lrs, found)
