"""`meta_adam_step`: argument checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from . import _check
from ._common import run

if TYPE_CHECKING:
    from ..flat import FlatLayout


def call(
    op: str,
    params: Tensor,
    adapted: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float | Tensor,
    step: int,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    weights: Tensor | None,
    layout: FlatLayout | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the arguments and run `op`: `meta_adam_step` or its in-place twin `meta_adam_step_`."""
    _check.tasks(op, "params", params, adapted, weights)
    _check.buffers(op, params=params, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    lr = _check.learning_rate(op, lr, params, layout)
    step = _check.step_number(op, step)
    _, betas, eps, _, weight_decay = _check.adam(op, step, betas, eps, 0.0, weight_decay, params.device)
    written = {"params": params, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    out = _check.targets(op, written, adapted=adapted, lr=lr, weights=weights)
    new_params, new_exp_avg, new_exp_avg_sq = run(
        "meta_adam_step",
        params,
        adapted,
        exp_avg,
        exp_avg_sq,
        lr,
        step=step,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        decoupled=decoupled,
        weights=weights,
        layout=layout,
        out=out,
    )
    return new_params, new_exp_avg, new_exp_avg_sq
