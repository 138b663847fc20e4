"""Functional optimizer that stores its state."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..._originals import fall_back_to
from .._trees import leaves, rebuild
from ..base import GradientTransformation
from ..update import apply_updates
from ._inputs import check_transformation, gradients

__getattr__, __dir__ = fall_back_to(__name__, "torchopt.optim.func")


class FuncOptimizer:
    """Gradient transformation together with its state.

    Args:
        impl: a gradient transformation.
        inplace: default of `step`'s `inplace`.

    Raises:
        TypeError: `impl` is not a transformation.
    """

    def __init__(self, impl: GradientTransformation, *, inplace: bool = False) -> None:
        check_transformation(impl)
        self.impl, self.inplace = impl, bool(inplace)
        self.optim_state: Any = None

    def step(self, loss: Tensor, params: Any, inplace: bool | None = None) -> Any:
        """Return the parameters after one step down the gradient of a loss.

        Args:
            loss: a scalar with a graph.
            params: a tree of tensors.
            inplace: write to the parameters; by default the constructor's `inplace`.
        """
        if self.optim_state is None:
            self.optim_state = self.impl.init(params)
        inplace = self.inplace if inplace is None else inplace
        grads = rebuild(params, gradients(loss, leaves(params)))
        updates, self.optim_state = self.impl.update(grads, self.optim_state, params=params, inplace=inplace)
        return apply_updates(params, updates, inplace=inplace)

    def state_dict(self) -> Any:
        """Return a reference to the state; None before the first step."""
        return self.optim_state

    def load_state_dict(self, state_dict: Any) -> None:
        """Restore a result of `state_dict`."""
        self.optim_state = state_dict
