"""Transposed convolutions with weights of each task's own: a convolution's passes in other roles, with no kernel more.

The layer describes the convolution from this layer's output, `layer.image`, to its input, `layer.output`. Forward is
that one's backward-data, with bias and activation; backward-data is its forward; backward-weights has its operands
exchanged, so that the bias's derivative, the sum of dy, is a launch of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from metagan_fast.kernels import task_convolution
from torch import Tensor

if TYPE_CHECKING:
    from metagan_fast._ops.task_layers import TransposedConvolution


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
    return task_convolution.transposed_forward(x, weight, bias, layer, precision, slope)


def backward_data(dy: Tensor, weight: Tensor, layer: TransposedConvolution, precision: str = "ieee") -> Tensor:
    """Return the derivative by `x`."""
    dx = task_convolution.forward(dy, weight, None, replace(layer, activation=None), precision)
    assert isinstance(dx, Tensor)  # alone, without an activation
    return dx


def backward_weights(
    dy: Tensor, x: Tensor, layer: TransposedConvolution, precision: str = "ieee"
) -> tuple[Tensor, Tensor]:
    """Return the derivatives by weights and bias."""
    dw, _ = task_convolution.backward_weights(x, dy, layer, precision)
    return dw, dy.sum((1, 3, 4))
