"""Convolutions with weights of each task's own, as products whose image operand is never unfolded in memory.

A task's images `[n, c, h, w]` and weights `[o, c, kh, kw]` make three products; `pixel` counts (image, row, column) of
one side, `tap` counts (kernel row, kernel column):

    pass              m   n                k                left[m, k]   right[k, n]
    forward           o   output pixel     (c, tap)         weights      input under the tap
    backward-data     c   input pixel      (o, tap)         weights      derivative of the output over the tap
    backward-weights  o   (c, tap)         output pixel     derivative   input under the tap

A program owns a tile of m by n of one task (`tiles.py`) and walks k. It splits a pixel's number into image, row and
column, and a tap's number into channel, kernel row and kernel column, by division: once for the numbers along m and n,
in every step for those along k; the kernel's sizes are compiled in, so these divisions are multiplications. Tap
(ky, kx) of output (oy, ox) reads input `(oy stride - padding + ky dilation, ...)`. Backwards, tap (ky, kx) of input
(y, x) reads output `((y + padding - ky dilation) / stride, ...)`, if the division leaves no rest: a gather, so that
every element is written once. At stride s that leaves 1 tap in s * s at work. A tap on the padding, or with a rest, is
a lane whose mask is off: it reads zero, and adds nothing to the sum.

Along n adjacent lanes are adjacent pixels, or adjacent weights, in memory; along m the weights lie a row apart. The
bias is added before the store; its derivative is the sum of `left` over k in backward-weights, which the first programs
along n have read anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl
from metagan_fast.kernels.tiles import adjacent, launch, locate, multiply, precision_of
from torch import Tensor

if TYPE_CHECKING:
    from metagan_fast._ops.task_layers import Convolution


@triton.jit
def split(number, ROWS, COLUMNS):
    """Return (number // (ROWS * COLUMNS), row, column)."""
    rest = number % (ROWS * COLUMNS)
    return number // (ROWS * COLUMNS), rest // COLUMNS, rest % COLUMNS


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
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    task, m, n, _ = locate(M, N, BM, BN)
    image, oy, ox = split(n, OH, OW)
    top, left = oy * SY - PY, ox * SX - PX
    corners = images + task * images_task + image.to(tl.int64) * image_size + (top * W + left)
    weight_rows = weight + task * weight_task + m.to(tl.int64)[:, None] * K
    sums = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        channel, ky, kx = split(k, KH, KW)
        a = tl.load(weight_rows + k[None, :], (m < M)[:, None] & (k < K)[None, :], other=0.0)
        taps = channel.to(tl.int64) * (H * W) + (ky * DY * W + kx * DX)
        y = top[None, :] + (ky * DY)[:, None]
        x = left[None, :] + (kx * DX)[:, None]
        mask = (k < K)[:, None] & (n < N)[None, :] & (y >= 0) & (y < H) & (x >= 0) & (x < W)
        b = tl.load(corners[None, :] + taps[:, None], mask, other=0.0)
        sums = multiply(a, b, sums, PRECISION)
    if bias is not None:
        sums += tl.load(bias + task * bias_task + m, m < M, other=0.0).to(tl.float32)[:, None]
    plane = image.to(tl.int64)[None, :] * M + m[:, None]
    place = out + task * out_task + plane * (OH * OW) + (oy * OW + ox)[None, :]
    tl.store(place, sums.to(out.dtype.element_ty), (m < M)[:, None] & (n < N)[None, :])


@triton.jit
def task_convolution_backward_data_kernel(
    out,
    out_task,
    derivative,
    derivative_task,
    weight,
    weight_task,
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
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    task, m, n, _ = locate(M, N, BM, BN)
    image, y, x = split(n, H, W)
    planes = derivative + task * derivative_task + image.to(tl.int64) * image_size
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
        b = tl.load(planes[None, :] + channels[:, None] + (oy * OW + ox), mask, other=0.0)
        sums = multiply(a, b, sums, PRECISION)
    plane = image.to(tl.int64)[None, :] * M + m[:, None]
    place = out + task * out_task + plane * (H * W) + (y * W + x)[None, :]
    tl.store(place, sums.to(out.dtype.element_ty), (m < M)[:, None] & (n < N)[None, :])


@triton.jit
def task_convolution_backward_weights_kernel(
    out,
    out_task,
    bias_out,
    bias_out_task,
    derivative,
    derivative_task,
    images,
    images_task,
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
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    task, m, n, is_first = locate(M, N, BM, BN)
    channel, ky, kx = split(n, KH, KW)
    down, right = ky * DY - PY, kx * DX - PX
    taps = images + task * images_task + channel.to(tl.int64) * (H * W) + (down * W + right)
    derivative_rows = derivative + task * derivative_task + m.to(tl.int64)[:, None] * (OH * OW)
    sums = tl.zeros((BM, BN), tl.float32)
    of_derivative = tl.zeros((BM, BK), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        image, oy, ox = split(k, OH, OW)
        columns = image.to(tl.int64) * M * (OH * OW) + (oy * OW + ox)
        a = tl.load(derivative_rows + columns[None, :], (m < M)[:, None] & (k < K)[None, :], other=0.0)
        corners = image.to(tl.int64) * image_size + (oy * SY * W + ox * SX)
        y = (oy * SY)[:, None] + down[None, :]
        x = (ox * SX)[:, None] + right[None, :]
        mask = (k < K)[:, None] & (n < N)[None, :] & (y >= 0) & (y < H) & (x >= 0) & (x < W)
        b = tl.load(taps[None, :] + corners[:, None], mask, other=0.0)
        sums = multiply(a, b, sums, PRECISION)
        of_derivative += a.to(tl.float32)
    place = out + task * out_task + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(place, sums.to(out.dtype.element_ty), (m < M)[:, None] & (n < N)[None, :])
    if is_first:
        total = tl.sum(of_derivative, 1).to(bias_out.dtype.element_ty)
        tl.store(bias_out + task * bias_out_task + m, total, m < M)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, layer: Convolution, precision: str = "ieee") -> Tensor:
    """Return `[tasks, n, o, oh, ow]` for `x [tasks, n, c, h, w]`, `weight [tasks, o, c, kh, kw]`, `bias [tasks, o]`."""
    x, weight = adjacent(x), adjacent(weight)
    bias = None if bias is None else adjacent(bias)
    tasks, images, channels = x.shape[:3]
    outputs = weight.shape[1]
    y = x.new_empty(tasks, images, outputs, *layer.output)
    height, width = layer.output
    bias_task = 0 if bias is None else bias.stride(0)
    launch(
        task_convolution_forward_kernel,
        tasks,
        (outputs, images * height * width, weight[0, 0].numel()),
        (
            *(y, y.stride(0), x, x.stride(0), weight, weight.stride(0), bias, bias_task),
            *(channels * layer.image[0] * layer.image[1], *layer.image, *layer.output),
        ),
        **_constants(layer, x, precision),
    )
    return y


def backward_data(dy: Tensor, weight: Tensor, layer: Convolution, precision: str = "ieee") -> Tensor:
    """Return the derivative `[tasks, n, c, h, w]` by `x`."""
    dy, weight = adjacent(dy), adjacent(weight)
    tasks, images, outputs, height, width = dy.shape
    channels = weight.shape[2]
    dx = dy.new_empty(tasks, images, channels, *layer.image)
    launch(
        task_convolution_backward_data_kernel,
        tasks,
        (channels, images * layer.image[0] * layer.image[1], outputs * layer.kernel[0] * layer.kernel[1]),
        (
            *(dx, dx.stride(0), dy, dy.stride(0), weight, weight.stride(0)),
            *(outputs * height * width, *layer.image, *layer.output),
        ),
        **_constants(layer, dy, precision),
    )
    return dx


def backward_weights(dy: Tensor, x: Tensor, layer: Convolution, precision: str = "ieee") -> tuple[Tensor, Tensor]:
    """Return the derivatives by the weights, `[tasks, o, c, kh, kw]`, and by the bias, `[tasks, o]`."""
    dy, x = adjacent(dy), adjacent(x)
    tasks, images, outputs, height, width = dy.shape
    channels = x.shape[2]
    dw, db = dy.new_empty(tasks, outputs, channels, *layer.kernel), dy.new_empty(tasks, outputs)
    launch(
        task_convolution_backward_weights_kernel,
        tasks,
        (outputs, channels * layer.kernel[0] * layer.kernel[1], images * height * width),
        (
            *(dw, dw.stride(0), db, db.stride(0), dy, dy.stride(0), x, x.stride(0)),
            *(channels * layer.image[0] * layer.image[1], *layer.image, *layer.output),
        ),
        **_constants(layer, dy, precision),
    )
    return dw, db


def _constants(layer: Convolution, x: Tensor, precision: str) -> dict[str, Any]:
    names = ("KH", "KW", "SY", "SX", "PY", "PX", "DY", "DX")
    numbers = (*layer.kernel, *layer.stride, *layer.padding, *layer.dilation)
    return dict(zip(names, numbers, strict=True), PRECISION=precision_of(x, precision))
