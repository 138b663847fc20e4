"""Transposed convolutions with weights of each task's own: a convolution's passes in other roles.

The layer describes the convolution from this layer's output, `layer.image`, to its input, `layer.output`. Forward is
that one's backward-data, with bias and activation; backward-data is its forward, which reads dy through the activation;
backward-weights has its operands exchanged, and dy is the images. A tap meets only some pixels of dy, so the sums of dy
for the bias, and for the slopes, are a launch of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from metagan_fast.kernels.layers import tiles
from metagan_fast.kernels.layers.activations import slope_terms, slopes_at, through_activation
from metagan_fast.kernels.layers.convolution_passes import (
    over_pixels,
    over_taps,
    task_convolution_backward_data_kernel,
    task_convolution_forward_kernel,
)
from metagan_fast.kernels.layers.tiles import activation_constants, new_outputs, with_stride, with_strides
from torch import Tensor

if TYPE_CHECKING:
    from metagan_fast.executors.torch.layers.activations import Activation
    from metagan_fast.executors.torch.layers.task_layers import TransposedConvolution

LARGEST_BLOCK = 1024  # pixels that a program reads at once, 4 a thread


@triton.jit
def task_transposed_convolution_backward_bias_kernel(
    out,
    out_task,
    derivative,
    derivative_task,
    kept,
    kept_task,
    slope,
    slope_task,
    slope_step,
    slope_out,
    image_size,
    channels,
    pixels,
    K,
    NAME: tl.constexpr,
    NUMBER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    task, channel = (program // channels).to(tl.int64), (program % channels).to(tl.int64)
    derivative += task * derivative_task + channel * pixels
    p = 0.0
    if kept is not None:
        kept += task * kept_task + channel * pixels
        p = slopes_at(slope, task * slope_task + channel * slope_step, channel < channels)
    sums = tl.zeros((BLOCK,), tl.float32)
    if slope_out is not None:
        of_slope = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, K, BLOCK):
        k = first + tl.arange(0, BLOCK)
        place = (k // pixels).to(tl.int64) * image_size + k % pixels
        dy = tl.load(derivative + place, k < K, other=0.0)
        if kept is not None:
            of_k = tl.load(kept + place, k < K, other=0.0)
            if slope_out is not None:
                of_slope += slope_terms(dy, of_k)
            dy = through_activation(dy, of_k, p, NAME, NUMBER)
        sums += dy.to(tl.float32)
    tl.store(out + task * out_task + channel, tl.sum(sums, 0).to(out.dtype.element_ty))
    if slope_out is not None:
        tl.store(slope_out + task * out_task + channel, tl.sum(of_slope, 0).to(slope_out.dtype.element_ty))


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layer: TransposedConvolution,
    precision: str = "ieee",
    slope: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return `[tasks, n, o, h, w]` for `x [tasks, n, c, h', w']`, `weight [tasks, c, o, kh, kw]`, `bias [tasks, o]`.

    With an activation whose derivative needs them, the sums before it come second; `slope [tasks, o]` is PReLU's.
    """
    y, before = new_outputs(x, layer.activation, *x.shape[:2], weight.shape[2], *layer.image)
    over_taps(
        *(task_convolution_backward_data_kernel, y, x, weight, layer, precision, layer.activation),
        bias=bias,
        before=before,
        slope=slope,
    )
    return y if before is None else (y, before)


def backward_data(
    dy: Tensor,
    weight: Tensor,
    layer: TransposedConvolution,
    precision: str = "ieee",
    kept: Tensor | None = None,
    slope: Tensor | None = None,
) -> Tensor:
    """Return the derivative `[tasks, n, c, h', w']` by `x`; `kept` is what the activation's derivative is made from."""
    dx = dy.new_empty(*dy.shape[:2], weight.shape[1], *layer.output)
    activation = None if kept is None else layer.activation
    over_taps(task_convolution_forward_kernel, dx, dy, weight, layer, precision, activation, kept=kept, slope=slope)
    return dx


def backward_weights(
    dy: Tensor,
    x: Tensor,
    layer: TransposedConvolution,
    precision: str = "ieee",
    kept: Tensor | None = None,
    slope: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return the derivatives by weights, `[tasks, c, o, kh, kw]`, bias, `[tasks, o]`, and the slopes, if any."""
    dw = dy.new_empty(dy.shape[0], x.shape[2], dy.shape[2], *layer.kernel)
    activation = None if kept is None else layer.activation
    over_pixels(dw, x, dy, layer, precision, activation, images_kept=kept, slope=slope)
    return dw, *_backward_bias(dy, activation, kept, slope)


def _backward_bias(
    dy: Tensor, activation: Activation | None, kept: Tensor | None, slope: Tensor | None
) -> tuple[Tensor, ...]:
    """Return the derivatives by bias, `[tasks, o]`, and the slopes, if any."""
    tasks, images, channels, height, width = dy.shape
    db = dy.new_empty(tasks, channels)
    dslope = None if slope is None else dy.new_empty(tasks, channels)
    terms = images * height * width
    tiles.start(
        task_transposed_convolution_backward_bias_kernel,
        tasks * channels,
        (
            *(*with_stride(db), *with_stride(dy), *with_stride(kept), *with_strides(slope), dslope),
            *(channels * height * width, channels, height * width, terms),
        ),
        {**activation_constants(activation), "BLOCK": min(LARGEST_BLOCK, triton.next_power_of_2(terms))},
        tiles.OPTIONS,
    )
    return (db,) if dslope is None else (db, dslope)
