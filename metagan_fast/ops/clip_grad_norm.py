"""`clip_grad_norm`: argument checks."""

from __future__ import annotations

from torch import Tensor

from . import _check
from ._common import run


def call(op: str, grads: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """Check the arguments and run `op`: `clip_grad_norm` or its in-place twin `clip_grad_norm_`."""
    _check.buffers(op, grads=grads)
    (max_norm,) = _check.non_negative(op, max_norm=max_norm)
    clipped, norms = run("clip_grad_norm", grads, max_norm, out=_check.targets(op, {"grads": grads}))
    return clipped, norms
