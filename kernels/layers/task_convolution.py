"""Convolutions with weights of each task's own: the passes of `convolution_passes.py` in the roles of their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metagan_fast.kernels.layers.convolution_passes import (
    over_pixels,
    over_taps,
    task_convolution_backward_data_kernel,
    task_convolution_forward_kernel,
)
from metagan_fast.kernels.layers.tiles import new_outputs
from torch import Tensor

if TYPE_CHECKING:
    from metagan_fast.executors.torch.layers.task_layers import Convolution


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
    y, before = new_outputs(x, layer.activation, *x.shape[:2], weight.shape[1], *layer.output)
    over_taps(
        *(task_convolution_forward_kernel, y, x, weight, layer, precision, layer.activation),
        bias=bias,
        before=before,
        slope=slope,
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
    dx = dy.new_empty(*dy.shape[:2], weight.shape[2], *layer.image)
    activation = None if kept is None else layer.activation
    over_taps(
        *(task_convolution_backward_data_kernel, dx, dy, weight, layer, precision, activation), kept=kept, slope=slope
    )
    return dx


def backward_weights(
    dy: Tensor,
    x: Tensor,
    layer: Convolution,
    precision: str = "ieee",
    kept: Tensor | None = None,
    slope: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return the derivatives by weights, `[tasks, o, c, kh, kw]`, bias, `[tasks, o]`, and the slopes, if any."""
    tasks, _, outputs = dy.shape[:3]
    dw, db = dy.new_empty(tasks, outputs, x.shape[2], *layer.kernel), dy.new_empty(tasks, outputs)
    dslope = None if slope is None else dy.new_empty(tasks, outputs)
    activation = None if kept is None else layer.activation
    over_pixels(dw, dy, x, layer, precision, activation, bias_out=db, kept=kept, slope=slope, slope_out=dslope)
    return (dw, db) if dslope is None else (dw, db, dslope)
