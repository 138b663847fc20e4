"""Per-task transposed convolutions: the passes of a convolution in other roles.

`layer` describes the convolution from this layer's output, of size `layer.image`, to its input, of size `layer.output`.
Forward is that convolution's backward-data, with bias and activation; backward-data is its forward, which loads dy
through the activation; backward-weights exchanges the operands, with dy as the images. A tap reads only some pixels of
dy, so the gradients by bias and slopes take a separate launch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from metagan_fast.kernels.layers import tiles
from metagan_fast.kernels.layers.activations import load_slopes, slope_terms, through_activation
from metagan_fast.kernels.layers.convolution_passes import (
    launch_data_pass,
    launch_weight_pass,
    task_convolution_backward_data_kernel,
    task_convolution_forward_kernel,
)
from metagan_fast.kernels.layers.tiles import activation_constants, new_outputs, with_stride, with_strides
from torch import Tensor

if TYPE_CHECKING:
    from metagan_fast.executors.torch.layers.activations import Activation
    from metagan_fast.executors.torch.layers.task_layers import TransposedConvolution

LARGEST_BLOCK = 1024  # pixels that a program loads at once, 4 a thread


@triton.jit
def task_transposed_convolution_backward_bias_kernel(
    out,
    out_task,
    derivative,
    derivative_task,
    saved,
    saved_task,
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
    if saved is not None:
        saved += task * saved_task + channel * pixels
        p = load_slopes(slope, task * slope_task + channel * slope_step, channel < channels)
    sums = tl.zeros((BLOCK,), tl.float32)
    if slope_out is not None:
        of_slope = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, K, BLOCK):
        k = first + tl.arange(0, BLOCK)
        offsets = (k // pixels).to(tl.int64) * image_size + k % pixels
        dy = tl.load(derivative + offsets, k < K, other=0.0)
        if saved is not None:
            of_k = tl.load(saved + offsets, k < K, other=0.0)
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

    If the activation saves its pre-activation, that is the second result; `slope [tasks, o]` is PReLU's.
    """
    y, preactivation = new_outputs(x, layer.activation, *x.shape[:2], weight.shape[2], *layer.image)
    launch_data_pass(
        *(task_convolution_backward_data_kernel, y, x, weight, layer, precision, layer.activation),
        bias=bias,
        preactivation=preactivation,
        slope=slope,
    )
    return y if preactivation is None else (y, preactivation)


def backward_data(
    dy: Tensor,
    weight: Tensor,
    layer: TransposedConvolution,
    precision: str = "ieee",
    saved: Tensor | None = None,
    slope: Tensor | None = None,
) -> Tensor:
    """Return the gradient by `x`, `[tasks, n, c, h', w']`; `saved` is the activation's saved tensor."""
    dx = dy.new_empty(*dy.shape[:2], weight.shape[1], *layer.output)
    activation = None if saved is None else layer.activation
    launch_data_pass(
        task_convolution_forward_kernel, dx, dy, weight, layer, precision, activation, saved=saved, slope=slope
    )
    return dx


def backward_weights(
    dy: Tensor,
    x: Tensor,
    layer: TransposedConvolution,
    precision: str = "ieee",
    saved: Tensor | None = None,
    slope: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return the gradients by weights, `[tasks, c, o, kh, kw]`, bias and, if any, slopes, `[tasks, o]` each."""
    dw = dy.new_empty(dy.shape[0], x.shape[2], dy.shape[2], *layer.kernel)
    activation = None if saved is None else layer.activation
    launch_weight_pass(dw, x, dy, layer, precision, activation, images_saved=saved, slope=slope)
    return dw, *_backward_bias(dy, activation, saved, slope)


def _backward_bias(
    dy: Tensor, activation: Activation | None, saved: Tensor | None, slope: Tensor | None
) -> tuple[Tensor, ...]:
    """Return the gradients by bias and, if any, slopes, `[tasks, o]` each."""
    tasks, images, channels, height, width = dy.shape
    db = dy.new_empty(tasks, channels)
    dslope = None if slope is None else dy.new_empty(tasks, channels)
    terms = images * height * width
    tiles.start(
        task_transposed_convolution_backward_bias_kernel,
        tasks * channels,
        (
            *(*with_stride(db), *with_stride(dy), *with_stride(saved), *with_strides(slope), dslope),
            *(channels * height * width, channels, height * width, terms),
        ),
        {**activation_constants(activation), "BLOCK": min(LARGEST_BLOCK, triton.next_power_of_2(terms))},
        tiles.OPTIONS,
    )
    return (db,) if dslope is None else (db, dslope)
