"""Application of updates to parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._flat_module import State, advance, over_buffers
from ._trees import aligned, leaves, rebuild

__all__ = ["apply_updates"]


def apply_updates(params: Any, updates: Any, *, inplace: bool = True) -> Any:
    """Return parameters plus updates.

    Args:
        params: a tree of tensors.
        updates: a tree of the same structure; None leaves a parameter unchanged.
        inplace: add to the parameters' data and return them; False: return new tensors with a graph.
    """
    tensors, increments = leaves(params), aligned(leaves(updates), params)
    if not inplace:
        return rebuild(params, advance(over_buffers(_add), {}, (), tensors, increments)[0])
    for p, increment in zip(tensors, increments, strict=True):
        if increment is not None:
            p.data.add_(increment)
    return params


def _add(params: Tensor, increments: Tensor, *_: Any) -> tuple[Tensor, State]:
    return params + increments, {}
