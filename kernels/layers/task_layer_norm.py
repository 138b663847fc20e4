"""Per-task layer normalisation; `executors/torch/layers/task_layer_norm.py` has the formulas.

For sums over an input's elements, a program owns one input and reads it several times: once for each sum that depends
on an earlier one, and once to write. For sums over a task's inputs, a program owns a block of the task's columns and
visits the inputs in order. So every element is written once, every sum has a fixed order, and there are no atomics.
Accumulators are float32, or float64 for float64 operands, one a lane until the end of a read.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from metagan_fast.kernels.blocks import number, read, write
from metagan_fast.kernels.layers import tiles
from metagan_fast.kernels.layers.tiles import adjacent
from metagan_fast.kernels.updates.formulas import divide, square_root
from torch import Tensor

LARGEST_ROW_BLOCK, LARGEST_COLUMN_BLOCK = 4096, 1024
"""Elements of an input, and columns of a task, that a program holds at once (docs/tuning.md#gpu-layer-norm-blocks)."""


@triton.jit
def mean_of(sums, K, A: tl.constexpr):
    """Return the mean of K elements from their sums, one a lane."""
    return divide(tl.sum(sums, 0), number(K, A))


@triton.jit
def statistics_of(statistics, i):
    """Return the mean and `r` of input `i`."""
    return tl.load(statistics + 2 * i), tl.load(statistics + 2 * i + 1)


@triton.jit
def task_layer_norm_forward_kernel(
    out,
    out_task,
    statistics,
    x,
    x_task,
    weight,
    weight_task,
    bias,
    bias_task,
    inputs,
    K,
    eps: tl.float64,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    task, row = i // inputs, i % inputs
    lanes = tl.arange(0, BLOCK)
    first = task * x_task + row * K
    sums = tl.zeros((BLOCK,), A)
    for start in range(0, K, BLOCK):
        sums += read(x, first + start, lanes, lanes < K - start, A)
    mean = mean_of(sums, K, A)
    sums = tl.zeros((BLOCK,), A)
    for start in range(0, K, BLOCK):
        mask = lanes < K - start
        centred = tl.where(mask, read(x, first + start, lanes, mask, A) - mean, 0.0)
        sums += centred * centred
    scale = divide(number(1.0, A), square_root(mean_of(sums, K, A) + number(eps, A)))
    tl.store(statistics + 2 * i, mean)
    tl.store(statistics + 2 * i + 1, scale)
    for start in range(0, K, BLOCK):
        mask = lanes < K - start
        y = (read(x, first + start, lanes, mask, A) - mean) * scale
        y = y * read(weight, task * weight_task + start, lanes, mask, A)
        if bias is not None:
            y += read(bias, task * bias_task + start, lanes, mask, A)
        write(out, task * out_task + row * K + start, lanes, mask, y)


@triton.jit
def task_layer_norm_backward_data_kernel(
    out,
    out_task,
    derivative,
    derivative_task,
    x,
    x_task,
    weight,
    weight_task,
    statistics,
    inputs,
    K,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    task, row = i // inputs, i % inputs
    lanes = tl.arange(0, BLOCK)
    dy, first = derivative + task * derivative_task + row * K, x + task * x_task + row * K
    weights = weight + task * weight_task
    mean, scale = statistics_of(statistics, i)
    sums, along = tl.zeros((BLOCK,), A), tl.zeros((BLOCK,), A)
    for start in range(0, K, BLOCK):
        mask = lanes < K - start
        g = read(dy, start, lanes, mask, A) * read(weights, start, lanes, mask, A)
        sums += g
        along += g * ((read(first, start, lanes, mask, A) - mean) * scale)
    mean_g, along_g = mean_of(sums, K, A), mean_of(along, K, A)
    for start in range(0, K, BLOCK):
        mask = lanes < K - start
        g = read(dy, start, lanes, mask, A) * read(weights, start, lanes, mask, A)
        normalised = (read(first, start, lanes, mask, A) - mean) * scale
        dx = scale * (g - mean_g - normalised * along_g)
        write(out, task * out_task + row * K + start, lanes, mask, dx)


@triton.jit
def task_layer_norm_backward_weights_kernel(
    weight_out,
    weight_out_task,
    bias_out,
    bias_out_task,
    derivative,
    derivative_task,
    x,
    x_task,
    statistics,
    inputs,
    K,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(K, BLOCK)
    task = (tl.program_id(0) // blocks).to(tl.int64)
    start = tl.program_id(0) % blocks * BLOCK
    lanes = tl.arange(0, BLOCK)
    mask = lanes < K - start
    dw, db = tl.zeros((BLOCK,), A), tl.zeros((BLOCK,), A)
    for row in range(inputs):
        mean, scale = statistics_of(statistics, task * inputs + row)
        at = tl.full((), row, tl.int64) * K + start
        dy = read(derivative, task * derivative_task + at, lanes, mask, A)
        dw += dy * ((read(x, task * x_task + at, lanes, mask, A) - mean) * scale)
        db += dy
    write(weight_out, task * weight_out_task + start, lanes, mask, dw)
    write(bias_out, task * bias_out_task + start, lanes, mask, db)


@triton.jit
def task_layer_norm_backward_twice_kernel(
    derivative_out,
    derivative_out_task,
    x_out,
    x_out_task,
    means,
    cotangent,
    cotangent_task,
    derivative,
    derivative_task,
    x,
    x_task,
    weight,
    weight_task,
    statistics,
    inputs,
    K,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store in `means`, for the derivative by the weights, the means of `u` and of `u x^` for each input."""
    i = tl.program_id(0).to(tl.int64)
    task, row = i // inputs, i % inputs
    lanes = tl.arange(0, BLOCK)
    dy, first = derivative + task * derivative_task + row * K, x + task * x_task + row * K
    cotangents, weights = cotangent + task * cotangent_task + row * K, weight + task * weight_task
    mean, scale = statistics_of(statistics, i)
    sums_u, sums_g = tl.zeros((BLOCK,), A), tl.zeros((BLOCK,), A)
    sums_along_u, sums_along_g = tl.zeros((BLOCK,), A), tl.zeros((BLOCK,), A)
    for start in range(0, K, BLOCK):
        mask = lanes < K - start
        u = read(cotangents, start, lanes, mask, A)
        g = read(dy, start, lanes, mask, A) * read(weights, start, lanes, mask, A)
        normalised = (read(first, start, lanes, mask, A) - mean) * scale
        sums_u += u
        sums_g += g
        sums_along_u += u * normalised
        sums_along_g += g * normalised
    mean_u, mean_g = mean_of(sums_u, K, A), mean_of(sums_g, K, A)
    along_u, along_g = mean_of(sums_along_u, K, A), mean_of(sums_along_g, K, A)
    tl.store(means + 2 * i, mean_u)
    tl.store(means + 2 * i + 1, along_u)
    products = tl.zeros((BLOCK,), A)
    for start in range(0, K, BLOCK):
        mask = lanes < K - start
        u = read(cotangents, start, lanes, mask, A)
        g = read(dy, start, lanes, mask, A) * read(weights, start, lanes, mask, A)
        products += tl.where(mask, (u - mean_u) * (g - mean_g), 0.0)
    of_scale = mean_of(products, K, A) - 3.0 * along_u * along_g
    for start in range(0, K, BLOCK):
        mask = lanes < K - start
        w = read(weights, start, lanes, mask, A)
        u = read(cotangents, start, lanes, mask, A) - mean_u
        g = read(dy, start, lanes, mask, A) * w - mean_g
        normalised = (read(first, start, lanes, mask, A) - mean) * scale
        ddy = w * (scale * (u - normalised * along_u))
        dx = -scale * scale * (along_g * u + along_u * g + of_scale * normalised)
        write(derivative_out, task * derivative_out_task + row * K + start, lanes, mask, ddy)
        write(x_out, task * x_out_task + row * K + start, lanes, mask, dx)


@triton.jit
def task_layer_norm_backward_twice_weights_kernel(
    out,
    out_task,
    cotangent,
    cotangent_task,
    derivative,
    derivative_task,
    x,
    x_task,
    statistics,
    means,
    inputs,
    K,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(K, BLOCK)
    task = (tl.program_id(0) // blocks).to(tl.int64)
    start = tl.program_id(0) % blocks * BLOCK
    lanes = tl.arange(0, BLOCK)
    mask = lanes < K - start
    dw = tl.zeros((BLOCK,), A)
    for row in range(inputs):
        i = task * inputs + row
        mean, scale = statistics_of(statistics, i)
        mean_u, along_u = statistics_of(means, i)
        at = tl.full((), row, tl.int64) * K + start
        u = read(cotangent, task * cotangent_task + at, lanes, mask, A)
        normalised = (read(x, task * x_task + at, lanes, mask, A) - mean) * scale
        of_u = scale * (u - mean_u - normalised * along_u)
        dw += read(derivative, task * derivative_task + at, lanes, mask, A) * of_u
    write(out, task * out_task + start, lanes, mask, dw)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """Return the layer norm `[tasks, n, k]` of `x` under `weight` and `bias [tasks, k]`, and the statistics."""
    x, weight = adjacent(x), adjacent(weight)
    bias = None if bias is None else adjacent(bias)
    y, statistics = x.new_empty(*x.shape), _new_statistics(x)
    operands = (y, y.stride(0), statistics, *_with_strides(x, weight, bias))
    _rows(task_layer_norm_forward_kernel, x, (*operands, *x.shape[1:], eps))
    return y, statistics


def backward_data(dy: Tensor, x: Tensor, weight: Tensor, statistics: Tensor, eps: float) -> Tensor:
    """Return the gradient by `x`, `[tasks, n, k]`."""
    dy, x, weight = adjacent(dy), adjacent(x), adjacent(weight)
    dx = x.new_empty(*x.shape)
    operands = (*_with_strides(dx, dy, x, weight), statistics.contiguous())
    _rows(task_layer_norm_backward_data_kernel, x, (*operands, *x.shape[1:]))
    return dx


def backward_weights(dy: Tensor, x: Tensor, statistics: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the gradients by weights and bias, `[tasks, k]` each."""
    dy, x = adjacent(dy), adjacent(x)
    tasks, _, k = x.shape
    dw, db = x.new_empty(tasks, k), x.new_empty(tasks, k)
    operands = (*_with_strides(dw, db, dy, x), statistics.contiguous())
    _columns(task_layer_norm_backward_weights_kernel, x, (*operands, *x.shape[1:]))
    return dw, db


def backward_twice(
    u: Tensor, dy: Tensor, x: Tensor, weight: Tensor, statistics: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the derivatives of `<u, backward_data(dy, x, weight)>` by `dy`, `x` and `weight`; two launches."""
    u, dy, x, weight, statistics = adjacent(u), adjacent(dy), adjacent(x), adjacent(weight), statistics.contiguous()
    ddy, dx, dw, means = (
        x.new_empty(*x.shape),
        x.new_empty(*x.shape),
        x.new_empty(x.shape[0], x.shape[2]),
        _new_statistics(x),
    )
    operands = (*_with_strides(ddy, dx), means, *_with_strides(u, dy, x, weight), statistics)
    _rows(task_layer_norm_backward_twice_kernel, x, (*operands, *x.shape[1:]))
    operands = (*_with_strides(dw, u, dy, x), statistics, means)
    _columns(task_layer_norm_backward_twice_weights_kernel, x, (*operands, *x.shape[1:]))
    return ddy, dx, dw


def _new_statistics(x: Tensor) -> Tensor:
    """Return an uninitialised tensor `[tasks, n, 2]` in the dtype of sums."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.empty(*x.shape[:2], 2, dtype=dtype, device=x.device)


def _with_strides(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Return each tensor followed by its stride between tasks."""
    return tuple(x for tensor in tensors for x in (tensor, 0 if tensor is None else tensor.stride(0)))


def _rows(kernel: Any, x: Tensor, arguments: tuple[Any, ...]) -> None:
    """Launch one program an input."""
    block = min(LARGEST_ROW_BLOCK, triton.next_power_of_2(x.shape[2]))
    _launch(kernel, x, x.shape[0] * x.shape[1], block, arguments)


def _columns(kernel: Any, x: Tensor, arguments: tuple[Any, ...]) -> None:
    """Launch one program for each task and block of columns."""
    block = min(LARGEST_COLUMN_BLOCK, triton.next_power_of_2(x.shape[2]))
    _launch(kernel, x, x.shape[0] * triton.cdiv(x.shape[2], block), block, arguments)


def _launch(kernel: Any, x: Tensor, programs: int, block: int, arguments: tuple[Any, ...]) -> None:
    if max(x.shape[1:]) >= 2**31 - LARGEST_ROW_BLOCK:
        raise ValueError(
            f"expected fewer than 2**31 - {LARGEST_ROW_BLOCK} elements an input, got {list(x.shape)}; normalise over "
            "smaller inputs"
        )
    if programs:
        arithmetic = tl.float64 if x.dtype == torch.float64 else tl.float32
        tiles.start(kernel, programs, arguments, {"A": arithmetic, "BLOCK": block}, options_for(block))


def options_for(block: int) -> dict[str, Any]:
    """Return the compile options of a kernel: 8 elements a thread."""
    return {**tiles.OPTIONS, "num_warps": max(1, block // 256)}
