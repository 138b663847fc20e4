"""The fused ops behind the signatures of `reference`.

Each function takes an op's validated tensors (`[numel]` or `[rows, numel]`, any strides) and writes to `out`,
which may hold some of the inputs, or to new tensors when `out` is None. It returns what it wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._native.extension import DTYPES, _core, threads
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
    rate, _keep = _learning_rate(lr, params, layout)
    run(
        "sgd_step",
        params,
        matrix(params),
        matrix(grads),
        _optional_matrix(momentum_buffer),
        matrix(results[0]),
        _optional_matrix(results[1] if momentum != 0 else None),
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
    rate, _keep = _learning_rate(lr, params, layout)
    corrections = [_number(x, params) for x in reference.inverse_bias_corrections(step, betas)]
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
    rate, _keep = _learning_rate(lr, params, layout)
    run(
        "rmsprop_step",
        params,
        matrix(params),
        matrix(grads),
        matrix(square_avg),
        _optional_matrix(momentum_buffer),
        _optional_matrix(grad_avg),
        matrix(results[0]),
        matrix(results[1]),
        _optional_matrix(results[2] if momentum != 0 else None),
        _optional_matrix(results[-1] if centered else None),
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
    combine = _weights(weights, initial)
    size, _keep = _number(step_size, initial)
    run(
        "reptile_interpolate",
        adapted,
        initial.data_ptr(),
        matrix(adapted),
        combine.data_ptr() if combine is not None else 0,
        results[0].data_ptr(),
        size,
    )
    return results


def reptile_gradient(
    initial: Tensor, adapted: Tensor, *, weights: Tensor | None, out: tuple[Tensor, ...] | None
) -> tuple[Tensor, ...]:
    initial, adapted = inputs(initial, adapted)
    results = out or new_results(initial, 1)
    combine = _weights(weights, initial)
    run(
        "reptile_gradient",
        adapted,
        initial.data_ptr(),
        matrix(adapted),
        combine.data_ptr() if combine is not None else 0,
        results[0].data_ptr(),
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
    combine = _weights(weights, params)
    rate, _keep = _learning_rate(lr, params, layout)
    run(
        "meta_adam_step",
        adapted,
        params.data_ptr(),
        matrix(adapted),
        combine.data_ptr() if combine is not None else 0,
        exp_avg.data_ptr(),
        exp_avg_sq.data_ptr(),
        results[0].data_ptr(),
        results[1].data_ptr(),
        results[2].data_ptr(),
        rate,
        *betas,
        *reference.inverse_bias_corrections(step, betas),
        eps,
        weight_decay,
        decoupled,
    )
    return results


SHORT_ROW = 8192
"""Elements at most of a row that a GPU clips in one launch, in which one multiprocessor does all of the row.

In two launches others would help, but a launch costs 2 to 4 microseconds. This is the largest power of two that one
multiprocessor of an A100, H100 or H200 reads and writes in float32 within 4, at its share of the device's bandwidth: a
model (`benchmarks/gpu_model.py`), not a measurement. `csrc/cuda/clip_grad_norm.cu` has the number, too.
"""


def clip_grad_norm(grads: Tensor, max_norm: float, *, out: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    (grads,) = inputs(grads)
    (clipped,) = out or new_results(grads, 1)
    norms = torch.empty(grads.shape[:-1], dtype=arithmetic(grads.dtype), device=grads.device)
    arguments = matrix(grads), matrix(clipped), norms.data_ptr(), max_norm
    if grads.is_cuda:
        rows, columns = sizes(grads)
        parts = _core.cuda_clip_grad_norm_parts(columns)
        sums = torch.empty(rows * parts, dtype=torch.float64, device=grads.device)
        run("clip_grad_norm", grads, *arguments, sums.data_ptr())
    else:
        run("clip_grad_norm", grads, *arguments)
    return clipped, norms


def ema_update(average: Tensor, params: Tensor, decay: float, *, out: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    average, params = inputs(average, params)
    results = out or new_results(average, 1)
    run("ema_update", average, matrix(average), matrix(params), matrix(results[0]), decay)
    return results


def run(op: str, like: Tensor, *arguments: Any) -> None:
    """Run an op over buffers like `like`: on a GPU in the current stream, else in the threads of this call."""
    if not like.is_cuda:
        getattr(_core, op)(DTYPES[like.dtype], *sizes(like), threads(), *arguments)
        return
    device = like.device
    with torch.cuda.device(device):
        queue = (device.index, torch.cuda.current_stream(device).cuda_stream)
        getattr(_core, f"cuda_{op}")(DTYPES[like.dtype], *sizes(like), queue, *arguments)


def sizes(x: Tensor) -> tuple[int, int]:
    """Return rows and columns."""
    shape = x.shape
    return (shape[0] if len(shape) == 2 else 1), shape[-1]


def matrix(x: Tensor) -> tuple[int, int]:
    """Return address and row stride."""
    return x.data_ptr(), x.stride(0) if x.ndim == 2 else 0


def _optional_matrix(x: Tensor | None) -> tuple[int, int] | None:
    return None if x is None else matrix(x)


def inputs(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Return the tensors with adjacent elements in each row; autograd hands out expanded gradients."""
    return tuple(x if x is None or x.stride(-1) == 1 or x.shape[-1] < 2 else x.contiguous() for x in tensors)


def new_results(like: Tensor, count: int) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(like, memory_format=torch.contiguous_format) for _ in range(count))


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _weights(weights: Tensor | None, like: Tensor) -> Tensor | None:
    return None if weights is None else weights.to(arithmetic(like.dtype)).contiguous()


def _number(x: float | Tensor, like: Tensor) -> tuple[float | tuple[int], Tensor | None]:
    """Return a number as the kernels take it, and what must outlive the call: a tensor is read when they run."""
    if not isinstance(x, Tensor):
        return float(x), None
    if x.device != like.device:
        return x.item(), None
    x = x.double()
    return (x.data_ptr(),), x


def _learning_rate(
    lr: float | Tensor, params: Tensor, layout: FlatLayout | None
) -> tuple[float | tuple[int, int, int, int, int, int], object]:
    """Return the learning rate as the kernels take it, and what must outlive the call."""
    if not isinstance(lr, Tensor):
        return lr, None
    if lr.device != params.device:  # 0-dim, on a CPU
        return lr.item(), None
    rate = lr.to(arithmetic(params.dtype))
    if rate.ndim == 0:
        return (rate.data_ptr(), 0, 0, 0, 0, 1), rate
    row_stride = rate.stride(0) if rate.ndim == 2 and rate.shape[0] > 1 else 0
    if layout is not None:
        ends = layout.segment_ends_on(rate.device)
        return (rate.data_ptr(), row_stride, rate.stride(-1), 0, ends.data_ptr(), ends.numel()), (rate, ends)
    if rate.shape[-1] == 1:
        return (rate.data_ptr(), row_stride, 0, 0, 0, 1), rate
    if rate.stride(-1) != 1:
        rate = rate.contiguous()
        row_stride = rate.stride(0) if row_stride else 0
    return (rate.data_ptr(), row_stride, 0, 1, 0, 1), rate


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
