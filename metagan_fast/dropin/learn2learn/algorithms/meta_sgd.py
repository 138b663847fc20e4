"""Meta-SGD: a learned initialisation with a learned learning rate per element."""

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
    """Apply one differentiable step of gradient descent with a learning rate per element.

    Args:
        model: module whose parameters are replaced; the tensors themselves are not written to.
        lrs: one tensor of learning rates per parameter, in its shape.
        grads: one gradient per parameter, None to skip a parameter. If either is omitted, both are taken from the
            parameters' attributes `_lr` and `grad`, which are reset to None.

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
    """Meta-SGD: an initialisation and per-element learning rates (Li et al. 2017, arXiv:1707.09835).

    Args:
        model: any module.
        lr: initial value of every learning rate.
        first_order: omit second derivatives; learning rates still receive gradients.
        lrs: learning rates to use instead of `lr`, one tensor per parameter.
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
        """Return a learner around clones of the module and the learning rates."""
        return MetaSGD(clone_module(self.module), lrs=clone_parameters(self.lrs), first_order=self.first_order)

    def adapt(self, loss: Tensor, first_order: bool | None = None) -> None:
        """Take one gradient step on `loss`; the module's parameters become functions of the previous ones.

        Args:
            loss: tensor of one element, computed from this clone.
            first_order: overrides the learner's setting for this step.

        Raises:
            RuntimeError: the loss has no graph, or a parameter is unused or frozen.
        """
        found = gradients(
            loss,
            dict(self.module.named_parameters()),
            create_graph=not (self.first_order if first_order is None else first_order),
        )
        self.module = meta_sgd_update(self.module, self.lrs, found)
