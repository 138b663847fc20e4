"""`meta_adam_step`: task mean, Reptile difference and Adam in one pass."""

from typing import Any

import triton
import triton.language as tl
from metagan_fast.kernels.blocks import locate, number, rate_at, read, sum_over_tasks, write
from metagan_fast.kernels.updates import _launch
from metagan_fast.kernels.updates.adam_step import adam_numbers
from metagan_fast.kernels.updates.formulas import adam_update
from torch import Tensor

from metagan_fast._native.buffers import inputs, new_results
from metagan_fast.flat import ALIGNMENT


@triton.jit
def meta_adam_step_kernel(
    params,
    adapted,
    adapted_stride,
    tasks,
    weights,
    exp_avg,
    exp_avg_sq,
    params_out,
    exp_avg_out,
    exp_avg_sq_out,
    numel,
    lr: tl.float64,
    rates,
    rates_stride,
    segments,
    segment_stride,
    beta1: tl.float64,
    one_minus_beta1: tl.float64,
    beta2: tl.float64,
    one_minus_beta2: tl.float64,
    inverse_bias1: tl.float64,
    inverse_bias2: tl.float64,
    eps: tl.float64,
    eps_root: tl.float64,
    weight_decay: tl.float64,
    inverse_tasks: tl.float64,
    A: tl.constexpr,
    FORM: tl.constexpr,
    DECAY: tl.constexpr,
    DECOUPLED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, start, lanes, mask = locate(numel, BLOCK)
    rate = rate_at(lr, rates, rates_stride, segments, segment_stride, row, start, lanes, mask, A, FORM, RUN)
    param = read(params, start, lanes, mask, A)
    grad = sum_over_tasks(
        param, adapted, adapted_stride, tasks, weights, inverse_tasks, start, lanes, mask, A, WEIGHTED, False
    )
    param, mean, mean_sq = adam_update(
        param,
        grad,
        read(exp_avg, start, lanes, mask, A),
        read(exp_avg_sq, start, lanes, mask, A),
        rate,
        number(beta1, A),
        number(one_minus_beta1, A),
        number(beta2, A),
        number(one_minus_beta2, A),
        number(inverse_bias1, A),
        number(inverse_bias2, A),
        number(eps, A),
        number(eps_root, A),
        number(weight_decay, A),
        DECAY,
        DECOUPLED,
    )
    write(params_out, start, lanes, mask, param)
    write(exp_avg_out, start, lanes, mask, mean)
    write(exp_avg_sq_out, start, lanes, mask, mean_sq)


def meta_adam_step(
    params: Tensor,
    adapted: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float | Tensor,
    *,
    step: int,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    weights: Tensor | None,
    layout: Any,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    """Run `meta_adam_step`."""
    params, adapted, exp_avg, exp_avg_sq = inputs(params, adapted, exp_avg, exp_avg_sq)
    results = out or new_results(params, 3)
    rate = _launch.learning_rate(lr, params, layout)
    _launch.launch(
        meta_adam_step_kernel,
        _launch.blocks_of(params),
        params,
        params,
        *_launch.tasks(adapted, weights),
        exp_avg,
        exp_avg_sq,
        *results,
        params.shape[-1],
        *rate.operands,
        *adam_numbers(step, betas, eps, 0.0, weight_decay),
        1 / adapted.shape[0],
        FORM=rate.form,
        DECAY=weight_decay != 0,
        DECOUPLED=bool(decoupled),
        WEIGHTED=weights is not None,
        RUN=ALIGNMENT,
    )
    return results
