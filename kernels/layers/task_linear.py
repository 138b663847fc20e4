"""Per-task linear layers: three passes, one kernel.

`y[n, o] = sum over i of x[n, i] w[o, i] + b[o]` and its two backward passes are the same product under other strides:

    pass              m   n   k   left[m, k]   right[k, n]
    forward           n   o   i   x[n, i]      w[o, i]
    backward-data     n   i   o   dy[n, o]     w[o, i]
    backward-weights  o   i   n   dy[n, o]     x[n, i]

so nothing is transposed in memory. The bias is added before the store; its gradient is the sum of `left` over k, taken
from the tiles that the first programs along n load anyway. Elements outside the product are loaded as zero and never
stored.

The activation is applied before the store; if its derivative needs the pre-activation, that is stored too. The
backward passes multiply dy by the activation's derivative as they load it; the derivative is computed from the saved
tensor, which has dy's layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from metagan_fast.kernels.layers.activations import activate, slope_terms, through_activation
from metagan_fast.kernels.layers.tiles import (
    activation_constants,
    adjacent,
    launch,
    locate,
    multiply,
    new_outputs,
    precision_of,
    reload_tile,
    store_row_sums,
    with_stride,
    with_strides,
)
from torch import Tensor

if TYPE_CHECKING:
    from metagan_fast.executors.torch.layers.activations import Activation


@triton.jit
def task_linear_kernel(
    out,
    out_task,
    left,
    left_task,
    left_m,
    left_k,
    right,
    right_task,
    right_k,
    right_n,
    bias,
    bias_task,
    row_sums,
    row_sums_task,
    preactivation,
    saved,
    saved_task,
    slope,
    slope_task,
    slope_step,
    slope_sums,
    M,
    N,
    K,
    NAME: tl.constexpr,
    NUMBER: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    task, m, n, is_first = locate(M, N, BM, BN)
    left_rows = left + task * left_task + m.to(tl.int64)[:, None] * left_m
    right_columns = right + task * right_task + n.to(tl.int64)[None, :] * right_n
    sums = tl.zeros((BM, BN), tl.float32)
    if row_sums is not None:
        of_left = tl.zeros((BM, BK), tl.float32)
    if slope_sums is not None:
        of_slope = tl.zeros((BM, BK), tl.float32)
    p = 0.0
    if slope is not None:
        slopes = slope + task * slope_task
        if row_sums is not None:
            p = tl.load(slopes + m * slope_step, m < M, other=0.0).to(tl.float32)[:, None]
    if saved is not None:
        saved_rows = saved + task * saved_task + m.to(tl.int64)[:, None] * left_m
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        wide = k.to(tl.int64)
        a = tl.load(left_rows + wide[None, :] * left_k, (m < M)[:, None] & (k < K)[None, :], other=0.0)
        b = tl.load(right_columns + wide[:, None] * right_k, (k < K)[:, None] & (n < N)[None, :], other=0.0)
        if saved is not None:
            of_k = tl.load(saved_rows + wide[None, :] * left_k, (m < M)[:, None] & (k < K)[None, :], other=0.0)
            of_row = p
            if slope is not None and row_sums is None:
                of_row = tl.load(slopes + k * slope_step, k < K, other=0.0).to(tl.float32)[None, :]
            if slope_sums is not None:
                of_slope += slope_terms(a, of_k)
            a = through_activation(a, of_k, of_row, NAME, NUMBER)
        sums = multiply(a, b, sums, PRECISION)
        if row_sums is not None:
            if saved is None:
                again = (m < tl.where(is_first, M, 0))[:, None] & (k < K)[None, :]
                a = reload_tile(a, left_rows + wide[None, :] * left_k, again, PRECISION)
            of_left += a.to(tl.float32)
    if bias is not None:
        sums += tl.load(bias + task * bias_task + n, n < N, other=0.0).to(tl.float32)[None, :]
    offsets = task * out_task + m.to(tl.int64)[:, None] * N + n[None, :]
    if preactivation is not None:
        tl.store(preactivation + offsets, sums.to(preactivation.dtype.element_ty), (m < M)[:, None] & (n < N)[None, :])
    if saved is None:
        if slope is not None:
            p = tl.load(slopes + n * slope_step, n < N, other=0.0).to(tl.float32)[None, :]
        sums = activate(sums, p, NAME, NUMBER)
    tl.store(out + offsets, sums.to(out.dtype.element_ty), (m < M)[:, None] & (n < N)[None, :])
    if row_sums is not None:  # noqa: SIM102 (this test is compile-time, the next one run-time)
        if is_first:
            store_row_sums(row_sums + task * row_sums_task, of_left, m, M)
            if slope_sums is not None:
                store_row_sums(slope_sums + task * row_sums_task, of_slope, m, M)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    precision: str = "ieee",
    activation: Activation | None = None,
    slope: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return `[tasks, n, out]` for `x [tasks, n, in]`, `weight [tasks, out, in]`, `bias [tasks, out]`.

    If the activation saves its pre-activation, that is the second result; `slope [tasks, out]` is PReLU's.
    """
    x, weight = adjacent(x), adjacent(weight)
    tasks, rows, inputs = x.shape
    outputs = weight.shape[1]
    y, preactivation = new_outputs(x, activation, tasks, rows, outputs)
    _product(
        *(y, x, (inputs, 1), weight, (1, inputs), inputs, precision, activation),
        bias=bias,
        preactivation=preactivation,
        slope=slope,
    )
    return y if preactivation is None else (y, preactivation)


def backward_data(
    dy: Tensor,
    weight: Tensor,
    precision: str = "ieee",
    activation: Activation | None = None,
    saved: Tensor | None = None,
    slope: Tensor | None = None,
) -> Tensor:
    """Return the gradient by `x`, `[tasks, n, in]`; `saved` is the activation's saved tensor."""
    dy, weight = adjacent(dy), adjacent(weight)
    tasks, rows, outputs = dy.shape
    inputs = weight.shape[2]
    dx = dy.new_empty(tasks, rows, inputs)
    _product(
        *(dx, dy, (outputs, 1), weight, (inputs, 1), outputs, precision, activation),
        saved=saved,
        slope=slope,
    )
    return dx


def backward_weights(
    dy: Tensor,
    x: Tensor,
    precision: str = "ieee",
    activation: Activation | None = None,
    saved: Tensor | None = None,
    slope: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return the gradients by weights, `[tasks, out, in]`, bias and, if any, slopes, `[tasks, out]` each."""
    dy, x = adjacent(dy), adjacent(x)
    tasks, rows, outputs = dy.shape
    inputs = x.shape[2]
    dw, db = dy.new_empty(tasks, outputs, inputs), dy.new_empty(tasks, outputs)
    dslope = None if slope is None else dy.new_empty(tasks, outputs)
    _product(
        *(dw, dy, (1, outputs), x, (inputs, 1), rows, precision, activation),
        row_sums=db,
        saved=saved,
        slope=slope,
        slope_sums=dslope,
    )
    return (dw, db) if dslope is None else (dw, db, dslope)


def _product(
    out: Tensor,
    left: Tensor,
    left_strides: tuple[int, int],
    right: Tensor,
    right_strides: tuple[int, int],
    terms: int,
    precision: str,
    activation: Activation | None,
    *,
    bias: Tensor | None = None,
    row_sums: Tensor | None = None,
    preactivation: Tensor | None = None,
    saved: Tensor | None = None,
    slope: Tensor | None = None,
    slope_sums: Tensor | None = None,
) -> None:
    tasks, m, n = out.shape
    launch(
        task_linear_kernel,
        tasks,
        (m, n, terms),
        (
            *(out, out.stride(0), left, left.stride(0), *left_strides, right, right.stride(0), *right_strides),
            *(*with_stride(bias), *with_stride(row_sums), preactivation),
            *(*with_stride(saved), *with_strides(slope), slope_sums),
        ),
        **activation_constants(activation),
        PRECISION=precision_of(left, precision),
    )
