"""`reptile_gradient`: the checked call."""

from __future__ import annotations

from torch import Tensor

from . import _check
from ._common import run


def call(op: str, gradient: Tensor | None, initial: Tensor, adapted: Tensor, weights: Tensor | None) -> Tensor:
    """Check the arguments of `reptile_gradient` or, as `op` says, of its in-place twin, and run it."""
    _check.tasks(op, "initial", initial, adapted, weights)
    _check.buffers(op, initial=initial, gradient=gradient)
    out = _check.targets(op, {"gradient": gradient}, initial=initial, adapted=adapted, weights=weights)
    (result,) = run("reptile_gradient", initial, adapted, weights=weights, out=out)
    return result
