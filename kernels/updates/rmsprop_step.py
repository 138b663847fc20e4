"""`rmsprop_step`."""

from typing import Any

import triton
import triton.language as tl
from metagan_fast.kernels.blocks import locate, number, rate_at, read, write
from metagan_fast.kernels.updates import _launch
from metagan_fast.kernels.updates.formulas import rmsprop_update
from torch import Tensor

from metagan_fast._native.buffers import inputs, new_results
from metagan_fast.flat import ALIGNMENT


@triton.jit
def rmsprop_step_kernel(
    params,
    params_stride,
    grads,
    grads_stride,
    square_avg,
    square_avg_stride,
    buffer,
    buffer_stride,
    grad_avg,
    grad_avg_stride,
    params_out,
    params_out_stride,
    square_avg_out,
    square_avg_out_stride,
    buffer_out,
    buffer_out_stride,
    grad_avg_out,
    grad_avg_out_stride,
    numel,
    lr: tl.float64,
    rates,
    rates_stride,
    segments,
    segment_stride,
    alpha: tl.float64,
    one_minus_alpha: tl.float64,
    eps: tl.float64,
    weight_decay: tl.float64,
    momentum: tl.float64,
    A: tl.constexpr,
    FORM: tl.constexpr,
    DECAY: tl.constexpr,
    MOMENTUM: tl.constexpr,
    CENTERED: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, start, lanes, mask = locate(numel, BLOCK)
    rate = rate_at(lr, rates, rates_stride, segments, segment_stride, row, start, lanes, mask, A, FORM, RUN)
    velocity = tl.zeros((BLOCK,), A)
    mean = tl.zeros((BLOCK,), A)
    if MOMENTUM:
        velocity = read(buffer, row * buffer_stride + start, lanes, mask, A)
    if CENTERED:
        mean = read(grad_avg, row * grad_avg_stride + start, lanes, mask, A)
    param, mean_sq, velocity, mean = rmsprop_update(
        read(params, row * params_stride + start, lanes, mask, A),
        read(grads, row * grads_stride + start, lanes, mask, A),
        read(square_avg, row * square_avg_stride + start, lanes, mask, A),
        velocity,
        mean,
        rate,
        number(alpha, A),
        number(one_minus_alpha, A),
        number(eps, A),
        number(weight_decay, A),
        number(momentum, A),
        DECAY,
        MOMENTUM,
        CENTERED,
    )
    write(params_out, row * params_out_stride + start, lanes, mask, param)
    write(square_avg_out, row * square_avg_out_stride + start, lanes, mask, mean_sq)
    if MOMENTUM:
        write(buffer_out, row * buffer_out_stride + start, lanes, mask, velocity)
    if CENTERED:
        write(grad_avg_out, row * grad_avg_out_stride + start, lanes, mask, mean)


def rmsprop_step(
    params: Tensor,
    grads: Tensor,
    square_avg: Tensor,
    lr: float | Tensor,
    *,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    momentum_buffer: Tensor | None,
    centered: bool,
    grad_avg: Tensor | None,
    layout: Any,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    """Run `rmsprop_step`."""
    params, grads, square_avg, momentum_buffer, grad_avg = inputs(
        params, grads, square_avg, momentum_buffer if momentum != 0 else None, grad_avg if centered else None
    )
    results = out or new_results(params, 2 + (momentum != 0) + bool(centered))
    rate = _launch.learning_rate(lr, params, layout)
    _launch.launch(
        rmsprop_step_kernel,
        _launch.blocks_of(params),
        params,
        *_launch.matrices(params, grads, square_avg, momentum_buffer, grad_avg, *results[:2]),
        *_launch.matrices(results[2] if momentum != 0 else None, results[-1] if centered else None),
        params.shape[-1],
        *rate.operands,
        float(alpha),
        float(1 - alpha),
        float(eps),
        float(weight_decay),
        float(momentum),
        FORM=rate.form,
        DECAY=weight_decay != 0,
        MOMENTUM=momentum != 0,
        CENTERED=bool(centered),
        RUN=ALIGNMENT,
    )
    return results
