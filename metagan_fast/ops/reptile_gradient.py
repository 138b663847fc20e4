"""`reptile_gradient`: argument checks."""

from __future__ import annotations

from torch import Tensor

from . import _check
from ._common import run


def call(op: str, gradient: Tensor | None, initial: Tensor, adapted: Tensor, weights: Tensor | None) -> Tensor:
    """Check the arguments and run `op`: `reptile_gradient` or its in-place twin `reptile_gradient_`."""
    _check.tasks(op, "initial", initial, adapted, weights)
    _check.buffers(op, initial=initial, gradient=gradient)
    out = _check.targets(op, {"gradient": gradient}, initial=initial, adapted=adapted, weights=weights)
    (result,) = run("reptile_gradient", initial, adapted, weights=weights, out=out)
    return result
