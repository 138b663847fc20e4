"""`rmsprop_step`: argument checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _check
from ._common import run

if TYPE_CHECKING:
    from ..flat import FlatLayout


def call(
    op: str,
    params: Tensor,
    grads: Tensor,
    square_avg: Tensor,
    lr: float | Tensor,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    momentum_buffer: Tensor | None,
    centered: bool,
    grad_avg: Tensor | None,
    layout: FlatLayout | None,
) -> tuple[Tensor, ...]:
    """Check the arguments and run `op`: `rmsprop_step` or its in-place twin `rmsprop_step_`."""
    (alpha,) = _check.below_one(op, alpha=alpha)
    weight_decay, momentum = _check.non_negative(op, weight_decay=weight_decay, momentum=momentum)
    (eps,) = _check.positive(op, eps=eps)
    momentum_buffer = momentum_buffer if momentum != 0 else None
    grad_avg = grad_avg if centered else None
    _check.buffers(
        op,
        params=params,
        grads=grads,
        square_avg=square_avg,
        momentum_buffer=momentum_buffer,
        grad_avg=grad_avg,
    )
    lr = _check.learning_rate(op, lr, params, layout)
    written: dict[str, Tensor | None] = {"params": params, "square_avg": square_avg}
    if momentum != 0:
        written["momentum_buffer"] = momentum_buffer
    if centered:
        written["grad_avg"] = grad_avg
    out = _check.targets(op, written, grads=grads, lr=lr)
    if momentum != 0 and momentum_buffer is None:
        momentum_buffer = torch.zeros_like(params)
    if centered and grad_avg is None:
        grad_avg = torch.zeros_like(params)
    return run(
        "rmsprop_step",
        params,
        grads,
        square_avg,
        lr,
        alpha=alpha,
        eps=eps,
        weight_decay=weight_decay,
        momentum=momentum,
        momentum_buffer=momentum_buffer,
        centered=centered,
        grad_avg=grad_avg,
        layout=layout,
        out=out,
    )
