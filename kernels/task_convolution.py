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
along n have read anyway. Activations are taken as in `task_linear.py`. A transposed convolution runs backward-data with
a bias and an activation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl
from metagan_fast.kernels.activations import activate, slope_terms, through_activation
from metagan_fast.kernels.tiles import (
    activation_constants,
    adjacent,
    beside_product,
    launch,
    locate,
    multiply,
    new_outputs,
    precision_of,
    store_row_sums,
    with_stride,
    with_strides,
)
from torch import Tensor

if TYPE_CHECKING:
    from metagan_fast._ops.activations import Activation
    from metagan_fast._ops.task_layers import Convolution


OUTSIDE = tl.constexpr(-(2**30))  # a row or column of lanes beyond the product: further than any padding


@triton.jit
def split(number, ROWS, COLUMNS):
    """Return (number // (ROWS * COLUMNS), row, column)."""
    rest = number % (ROWS * COLUMNS)
    return number // (ROWS * COLUMNS), rest // COLUMNS, rest % COLUMNS


@triton.jit
def finish(out, before, place, mask, sums, slope, slope_place, slope_mask, NAME: tl.constexpr, NUMBER: tl.constexpr):
    """Store the sums, if they are to be kept, and their activation; slopes go along the rows."""
    if before is not None:
        tl.store(before + place, sums.to(before.dtype.element_ty), mask)
    p = 0.0
    if slope is not None:
        p = tl.load(slope + slope_place, slope_mask, other=0.0).to(tl.float32)[:, None]
    tl.store(out + place, activate(sums, p, NAME, NUMBER).to(out.dtype.element_ty), mask)


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
    before,
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
        y = top[None, :] + tl.where(k < K, ky * DY, OUTSIDE)[:, None]
        x = tl.where(n < N, left, OUTSIDE)[None, :] + (kx * DX)[:, None]
        mask = (y.to(tl.uint32) < H) & (x.to(tl.uint32) < W)  # negative numbers are large ones
        b = tl.load(corners[None, :] + taps[:, None], mask, other=0.0)
        sums = multiply(a, b, sums, PRECISION)
    if bias is not None:
        sums += tl.load(bias + task * bias_task + m, m < M, other=0.0).to(tl.float32)[:, None]
    plane = image.to(tl.int64)[None, :] * M + m[:, None]
    place = task * out_task + plane * (OH * OW) + (oy * OW + ox)[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    finish(out, before, place, mask, sums, slope, task * slope_task + m * slope_step, m < M, NAME, NUMBER)


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
    before,
    kept,
    kept_task,
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
    image, y, x = split(n, H, W)
    planes = derivative + task * derivative_task + image.to(tl.int64) * image_size
    weight_rows = weight + task * weight_task + m.to(tl.int64)[:, None] * (KH * KW)
    sums = tl.zeros((BM, BN), tl.float32)
    if kept is not None:
        kept_planes = kept + task * kept_task + image.to(tl.int64) * image_size
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
        if kept is not None:
            of_k = tl.load(kept_planes[None, :] + channels[:, None] + (oy * OW + ox), mask, other=0.0)
            p = 0.0
            if slope is not None:
                p = tl.load(slope + task * slope_task + channel * slope_step, k < K, other=0.0)
                p = p.to(tl.float32)[:, None]
            b = through_activation(b, of_k, p, NAME, NUMBER)
        sums = multiply(a, b, sums, PRECISION)
    if bias is not None:
        sums += tl.load(bias + task * bias_task + m, m < M, other=0.0).to(tl.float32)[:, None]
    plane = image.to(tl.int64)[None, :] * M + m[:, None]
    place = task * out_task + plane * (H * W) + (y * W + x)[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    if kept is None:
        finish(out, before, place, mask, sums, slope, task * slope_task + m * slope_step, m < M, NAME, NUMBER)
    else:
        tl.store(out + place, sums.to(out.dtype.element_ty), mask)


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
    kept,
    kept_task,
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
    channel, ky, kx = split(n, KH, KW)
    down, right = ky * DY - PY, kx * DX - PX
    taps = images + task * images_task + channel.to(tl.int64) * (H * W) + (down * W + right)
    derivative_rows = derivative + task * derivative_task + m.to(tl.int64)[:, None] * (OH * OW)
    sums = tl.zeros((BM, BN), tl.float32)
    of_derivative = tl.zeros((BM, BK), tl.float32)
    p = 0.0
    if slope is not None:
        p = tl.load(slope + task * slope_task + m * slope_step, m < M, other=0.0).to(tl.float32)[:, None]
        of_slope = tl.zeros((BM, BK), tl.float32)
    if kept is not None:
        kept_rows = kept + task * kept_task + m.to(tl.int64)[:, None] * (OH * OW)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        image, oy, ox = split(k, OH, OW)
        columns = image.to(tl.int64) * M * (OH * OW) + (oy * OW + ox)
        a = tl.load(derivative_rows + columns[None, :], (m < M)[:, None] & (k < K)[None, :], other=0.0)
        corners = image.to(tl.int64) * image_size + (oy * SY * W + ox * SX)
        y = tl.where(k < K, oy * SY, OUTSIDE)[:, None] + down[None, :]
        x = (ox * SX)[:, None] + tl.where(n < N, right, OUTSIDE)[None, :]
        mask = (y.to(tl.uint32) < H) & (x.to(tl.uint32) < W)  # negative numbers are large ones
        b = tl.load(taps[None, :] + corners[:, None], mask, other=0.0)
        if kept is not None:
            of_k = tl.load(kept_rows + columns[None, :], (m < M)[:, None] & (k < K)[None, :], other=0.0)
            if slope is not None:
                of_slope += slope_terms(a, of_k)
            a = through_activation(a, of_k, p, NAME, NUMBER)
        sums = multiply(a, b, sums, PRECISION)
        if kept is None:
            again = (m < tl.where(is_first, M, 0))[:, None] & (k < K)[None, :]
            a = beside_product(a, derivative_rows + columns[None, :], again, PRECISION)
        of_derivative += a.to(tl.float32)
    place = out + task * out_task + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(place, sums.to(out.dtype.element_ty), (m < M)[:, None] & (n < N)[None, :])
    if is_first:
        store_row_sums(bias_out + task * bias_out_task, of_derivative, m, M)
        if slope is not None:
            store_row_sums(slope_out + task * bias_out_task, of_slope, m, M)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layer: Convolution,
    precision: str = "ieee",
    slope: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return `[tasks, n, o, oh, ow]` for `x [tasks, n, c, h, w]`, `weight [tasks, o, c, kh, kw]`, `bias [tasks, o]`.

    With an activation whose derivative needs them, the sums before it come second; `slope [tasks, o]` is PReLU's.
    """
    x, weight = adjacent(x), adjacent(weight)
    tasks, images, channels = x.shape[:3]
    outputs = weight.shape[1]
    height, width = layer.output
    y, before = new_outputs(x, layer.activation, tasks, images, outputs, height, width)
    launch(
        task_convolution_forward_kernel,
        tasks,
        (outputs, images * height * width, weight[0, 0].numel()),
        (
            *(
                y,
                y.stride(0),
                x,
                x.stride(0),
                weight,
                weight.stride(0),
                *with_stride(bias),
                before,
                *with_strides(slope),
            ),
            *(channels * layer.image[0] * layer.image[1], *layer.image, *layer.output),
        ),
        **_constants(layer, x, precision, layer.activation),
    )
    return y if before is None else (y, before)


def backward_data(
    dy: Tensor,
    weight: Tensor,
    layer: Convolution,
    precision: str = "ieee",
    kept: Tensor | None = None,
    slope: Tensor | None = None,
) -> Tensor:
    """Return the derivative `[tasks, n, c, h, w]` by `x`; `kept` is what the activation's derivative is made from."""
    dy, weight = adjacent(dy), adjacent(weight)
    dx = dy.new_empty(*dy.shape[:2], weight.shape[2], *layer.image)
    _scatter(dx, dy, weight, layer, precision, layer.activation if kept is not None else None, kept=kept, slope=slope)
    return dx


def transposed_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layer: Convolution,
    precision: str = "ieee",
    slope: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return `[tasks, n, c, h, w]`: backward-data of `x [tasks, n, o, oh, ow]`, then `bias [tasks, c]`, activation."""
    x, weight = adjacent(x), adjacent(weight)
    y, before = new_outputs(x, layer.activation, *x.shape[:2], weight.shape[2], *layer.image)
    _scatter(y, x, weight, layer, precision, layer.activation, bias=bias, before=before, slope=slope)
    return y if before is None else (y, before)


def backward_weights(
    dy: Tensor,
    x: Tensor,
    layer: Convolution,
    precision: str = "ieee",
    kept: Tensor | None = None,
    slope: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return the derivatives by weights, `[tasks, o, c, kh, kw]`, bias, `[tasks, o]`, and the slopes, if any."""
    dy, x = adjacent(dy), adjacent(x)
    tasks, images, outputs, height, width = dy.shape
    channels = x.shape[2]
    dw, db = dy.new_empty(tasks, outputs, channels, *layer.kernel), dy.new_empty(tasks, outputs)
    dslope = None if slope is None else dy.new_empty(tasks, outputs)
    launch(
        task_convolution_backward_weights_kernel,
        tasks,
        (outputs, channels * layer.kernel[0] * layer.kernel[1], images * height * width),
        (
            *(dw, dw.stride(0), db, db.stride(0), dy, dy.stride(0), x, x.stride(0)),
            *(*with_stride(kept), *with_strides(slope), dslope),
            *(channels * layer.image[0] * layer.image[1], *layer.image, *layer.output),
        ),
        **_constants(layer, dy, precision, layer.activation if kept is not None else None),
    )
    return (dw, db) if dslope is None else (dw, db, dslope)


def _scatter(
    out: Tensor,
    dy: Tensor,
    weight: Tensor,
    layer: Convolution,
    precision: str,
    activation: Activation | None,
    *,
    bias: Tensor | None = None,
    before: Tensor | None = None,
    kept: Tensor | None = None,
    slope: Tensor | None = None,
) -> None:
    tasks, images, outputs, height, width = dy.shape
    launch(
        task_convolution_backward_data_kernel,
        tasks,
        (out.shape[2], images * layer.image[0] * layer.image[1], outputs * layer.kernel[0] * layer.kernel[1]),
        (
            *(out, out.stride(0), dy, dy.stride(0), weight, weight.stride(0)),
            *(*with_stride(bias), before, *with_stride(kept), *with_strides(slope)),
            *(outputs * height * width, *layer.image, *layer.output),
        ),
        **_constants(layer, dy, precision, activation),
    )


def _constants(layer: Convolution, x: Tensor, precision: str, activation: Activation | None) -> dict[str, Any]:
    names = ("KH", "KW", "SY", "SX", "PY", "PX", "DY", "DX")
    numbers = (*layer.kernel, *layer.stride, *layer.padding, *layer.dilation)
    named = dict(zip(names, numbers, strict=True))
    return {**named, **activation_constants(activation), "PRECISION": precision_of(x, precision)}
