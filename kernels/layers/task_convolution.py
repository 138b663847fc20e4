"""Per-task convolutions: launchers of the passes in `convolution_passes.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metagan_fast.kernels.layers.convolution_passes import (
    launch_data_pass,
    launch_weight_pass,
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

    If the activation saves its pre-activation, that is the second result; `slope [tasks, o]` is PReLU's.
    """
    y, preactivation = new_outputs(x, layer.activation, *x.shape[:2], weight.shape[1], *layer.output)
    launch_data_pass(
        *(task_convolution_forward_kernel, y, x, weight, layer, precision, layer.activation),
        bias=bias,
        preactivation=preactivation,
        slope=slope,
    )
    return y if preactivation is None else (y, preactivation)


def backward_data(
    dy: Tensor,
    weight: Tensor,
    layer: Convolution,
    precision: str = "ieee",
    saved: Tensor | None = None,
    slope: Tensor | None = None,
) -> Tensor:
    """Return the gradient by `x`, `[tasks, n, c, h, w]`; `saved` is the activation's saved tensor."""
    dx = dy.new_empty(*dy.shape[:2], weight.shape[2], *layer.image)
    activation = None if saved is None else layer.activation
    launch_data_pass(
        *(task_convolution_backward_data_kernel, dx, dy, weight, layer, precision, activation), saved=saved, slope=slope
    )
    return dx


def backward_weights(
    dy: Tensor,
    x: Tensor,
    layer: Convolution,
    precision: str = "ieee",
    saved: Tensor | None = None,
    slope: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return the gradients by weights, `[tasks, o, c, kh, kw]`, bias and, if any, slopes, `[tasks, o]` each."""
    tasks, _, outputs = dy.shape[:3]
    dw, db = dy.new_empty(tasks, outputs, x.shape[2], *layer.kernel), dy.new_empty(tasks, outputs)
    dslope = None if slope is None else dy.new_empty(tasks, outputs)
    activation = None if saved is None else layer.activation
    launch_weight_pass(dw, dy, x, layer, precision, activation, bias_out=db, saved=saved, slope=slope, slope_out=dslope)
    return (dw, db) if dslope is None else (dw, db, dslope)
