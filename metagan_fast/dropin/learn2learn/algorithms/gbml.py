"""Gradient-based meta-learning with a learned transform of the gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .._gradients import gradients
from ..optim import DifferentiableSGD, ParameterUpdate
from ..utils import clone_module


class GBML(nn.Module):
    """Gradient-based meta-learner: an initialisation, and a learned transform of gradients into updates.

    The transform determines the algorithm: none gives MAML, `Scale` Meta-SGD (with `adapt_transform` Alpha-MAML, Behl
    et al. 2019, arXiv:1905.07435), matrices Meta-Curvature (Park & Oliva 2019, arXiv:1902.03356).

    Args:
        module: any module.
        transform: takes a parameter; returns a module from its gradient to its update, or None for the identity.
        lr: learning rate of `adapt`.
        adapt_transform: let `adapt` update the transform's parameters as well.
        first_order: omit second derivatives.
        allow_unused: skip parameters on which the loss does not depend instead of raising RuntimeError.
        allow_nograd: skip parameters that do not require grad instead of raising RuntimeError.
        compute_update: an existing `ParameterUpdate` to use instead of one built from `transform`.
    """

    def __init__(
        self,
        module: nn.Module,
        transform: Callable[[Tensor], nn.Module | None],
        lr: float = 1.0,
        adapt_transform: bool = False,
        first_order: bool = False,
        allow_unused: bool = False,
        allow_nograd: bool = False,
        compute_update: ParameterUpdate | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.transform = transform
        self.adapt_transform = adapt_transform
        self.lr = lr
        self.first_order = first_order
        self.allow_unused = allow_unused
        self.allow_nograd = allow_nograd
        if compute_update is None:
            compute_update = ParameterUpdate(module.parameters(), transform)
        self.compute_update = compute_update
        self.diff_sgd = DifferentiableSGD(lr)
        self._params_updated = False  # the loss depends on the transform only after an update

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def clone(
        self,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
        adapt_transform: bool | None = None,
    ) -> GBML:
        """Return a learner around clones of the module and its transforms; omitted settings are inherited."""
        return GBML(
            clone_module(self.module),
            self.transform,
            lr=self.lr,
            adapt_transform=self.adapt_transform if adapt_transform is None else adapt_transform,
            first_order=self.first_order if first_order is None else first_order,
            allow_unused=self.allow_unused if allow_unused is None else allow_unused,
            allow_nograd=self.allow_nograd if allow_nograd is None else allow_nograd,
            compute_update=clone_module(self.compute_update),
        )

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_nograd: bool | None = None,
        allow_unused: bool | None = None,
    ) -> None:
        """Take one gradient step on `loss`; with `adapt_transform`, later steps update the transforms first.

        Args:
            loss: tensor of one element, computed from this clone.
            first_order, allow_nograd, allow_unused: override the learner's settings for this step.

        Raises:
            RuntimeError: the loss has no graph, or a parameter is unused or frozen without the option that allows it.
        """
        second_order = not (self.first_order if first_order is None else first_order)
        allow_unused = self.allow_unused if allow_unused is None else allow_unused
        transforms = dict(self.compute_update.named_parameters())
        if self.adapt_transform and self._params_updated and transforms:
            found = gradients(
                loss,
                transforms,
                create_graph=second_order,
                retain_graph=True,
                allow_unused=allow_unused,
            )
            self.diff_sgd(self.compute_update, found)
        updates = self.compute_update(
            loss,
            self.module.parameters(),
            create_graph=second_order or self.adapt_transform,
            retain_graph=second_order or self.adapt_transform,
            allow_unused=allow_unused,
            allow_nograd=self.allow_nograd if allow_nograd is None else allow_nograd,
        )
        self.diff_sgd(self.module, updates)
        self._params_updated = True
