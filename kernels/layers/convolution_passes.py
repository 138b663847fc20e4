"""The three passes of convolutions with weights of each task's own, as products that unfold no image in memory.

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
along n have read anyway. Activations are taken as in `task_linear.py`.

The names are a convolution's. Its transpose runs the same passes in other roles, so that each of the first two may end
with a bias and an activation or read its right operand through one, and the last may read either operand so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl
from metagan_fast.kernels.layers.activations import activate, read_through, slope_terms, slopes_at, through_activation
from metagan_fast.kernels.layers.tiles import (
    activation_constants,
    beside_product,
    launch,
    locate,
    multiply,
    precision_of,
    store_row_sums,
    with_stride,
    with_strides,
)
from torch import Tensor

if TYPE_CHECKING:
    from metagan_fast.executors.torch.layers.activations import Activation
    from metagan_fast.executors.torch.layers.task_layers import Convolution


OUTSIDE = tl.constexpr(-(2**30))  # a row or column of lanes beyond the product: further than any padding


@triton.jit
def split(number, ROWS, COLUMNS):
    """Return (number // (ROWS * COLUMNS), row, column)."""
    rest = number % (ROWS * COLUMNS)
    return number // (ROWS * COLUMNS), rest // COLUMNS, rest % COLUMNS


@triton.jit
def finish(out, before, place, mask, sums, slopes, NAME: tl.constexpr, NUMBER: tl.constexpr):
    """Store the sums, if they are to be kept, and their activation."""
    if before is not None:
        tl.store(before + place, sums.to(before.dtype.element_ty), mask)
    tl.store(out + place, activate(sums, slopes, NAME, NUMBER).to(out.dtype.element_ty), mask)


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
    images += task * images_task
    if kept is not None:
        kept += task * kept_task
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
        mask = (y.to(tl.uint32) < H) & (x.to(tl.uint32) < W)  # negative numbers are large ones
        p = 0.0
        if kept is not None:
            p = slopes_at(slope, task * slope_task + (channel * slope_step)[:, None], (k < K)[:, None])
        b = read_through(images, kept, corners[None, :] + taps[:, None], mask, p, NAME, NUMBER)
        sums = multiply(a, b, sums, PRECISION)
    if bias is not None:
        sums += tl.load(bias + task * bias_task + m, m < M, other=0.0).to(tl.float32)[:, None]
    plane = image.to(tl.int64)[None, :] * M + m[:, None]
    place = task * out_task + plane * (OH * OW) + (oy * OW + ox)[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    if kept is None:
        p = slopes_at(slope, task * slope_task + (m * slope_step)[:, None], (m < M)[:, None])
        finish(out, before, place, mask, sums, p, NAME, NUMBER)
    else:
        tl.store(out + place, sums.to(out.dtype.element_ty), mask)


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
    derivative += task * derivative_task
    if kept is not None:
        kept += task * kept_task
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
        if kept is not None:
            p = slopes_at(slope, task * slope_task + (channel * slope_step)[:, None], (k < K)[:, None])
        place = planes[None, :] + channels[:, None] + (oy * OW + ox)
        b = read_through(derivative, kept, place, mask, p, NAME, NUMBER)
        sums = multiply(a, b, sums, PRECISION)
    if bias is not None:
        sums += tl.load(bias + task * bias_task + m, m < M, other=0.0).to(tl.float32)[:, None]
    plane = image.to(tl.int64)[None, :] * M + m[:, None]
    place = task * out_task + plane * (H * W) + (y * W + x)[None, :]
    mask = (m < M)[:, None] & (n < N)[None, :]
    if kept is None:
        p = slopes_at(slope, task * slope_task + (m * slope_step)[:, None], (m < M)[:, None])
        finish(out, before, place, mask, sums, p, NAME, NUMBER)
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
    kept,
    kept_task,
    images,
    images_task,
    images_kept,
    images_kept_task,
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
    if kept is not None:
        kept += task * kept_task
    if images_kept is not None:
        images_kept += task * images_kept_task
    channel, ky, kx = split(n, KH, KW)
    down, right = ky * DY - PY, kx * DX - PX
    taps = channel.to(tl.int64) * (H * W) + (down * W + right)
    rows = m.to(tl.int64) * (OH * OW)
    p, images_p = 0.0, 0.0
    if kept is not None:
        p = slopes_at(slope, task * slope_task + (m * slope_step)[:, None], (m < M)[:, None])
    if images_kept is not None:
        images_p = slopes_at(slope, task * slope_task + (channel * slope_step)[None, :], (n < N)[None, :])
    sums = tl.zeros((BM, BN), tl.float32)
    if bias_out is not None:
        of_derivative = tl.zeros((BM, BK), tl.float32)
    if slope_out is not None:
        of_slope = tl.zeros((BM, BK), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        image, oy, ox = split(k, OH, OW)
        columns = image.to(tl.int64) * M * (OH * OW) + (oy * OW + ox)
        place = rows[:, None] + columns[None, :]
        mask = (m < M)[:, None] & (k < K)[None, :]
        a = tl.load(derivative + place, mask, other=0.0)
        if kept is not None:
            of_k = tl.load(kept + place, mask, other=0.0)
            if slope_out is not None:
                of_slope += slope_terms(a, of_k)
            a = through_activation(a, of_k, p, NAME, NUMBER)
        corners = image.to(tl.int64) * image_size + (oy * SY * W + ox * SX)
        y = tl.where(k < K, oy * SY, OUTSIDE)[:, None] + down[None, :]
        x = (ox * SX)[:, None] + tl.where(n < N, right, OUTSIDE)[None, :]
        mask = (y.to(tl.uint32) < H) & (x.to(tl.uint32) < W)  # negative numbers are large ones
        b = read_through(images, images_kept, taps[None, :] + corners[:, None], mask, images_p, NAME, NUMBER)
        sums = multiply(a, b, sums, PRECISION)
        if bias_out is not None:
            if kept is None:
                again = (m < tl.where(is_first, M, 0))[:, None] & (k < K)[None, :]
                a = beside_product(a, derivative + place, again, PRECISION)
            of_derivative += a.to(tl.float32)
    place = out + task * out_task + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(place, sums.to(out.dtype.element_ty), (m < M)[:, None] & (n < N)[None, :])
    if bias_out is not None:  # noqa: SIM102 (decided when compiled, the next one when run)
        if is_first:
            store_row_sums(bias_out + task * bias_out_task, of_derivative, m, M)
            if slope_out is not None:
                store_row_sums(slope_out + task * bias_out_task, of_slope, m, M)


def over_taps(
    kernel: Any,
    out: Tensor,
    right: Tensor,
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
    """Set `out`, images of one side of the convolution, from `right`, those of the other, `[tasks, n, channels, ...]`.

    The kernel is that of forward or of backward-data. With `kept`, which lies like `right`, that is read through the
    activation; else the activation comes last, and `before` takes the sums that it is taken of.
    """
    tasks, images, rows, height, width = out.shape
    launch(
        kernel,
        tasks,
        (rows, images * height * width, right.shape[2] * layer.kernel[0] * layer.kernel[1]),
        (
            *(*with_stride(out), *with_stride(right), *with_stride(weight)),
            *(*with_stride(bias), before, *with_stride(kept), *with_strides(slope)),
            *(right.shape[2:].numel(), *layer.image, *layer.output),
        ),
        **_constants(layer, right, precision, activation),
    )


def over_pixels(
    out: Tensor,
    derivative: Tensor,
    images: Tensor,
    layer: Convolution,
    precision: str,
    activation: Activation | None,
    *,
    bias_out: Tensor | None = None,
    kept: Tensor | None = None,
    images_kept: Tensor | None = None,
    slope: Tensor | None = None,
    slope_out: Tensor | None = None,
) -> None:
    """Set `out [tasks, o, c, kh, kw]` from `derivative [tasks, n, o, oh, ow]` and `images [tasks, n, c, h, w]`.

    With `kept` the derivative is read through the activation, with `images_kept` the images are. `bias_out [tasks, o]`
    takes the sums of the derivative, `slope_out` those for the slopes.
    """
    tasks, outputs, channels = out.shape[:3]
    launch(
        task_convolution_backward_weights_kernel,
        tasks,
        (outputs, channels * layer.kernel[0] * layer.kernel[1], images.shape[1] * layer.output[0] * layer.output[1]),
        (
            *(*with_stride(out), *with_stride(bias_out), *with_stride(derivative), *with_stride(kept)),
            *(*with_stride(images), *with_stride(images_kept), *with_strides(slope), slope_out),
            *(images.shape[2:].numel(), *layer.image, *layer.output),
        ),
        **_constants(layer, derivative, precision, activation),
    )


def _constants(layer: Convolution, x: Tensor, precision: str, activation: Activation | None) -> dict[str, Any]:
    names = ("KH", "KW", "SY", "SX", "PY", "PX", "DY", "DX")
    numbers = (*layer.kernel, *layer.stride, *layer.padding, *layer.dilation)
    named = dict(zip(names, numbers, strict=True))
    return {**named, **activation_constants(activation), "PRECISION": precision_of(x, precision)}
