"""`adam_step`, optionally fused with gradient clipping and resetting."""

from typing import Any

import triton
import triton.language as tl
from metagan_fast.kernels.blocks import locate, number, rate_at, read, read_clipped, write
from metagan_fast.kernels.updates import _launch
from metagan_fast.kernels.updates.clip_grad_norm import Clipping
from metagan_fast.kernels.updates.formulas import adam_update
from torch import Tensor

from metagan_fast._native.buffers import inputs, new_results
from metagan_fast.flat import ALIGNMENT
from metagan_fast.ops import reference


@triton.jit
def adam_step_kernel(
    params,
    params_stride,
    grads,
    grads_stride,
    exp_avg,
    exp_avg_stride,
    exp_avg_sq,
    exp_avg_sq_stride,
    params_out,
    params_out_stride,
    exp_avg_out,
    exp_avg_out_stride,
    exp_avg_sq_out,
    exp_avg_sq_out_stride,
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
    sums,
    parts,
    max_norm: tl.float64,
    corrections,
    A: tl.constexpr,
    FORM: tl.constexpr,
    DECAY: tl.constexpr,
    DECOUPLED: tl.constexpr,
    CLIP: tl.constexpr,
    ZERO_GRADS: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, start, lanes, mask = locate(numel, BLOCK)
    rate = rate_at(lr, rates, rates_stride, segments, segment_stride, row, start, lanes, mask, A, FORM, RUN)
    if CLIP:
        grad = read_clipped(grads, grads_stride, numel, row, start, lanes, mask, sums, parts, max_norm, A, BLOCK)
    else:
        grad = read(grads, row * grads_stride + start, lanes, mask, A)
    if corrections is not None:
        inverse_bias1, inverse_bias2 = tl.load(corrections), tl.load(corrections + 1)
    param, mean, mean_sq = adam_update(
        read(params, row * params_stride + start, lanes, mask, A),
        grad,
        read(exp_avg, row * exp_avg_stride + start, lanes, mask, A),
        read(exp_avg_sq, row * exp_avg_sq_stride + start, lanes, mask, A),
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
    write(params_out, row * params_out_stride + start, lanes, mask, param)
    write(exp_avg_out, row * exp_avg_out_stride + start, lanes, mask, mean)
    write(exp_avg_sq_out, row * exp_avg_sq_out_stride + start, lanes, mask, mean_sq)
    if ZERO_GRADS:
        write(grads, row * grads_stride + start, lanes, mask, tl.zeros((BLOCK,), A))


def adam_step(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float | Tensor,
    *,
    step: int | Tensor,
    betas: tuple[float, float],
    eps: float,
    eps_root: float,
    weight_decay: float,
    decoupled: bool,
    layout: Any,
    out: tuple[Tensor, ...] | None,
    max_norm: float | None = None,
    zero_grads: bool = False,
) -> tuple[Tensor, ...]:
    """Run `adam_step`; `max_norm` and `zero_grads` as in `sgd_step`."""
    params, grads, exp_avg, exp_avg_sq = inputs(params, grads, exp_avg, exp_avg_sq)
    results = out or new_results(params, 3)
    rate = _launch.learning_rate(lr, params, layout)
    clipping = Clipping.of(grads, max_norm, overwritten=zero_grads)
    corrections = None
    if isinstance(step, Tensor):  # inverse bias corrections on the device, not read by the host
        corrections, step = step.contiguous(), 1
    _launch.launch(
        adam_step_kernel,
        _launch.blocks_of(params),
        params,
        *_launch.matrices(params, grads, exp_avg, exp_avg_sq, *results),
        params.shape[-1],
        *rate.operands,
        *adam_numbers(step, betas, eps, eps_root, weight_decay),
        *clipping,
        corrections,
        FORM=rate.form,
        DECAY=weight_decay != 0,
        DECOUPLED=bool(decoupled),
        CLIP=max_norm is not None,
        ZERO_GRADS=zero_grads,
        RUN=ALIGNMENT,
    )
    return results


def adam_numbers(
    step: int, betas: tuple[float, float], eps: float, eps_root: float, weight_decay: float
) -> tuple[float, ...]:
    """Return the scalar arguments of `adam_update`, in its order."""
    beta1, beta2 = betas
    corrections = reference.inverse_bias_corrections(step, betas)
    return tuple(map(float, (beta1, 1 - beta1, beta2, 1 - beta2, *corrections, eps, eps_root, weight_decay)))
