"""`ema_update`: argument checks."""

from __future__ import annotations

from torch import Tensor

from . import _check
from ._common import run


def call(op: str, average: Tensor, params: Tensor, decay: float) -> Tensor:
    """Check the arguments and run `op`: `ema_update` or its in-place twin `ema_update_`."""
    _check.buffers(op, average=average, params=params)
    decay = _check.number(op, "decay", decay)
    if not 0 <= decay <= 1:
        raise ValueError(f"{op}: decay must be in [0, 1], got {decay}")
    (result,) = run("ema_update", average, params, decay, out=_check.targets(op, {"average": average}, params=params))
    return result
