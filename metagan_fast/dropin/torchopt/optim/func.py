"""A functional optimizer that keeps its state."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..._originals import hand_on
from .._trees import leaves, rebuild
from ..base import GradientTransformation
from ..update import apply_updates
from ._inputs import check_transformation, gradients

__getattr__, __dir__ = hand_on(__name__, "torchopt.optim.func")


class FuncOptimizer:
    """A transformation with its state.

    Args:
        impl: a transformation.
        inplace: whether `step` writes to the parameters, unless it is told.

    Raises:
        TypeError: `impl` is none.
    """

    def __init__(self, impl: GradientTransformation, *, inplace: bool = False) -> None:
        check_transformation(impl)
        self.impl, self.inplace = impl, bool(inplace)
        self.optim_state: Any = None

    def step(self, loss: Tensor, params: Any, inplace: bool | None = None) -> Any:
        """Return the parameters one step down the gradient of a loss.

        Args:
            loss: a scalar with a graph.
            params: a tree of tensors.
            inplace: write to them.
        """
        if self.optim_state is None:
            self.optim_state = self.impl.init(params)
        inplace = self.inplace if inplace is None else inplace
        grads = rebuild(params, gradients(loss, leaves(params)))
        updates, self.optim_state = self.impl.update(grads, self.optim_state, params=params, inplace=inplace)
        return apply_updates(params, updates, inplace=inplace)

    def state_dict(self) -> Any:
        """Return the state, None before the first step; a reference, not a copy."""
        return self.optim_state

    def load_state_dict(self, state_dict: Any) -> None:
        """Go on from a state that `state_dict` returned."""
        self.optim_state = state_dict
