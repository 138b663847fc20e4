"""Linear layers with weights of each task's own: three passes, one kernel.

`y[n, o] = sum over i of x[n, i] w[o, i] + b[o]` and its two backward passes are the same product under other strides:

    pass              m   n   k   left[m, k]   right[k, n]
    forward           n   o   i   x[n, i]      w[o, i]
    backward-data     n   i   o   dy[n, o]     w[o, i]
    backward-weights  o   i   n   dy[n, o]     x[n, i]

so nothing is transposed in memory. The bias is added before the store; its derivative is the sum of `left` over k,
which the first programs along n have read anyway. What lies outside the product is read as zero and never stored.
"""

import triton
import triton.language as tl
from metagan_fast.kernels.tiles import adjacent, launch, locate, multiply, precision_of
from torch import Tensor


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
    M,
    N,
    K,
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
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        wide = k.to(tl.int64)
        a = tl.load(left_rows + wide[None, :] * left_k, (m < M)[:, None] & (k < K)[None, :], other=0.0)
        b = tl.load(right_columns + wide[:, None] * right_k, (k < K)[:, None] & (n < N)[None, :], other=0.0)
        sums = multiply(a, b, sums, PRECISION)
        if row_sums is not None:
            of_left += a.to(tl.float32)
    if bias is not None:
        sums += tl.load(bias + task * bias_task + n, n < N, other=0.0).to(tl.float32)[None, :]
    place = out + task * out_task + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(place, sums.to(out.dtype.element_ty), (m < M)[:, None] & (n < N)[None, :])
    if row_sums is not None:  # noqa: SIM102 (decided when compiled, the next one when run)
        if is_first:
            total = tl.sum(of_left, 1).to(row_sums.dtype.element_ty)
            tl.store(row_sums + task * row_sums_task + m, total, m < M)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str = "ieee") -> Tensor:
    """Return `[tasks, n, out]` for `x [tasks, n, in]`, `weight [tasks, out, in]`, `bias [tasks, out]`."""
    x, weight = adjacent(x), adjacent(weight)
    bias = None if bias is None else adjacent(bias)
    tasks, rows, inputs = x.shape
    outputs = weight.shape[1]
    y = x.new_empty(tasks, rows, outputs)
    _product(y, x, (inputs, 1), weight, (1, inputs), inputs, bias, None, precision)
    return y


def backward_data(dy: Tensor, weight: Tensor, precision: str = "ieee") -> Tensor:
    """Return the derivative `[tasks, n, in]` by `x`."""
    dy, weight = adjacent(dy), adjacent(weight)
    tasks, rows, outputs = dy.shape
    inputs = weight.shape[2]
    dx = dy.new_empty(tasks, rows, inputs)
    _product(dx, dy, (outputs, 1), weight, (inputs, 1), outputs, None, None, precision)
    return dx


def backward_weights(dy: Tensor, x: Tensor, precision: str = "ieee") -> tuple[Tensor, Tensor]:
    """Return the derivatives by the weights, `[tasks, out, in]`, and by the bias, `[tasks, out]`."""
    dy, x = adjacent(dy), adjacent(x)
    tasks, rows, outputs = dy.shape
    inputs = x.shape[2]
    dw, db = dy.new_empty(tasks, outputs, inputs), dy.new_empty(tasks, outputs)
    _product(dw, dy, (1, outputs), x, (inputs, 1), rows, None, db, precision)
    return dw, db


def _product(
    out: Tensor,
    left: Tensor,
    left_strides: tuple[int, int],
    right: Tensor,
    right_strides: tuple[int, int],
    terms: int,
    bias: Tensor | None,
    row_sums: Tensor | None,
    precision: str,
) -> None:
    tasks, m, n = out.shape
    launch(
        task_linear_kernel,
        tasks,
        (m, n, terms),
        (
            *(out, out.stride(0), left, left.stride(0), *left_strides, right, right.stride(0), *right_strides),
            *(bias, 0 if bias is None else bias.stride(0), row_sums, 0 if row_sums is None else row_sums.stride(0)),
        ),
        PRECISION=precision_of(left, precision),
    )
