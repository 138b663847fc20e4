"""Fused ops of the compiled extension, with the signatures of `reference`.

Each function takes an op's validated tensors (`[numel]` or `[rows, numel]`, any strides) and writes to `out`,
which may hold some of the inputs, or to new tensors when `out` is None. It returns the written tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._native.buffers import (
    address,
    arithmetic,
    arithmetic_weights,
    inputs,
    learning_rate,
    matrix,
    new_results,
    number,
    optional_matrix,
    run,
    sizes,
)
from .._native.extension import _core
from . import reference

if TYPE_CHECKING:
    from ..flat import FlatLayout


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
    layout: FlatLayout | None,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    params, grads, momentum_buffer = inputs(params, grads, momentum_buffer if momentum != 0 else None)
    results = out or new_results(params, 1 if momentum == 0 else 2)
    rate, _keep = learning_rate(lr, params, layout)
    run(
        "sgd_step",
        params,
        matrix(params),
        matrix(grads),
        optional_matrix(momentum_buffer),
        matrix(results[0]),
        optional_matrix(results[1] if momentum != 0 else None),
        rate,
        momentum,
        dampening,
        weight_decay,
        nesterov,
    )
    return results


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
    layout: FlatLayout | None,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    params, grads, exp_avg, exp_avg_sq = inputs(params, grads, exp_avg, exp_avg_sq)
    results = out or new_results(params, 3)
    rate, _keep = learning_rate(lr, params, layout)
    corrections = [number(x, params) for x in reference.inverse_bias_corrections(step, betas)]
    run(
        "adam_step",
        params,
        matrix(params),
        matrix(grads),
        matrix(exp_avg),
        matrix(exp_avg_sq),
        matrix(results[0]),
        matrix(results[1]),
        matrix(results[2]),
        rate,
        *betas,
        *(number for number, _ in corrections),
        eps,
        eps_root,
        weight_decay,
        decoupled,
    )
    return results


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
    layout: FlatLayout | None,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    params, grads, square_avg, momentum_buffer, grad_avg = inputs(
        params, grads, square_avg, momentum_buffer if momentum != 0 else None, grad_avg if centered else None
    )
    state = [x for x in (momentum_buffer, grad_avg) if x is not None]
    results = out or new_results(params, 2 + len(state))
    rate, _keep = learning_rate(lr, params, layout)
    run(
        "rmsprop_step",
        params,
        matrix(params),
        matrix(grads),
        matrix(square_avg),
        optional_matrix(momentum_buffer),
        optional_matrix(grad_avg),
        matrix(results[0]),
        matrix(results[1]),
        optional_matrix(results[2] if momentum != 0 else None),
        optional_matrix(results[-1] if centered else None),
        rate,
        alpha,
        eps,
        weight_decay,
        momentum,
    )
    return results


def reptile_interpolate(
    initial: Tensor,
    adapted: Tensor,
    step_size: float | Tensor,
    *,
    weights: Tensor | None,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    initial, adapted = inputs(initial, adapted)
    results = out or new_results(initial, 1)
    combine = arithmetic_weights(weights, initial)
    size, _keep = number(step_size, initial)
    run(
        "reptile_interpolate",
        adapted,
        address(initial),
        matrix(adapted),
        address(combine),
        address(results[0]),
        size,
    )
    return results


def reptile_gradient(
    initial: Tensor, adapted: Tensor, *, weights: Tensor | None, out: tuple[Tensor, ...] | None
) -> tuple[Tensor, ...]:
    initial, adapted = inputs(initial, adapted)
    results = out or new_results(initial, 1)
    combine = arithmetic_weights(weights, initial)
    run(
        "reptile_gradient",
        adapted,
        address(initial),
        matrix(adapted),
        address(combine),
        address(results[0]),
    )
    return results


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
    layout: FlatLayout | None,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    params, adapted, exp_avg, exp_avg_sq = inputs(params, adapted, exp_avg, exp_avg_sq)
    results = out or new_results(params, 3)
    combine = arithmetic_weights(weights, params)
    rate, _keep = learning_rate(lr, params, layout)
    run(
        "meta_adam_step",
        adapted,
        address(params),
        matrix(adapted),
        address(combine),
        address(exp_avg),
        address(exp_avg_sq),
        address(results[0]),
        address(results[1]),
        address(results[2]),
        rate,
        *betas,
        *reference.inverse_bias_corrections(step, betas),
        eps,
        weight_decay,
        decoupled,
    )
    return results


SHORT_ROW = 8192
"""Longest row, in elements, that a GPU clips in one launch, on one multiprocessor.

A second launch costs more than it saves up to this length (docs/tuning.md#clipping-rows-of-one-launch). The constant is
repeated in `csrc/cuda/clip_grad_norm.cu`.
"""


def clip_grad_norm(grads: Tensor, max_norm: float, *, out: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    (grads,) = inputs(grads)
    (clipped,) = out or new_results(grads, 1)
    norms = torch.empty(grads.shape[:-1], dtype=arithmetic(grads.dtype), device=grads.device)
    arguments = matrix(grads), matrix(clipped), address(norms), max_norm
    if grads.is_cuda:
        rows, columns = sizes(grads)
        parts = _core.cuda_clip_grad_norm_parts(columns)
        sums = torch.empty(rows * parts, dtype=torch.float64, device=grads.device)
        run("clip_grad_norm", grads, *arguments, address(sums))
    else:
        run("clip_grad_norm", grads, *arguments)
    return clipped, norms


def ema_update(average: Tensor, params: Tensor, decay: float, *, out: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    average, params = inputs(average, params)
    results = out or new_results(average, 1)
    run("ema_update", average, matrix(average), matrix(params), matrix(results[0]), decay)
    return results


OPS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    function.__name__: function
    for function in (
        sgd_step,
        adam_step,
        rmsprop_step,
        reptile_interpolate,
        reptile_gradient,
        meta_adam_step,
        clip_grad_norm,
        ema_update,
    )
}
