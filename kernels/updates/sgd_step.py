"""`sgd_step`, optionally fused with gradient clipping and resetting."""

from typing import Any

import triton
import triton.language as tl
from metagan_fast.kernels.blocks import locate, number, rate_at, read, read_clipped, write
from metagan_fast.kernels.updates import _launch
from metagan_fast.kernels.updates.clip_grad_norm import Clipping
from metagan_fast.kernels.updates.formulas import sgd_momentum_update, sgd_update
from torch import Tensor

from metagan_fast._native.buffers import inputs, new_results
from metagan_fast.flat import ALIGNMENT


@triton.jit
def sgd_step_kernel(
    params,
    params_stride,
    grads,
    grads_stride,
    buffer,
    buffer_stride,
    params_out,
    params_out_stride,
    buffer_out,
    buffer_out_stride,
    numel,
    lr: tl.float64,
    rates,
    rates_stride,
    segments,
    segment_stride,
    momentum: tl.float64,
    one_minus_dampening: tl.float64,
    weight_decay: tl.float64,
    sums,
    parts,
    max_norm: tl.float64,
    A: tl.constexpr,
    FORM: tl.constexpr,
    MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
    DECAY: tl.constexpr,
    CLIP: tl.constexpr,
    ZERO_GRADS: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, start, lanes, mask = locate(numel, BLOCK)
    rate = rate_at(lr, rates, rates_stride, segments, segment_stride, row, start, lanes, mask, A, FORM, RUN)
    param = read(params, row * params_stride + start, lanes, mask, A)
    if CLIP:
        grad = read_clipped(grads, grads_stride, numel, row, start, lanes, mask, sums, parts, max_norm, A, BLOCK)
    else:
        grad = read(grads, row * grads_stride + start, lanes, mask, A)
    decay = number(weight_decay, A)
    if MOMENTUM:
        velocity = read(buffer, row * buffer_stride + start, lanes, mask, A)
        param, velocity = sgd_momentum_update(
            param, grad, velocity, rate, number(momentum, A), number(one_minus_dampening, A), decay, DECAY, NESTEROV
        )
        write(buffer_out, row * buffer_out_stride + start, lanes, mask, velocity)
    else:
        param = sgd_update(param, grad, rate, decay, DECAY)
    write(params_out, row * params_out_stride + start, lanes, mask, param)
    if ZERO_GRADS:
        write(grads, row * grads_stride + start, lanes, mask, tl.zeros((BLOCK,), A))


def sgd_step(
    params: Tensor,
    grads: Tensor,
    lr: float | Tensor,
    *,
    momentum_buffer: Tensor | None,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    layout: Any,
    out: tuple[Tensor, ...] | None,
    max_norm: float | None = None,
    zero_grads: bool = False,
) -> tuple[Tensor, ...]:
    """Run `sgd_step`; with `max_norm` on clipped gradients, which are not stored.

    With `zero_grads` the gradients, whose rows must be contiguous, are overwritten with zeros.
    """
    params, grads, momentum_buffer = inputs(params, grads, momentum_buffer if momentum != 0 else None)
    results = out or new_results(params, 1 if momentum == 0 else 2)
    rate = _launch.learning_rate(lr, params, layout)
    clipping = Clipping.of(grads, max_norm, overwritten=zero_grads)
    _launch.launch(
        sgd_step_kernel,
        _launch.blocks_of(params),
        params,
        *_launch.matrices(params, grads, momentum_buffer, results[0], results[1] if momentum != 0 else None),
        params.shape[-1],
        *rate.operands,
        float(momentum),
        float(1 - dampening),
        float(weight_decay),
        *clipping,
        FORM=rate.form,
        MOMENTUM=momentum != 0,
        NESTEROV=bool(nesterov),
        DECAY=weight_decay != 0,
        CLIP=max_norm is not None,
        ZERO_GRADS=zero_grads,
        RUN=ALIGNMENT,
    )
    return results
