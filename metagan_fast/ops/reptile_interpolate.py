"""`reptile_interpolate`: argument checks."""

from __future__ import annotations

from torch import Tensor

from . import _check
from ._common import run


def call(op: str, initial: Tensor, adapted: Tensor, step_size: float | Tensor, weights: Tensor | None) -> Tensor:
    """Check the arguments and run `op`: `reptile_interpolate` or its in-place twin `reptile_interpolate_`."""
    _check.tasks(op, "initial", initial, adapted, weights)
    step_size = _check.step_size(op, step_size)
    out = _check.targets(op, {"initial": initial}, adapted=adapted, step_size=step_size, weights=weights)
    (result,) = run("reptile_interpolate", initial, adapted, step_size, weights=weights, out=out)
    return result
