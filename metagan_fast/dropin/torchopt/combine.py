"""Chains of gradient transformations."""

from __future__ import annotations

from functools import partial
from typing import Any

from ._trees import leaves, rebuild
from .base import ChainedGradientTransformation, GradientTransformation, identity

__all__ = ["chain", "chain_flat"]


def chain(*transformations: GradientTransformation) -> GradientTransformation:
    """Chain transformations; the state is the tuple of their states.

    No transformations give the identity, a single one is returned as it is. The update raises ValueError for a state of
    another length.
    """
    if not transformations:
        return identity()
    return transformations[0] if len(transformations) == 1 else ChainedGradientTransformation(*transformations)


def chain_flat(*transformations: GradientTransformation) -> GradientTransformation:
    """Chain transformations that receive the list of a tree's leaves (None included) instead of the tree.

    Also available as `chain.flat`.
    """
    if not transformations:
        return identity()
    inner = chain(*transformations)
    return GradientTransformation(partial(_init, inner), partial(_update, inner))


chain.flat = chain_flat  # type: ignore[attr-defined]


def _init(inner: GradientTransformation, params: Any) -> Any:
    return inner.init(leaves(params))


def _update(
    inner: GradientTransformation, updates: Any, state: Any, *, params: Any = None, inplace: bool = True
) -> tuple[Any, Any]:
    flat_params = None if params is None else leaves(params)
    flat, state = inner.update(leaves(updates), state, params=flat_params, inplace=inplace)
    return rebuild(updates, flat), state
