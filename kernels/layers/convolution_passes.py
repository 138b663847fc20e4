"""Three passes of per-task convolutions as implicit GEMM: products that do not materialise im2col.

A task's images `[n, c, h, w]` and weights `[o, c, kh, kw]` give three products; `pixel` indexes (image, row, column) of
the input or output, `tap` indexes (kernel row, kernel column):

    pass              m   n                k                left[m, k]   right[k, n]
    forward           o   output pixel     (c, tap)         weights      input under the tap
    backward-data     c   input pixel      (o, tap)         weights      derivative of the output over the tap
    backward-weights  o   (c, tap)         output pixel     derivative   input under the tap

A program computes an m x n tile of one task (`tiles.py`) and loops over k. Division splits a pixel index into image,
row and column, and a tap index into channel, kernel row and kernel column: once along m and n, in every step along k,
where the kernel's sizes are compile-time constants, so the divisions become multiplications. Tap (ky, kx) of output
(oy, ox) reads input `(oy stride - padding + ky dilation, ...)`. In backward-data, tap (ky, kx) of input (y, x) reads
output `((y + padding - ky dilation) / stride, ...)` if the division has no remainder: a gather, which writes every
element once. At stride s, 1 tap in s * s contributes. Lanes of taps on the padding, or with a remainder, are masked:
they read zero and add nothing to the sum.

Along n, adjacent lanes access adjacent pixels, or adjacent weights; along m, weights one row apart. The bias is added
before the store; its gradient is the sum of `left` over k in backward-weights, taken from the tiles that the first
programs along n load anyway. Activations are fused as in `task_linear.py`.

The names are a convolution's. The transposed convolution runs the same passes in other roles, so each of the first two
may end with a bias and an activation, or load its right operand through one; the last may do so for either operand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl
from metagan_fast.kernels.layers.activations import (
    activate,
    load_slopes,
    load_through_activation,
    slope_terms,
    through_activation,
)
from metagan_fast.kernels.layers.tiles import (
    activation_constants,
    launch,
    locate,
    multiply,
    precision_of,
    reload_tile,
    store_row_sums,
    with_stride,
    with_strides,
)
from torch import Tensor

if TYPE_CHECKING:
    from metagan_fast.executors.torch.layers.activations import Activation
    from metagan_fast.executors.torch.layers.task_layers import Convolution


OUTSIDE = tl.constexpr(-(2**30))  # image row or column of lanes outside the product; beyond any padding


@triton.jit
def split(number, ROWS, COLUMNS):
    """Return (number // (ROWS * COLUMNS), row, column)."""
    rest = number % (ROWS * COLUMNS)
    return number // (ROWS * COLUMNS), rest // COLUMNS, rest % COLUMNS


@triton.jit
def finish(out, preactivation, offsets, mask, sums, slopes, NAME: tl.constexpr, NUMBER: tl.constexpr):
    """Store the activation of the sums and, if it is saved, the pre-activation."""
    if preactivation is not None:
        tl.store(preactivation + offsets, sums.to(preactivation.dtype.element_ty), mask)
    tl.store(out + offsets, activate(sums, slopes, NAME, NUMBER).to(out.dtype.element_ty), mask)


@triton.jit
def task_convolution_forward_kernel(
    out,
    out_task,
    images,
    images_task,
    weight,
    weight_task,
    bias,
    bias_task,
    preactivation,
    saved,
    saved_task,
    slope,
    slope_task,
    slope_step,
    image_size,
    H,
    W,
    OH,
    OW,
    M,
    N,
    K,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SY: tl.constexpr,
    SX: tl.constexpr,
    PY: tl.constexpr,
    PX: tl.constexpr,
    DY: tl.constexpr,
    DX: tl.constexpr,
    NAME: tl.constexpr,
    NUMBER: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    task, m, n, _ = locate(M, N, BM, BN)
    images += task * images_task
    if saved is not None:
        saved += task * saved_task
    image, oy, ox = split(n, OH, OW)
    top, left = oy * SY - PY, ox * SX - PX
    corners = image.to(tl.int64) * image_size + (top * W + left)
    weight_rows = weight + task * weight_task + m.to(tl.int64)[:, None] * K
    sums = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        channel, ky, kx = split(k, KH, KW)
        a = tl.load(weight_rows + k[None, :], (m < M)[:, None] & (k < K)[None, :], other=0.0)
        taps = channel.to(tl.int64) * (H * W) + (ky * DY * W + kx * DX)
        y = top[None, :] + tl.where(k < K, ky * DY, OUTSIDE)[:, None]
        x = tl.where(n < N, left, OUTSIDE)[None, :] + (kx * DX)[:, None]
        mask = (y.to(tl.uint32) < H) & (x.to(tl.uint32) < W)  # as uint32, a negative index exceeds any size
        p = 0.0
        if saved is not None:
            p = load_slopes(slope, task * slope_task + (channel * slope_step)[:, None], (k < K)[:, None])
        b = load_through_activation(images, saved, corners[None, :] + taps[:, None], mask, p, NAME, NUMBER)
        sums = multiply(a, b, sums, PRECISION)
    if bias is not None:
        sums += tl.load(bias + task * bias_task + m, m < M, other=0.0).to(tl.float32)[:, None]
    plane = image.to(tl.int64)[None, :] * M + m[:, None]
    offsets = task * out_task + plane * (OH * OW) + (oy * OW + ox)[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    if saved is None:
        p = load_slopes(slope, task * slope_task + (m * slope_step)[:, None], (m < M)[:, None])
        finish(out, preactivation, offsets, mask, sums, p, NAME, NUMBER)
    else:
        tl.store(out + offsets, sums.to(out.dtype.element_ty), mask)


@triton.jit
def task_convolution_backward_data_kernel(
    out,
    out_task,
    derivative,
    derivative_task,
    weight,
    weight_task,
    bias,
    bias_task,
    preactivation,
    saved,
    saved_task,
    slope,
    slope_task,
    slope_step,
    image_size,
    H,
    W,
    OH,
    OW,
    M,
    N,
    K,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SY: tl.constexpr,
    SX: tl.constexpr,
    PY: tl.constexpr,
    PX: tl.constexpr,
    DY: tl.constexpr,
    DX: tl.constexpr,
    NAME: tl.constexpr,
    NUMBER: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    task, m, n, _ = locate(M, N, BM, BN)
    derivative += task * derivative_task
    if saved is not None:
        saved += task * saved_task
    image, y, x = split(n, H, W)
    planes = image.to(tl.int64) * image_size
    weight_rows = weight + task * weight_task + m.to(tl.int64)[:, None] * (KH * KW)
    sums = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        channel, ky, kx = split(k, KH, KW)
        columns = channel.to(tl.int64) * M * (KH * KW) + (ky * KW + kx)
        a = tl.load(weight_rows + columns[None, :], (m < M)[:, None] & (k < K)[None, :], other=0.0)
        down = y[None, :] + PY - ky[:, None] * DY
        right = x[None, :] + PX - kx[:, None] * DX
        mask = (k < K)[:, None] & (n < N)[None, :] & (down >= 0) & (right >= 0)
        if SY != 1:
            mask = mask & (down % SY == 0)
        if SX != 1:
            mask = mask & (right % SX == 0)
        oy, ox = down // SY, right // SX
        mask = mask & (oy < OH) & (ox < OW)
        channels = channel.to(tl.int64) * (OH * OW)
        p = 0.0
        if saved is not None:
            p = load_slopes(slope, task * slope_task + (channel * slope_step)[:, None], (k < K)[:, None])
        offsets = planes[None, :] + channels[:, None] + (oy * OW + ox)
        b = load_through_activation(derivative, saved, offsets, mask, p, NAME, NUMBER)
        sums = multiply(a, b, sums, PRECISION)
    if bias is not None:
        sums += tl.load(bias + task * bias_task + m, m < M, other=0.0).to(tl.float32)[:, None]
    plane = image.to(tl.int64)[None, :] * M + m[:, None]
    offsets = task * out_task + plane * (H * W) + (y * W + x)[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    if saved is None:
        p = load_slopes(slope, task * slope_task + (m * slope_step)[:, None], (m < M)[:, None])
        finish(out, preactivation, offsets, mask, sums, p, NAME, NUMBER)
    else:
        tl.store(out + offsets, sums.to(out.dtype.element_ty), mask)


@triton.jit
def task_convolution_backward_weights_kernel(
    out,
    out_task,
    bias_out,
    bias_out_task,
    derivative,
    derivative_task,
    saved,
    saved_task,
    images,
    images_task,
    images_saved,
    images_saved_task,
    slope,
    slope_task,
    slope_step,
    slope_out,
    image_size,
    H,
    W,
    OH,
    OW,
    M,
    N,
    K,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SY: tl.constexpr,
    SX: tl.constexpr,
    PY: tl.constexpr,
    PX: tl.constexpr,
    DY: tl.constexpr,
    DX: tl.constexpr,
    NAME: tl.constexpr,
    NUMBER: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    task, m, n, is_first = locate(M, N, BM, BN)
    derivative += task * derivative_task
    images += task * images_task
    if saved is not None:
        saved += task * saved_task
    if images_saved is not None:
        images_saved += task * images_saved_task
    channel, ky, kx = split(n, KH, KW)
    down, right = ky * DY - PY, kx * DX - PX
    taps = channel.to(tl.int64) * (H * W) + (down * W + right)
    rows = m.to(tl.int64) * (OH * OW)
    p, images_p = 0.0, 0.0
    if saved is not None:
        p = load_slopes(slope, task * slope_task + (m * slope_step)[:, None], (m < M)[:, None])
    if images_saved is not None:
        images_p = load_slopes(slope, task * slope_task + (channel * slope_step)[None, :], (n < N)[None, :])
    sums = tl.zeros((BM, BN), tl.float32)
    if bias_out is not None:
        of_derivative = tl.zeros((BM, BK), tl.float32)
    if slope_out is not None:
        of_slope = tl.zeros((BM, BK), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        image, oy, ox = split(k, OH, OW)
        columns = image.to(tl.int64) * M * (OH * OW) + (oy * OW + ox)
        offsets = rows[:, None] + columns[None, :]
        mask = (m < M)[:, None] & (k < K)[None, :]
        a = tl.load(derivative + offsets, mask, other=0.0)
        if saved is not None:
            of_k = tl.load(saved + offsets, mask, other=0.0)
            if slope_out is not None:
                of_slope += slope_terms(a, of_k)
            a = through_activation(a, of_k, p, NAME, NUMBER)
        corners = image.to(tl.int64) * image_size + (oy * SY * W + ox * SX)
        y = tl.where(k < K, oy * SY, OUTSIDE)[:, None] + down[None, :]
        x = (ox * SX)[:, None] + tl.where(n < N, right, OUTSIDE)[None, :]
        mask = (y.to(tl.uint32) < H) & (x.to(tl.uint32) < W)  # as uint32, a negative index exceeds any size
        b = load_through_activation(
            images, images_saved, taps[None, :] + corners[:, None], mask, images_p, NAME, NUMBER
        )
        sums = multiply(a, b, sums, PRECISION)
        if bias_out is not None:
            if saved is None:
                again = (m < tl.where(is_first, M, 0))[:, None] & (k < K)[None, :]
                a = reload_tile(a, derivative + offsets, again, PRECISION)
            of_derivative += a.to(tl.float32)
    pointers = out + task * out_task + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(pointers, sums.to(out.dtype.element_ty), (m < M)[:, None] & (n < N)[None, :])
    if bias_out is not None:  # noqa: SIM102 (this test is compile-time, the next one run-time)
        if is_first:
            store_row_sums(bias_out + task * bias_out_task, of_derivative, m, M)
            if slope_out is not None:
                store_row_sums(slope_out + task * bias_out_task, of_slope, m, M)


def launch_data_pass(
    kernel: Any,
    out: Tensor,
    right: Tensor,
    weight: Tensor,
    layer: Convolution,
    precision: str,
    activation: Activation | None,
    *,
    bias: Tensor | None = None,
    preactivation: Tensor | None = None,
    saved: Tensor | None = None,
    slope: Tensor | None = None,
) -> None:
    """Launch the forward or the backward-data kernel; it computes `out` from `right`, both `[tasks, n, channels, ...]`.

    With `saved`, of the layout of `right`, `right` is a gradient multiplied by the activation's derivative as it is
    loaded. Else the activation is applied to the result, and its input is stored in `preactivation` if that is given.
    """
    tasks, images, rows, height, width = out.shape
    launch(
        kernel,
        tasks,
        (rows, images * height * width, right.shape[2] * layer.kernel[0] * layer.kernel[1]),
        (
            *(*with_stride(out), *with_stride(right), *with_stride(weight)),
            *(*with_stride(bias), preactivation, *with_stride(saved), *with_strides(slope)),
            *(right.shape[2:].numel(), *layer.image, *layer.output),
        ),
        **_constants(layer, right, precision, activation),
    )


def launch_weight_pass(
    out: Tensor,
    derivative: Tensor,
    images: Tensor,
    layer: Convolution,
    precision: str,
    activation: Activation | None,
    *,
    bias_out: Tensor | None = None,
    saved: Tensor | None = None,
    images_saved: Tensor | None = None,
    slope: Tensor | None = None,
    slope_out: Tensor | None = None,
) -> None:
    """Launch backward-weights: `out [tasks, o, c, kh, kw]` from `derivative [tasks, n, o, oh, ow]` and `images`.

    `images` is `[tasks, n, c, h, w]`. With `saved` the derivative, with `images_saved` the images are multiplied by the
    activation's derivative as they are loaded. `bias_out` and `slope_out`, `[tasks, o]`, receive the gradients by bias
    and slopes.
    """
    tasks, outputs, channels = out.shape[:3]
    launch(
        task_convolution_backward_weights_kernel,
        tasks,
        (outputs, channels * layer.kernel[0] * layer.kernel[1], images.shape[1] * layer.output[0] * layer.output[1]),
        (
            *(*with_stride(out), *with_stride(bias_out), *with_stride(derivative), *with_stride(saved)),
            *(*with_stride(images), *with_stride(images_saved), *with_strides(slope), slope_out),
            *(images.shape[2:].numel(), *layer.image, *layer.output),
        ),
        **_constants(layer, derivative, precision, activation),
    )


def _constants(layer: Convolution, x: Tensor, precision: str, activation: Activation | None) -> dict[str, Any]:
    names = ("KH", "KW", "SY", "SX", "PY", "PX", "DY", "DX")
    numbers = (*layer.kernel, *layer.stride, *layer.padding, *layer.dilation)
    named = dict(zip(names, numbers, strict=True))
    return {**named, **activation_constants(activation), "PRECISION": precision_of(x, precision)}
