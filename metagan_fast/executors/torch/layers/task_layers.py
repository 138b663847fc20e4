"""Linear layers and convolutions with per-task weights: derivatives to any order.

A layer has three passes, each linear in both operands: forward `F(x, w)` (plus the bias), backward-data `D(dy, w)` and
backward-weights `W(dy, x)`, which also sums `dy` for the bias. Each pass is an `autograd.Function` whose derivatives
are the other two passes, so a gradient of a gradient runs on the same kernels. The vmap rule folds the batch dimension
into the tasks. A transposed convolution is a convolution with F and D exchanged. `activated_layers.py` has the layers
with an activation.

Every operand has tasks first: `x [tasks, n, in]` or `[tasks, n, c, h, w]`, `w [tasks, out, in]` or
`[tasks, o, c, kh, kw]`, bias `[tasks, out]`. Sums are in float32, or float64 for float64 operands. Products of float32
operands have the precision of `torch.get_float32_matmul_precision()`: "highest" float32, "high" tf32, "medium" bf16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from .activations import Activation, broadcast_outputs, sum_over_rows
from .dispatch import define_plain, select
from .task_passes import Pass

KERNEL_DTYPES = frozenset((torch.float32, torch.bfloat16))


@dataclass(frozen=True)
class Linear:
    """A linear layer with an optional activation."""

    activation: Activation | None = None

    op = "task_linear"
    kernel_dtypes = KERNEL_DTYPES

    def settings(self, precision: str) -> dict[str, Any]:
        return {"precision": precision, "activation": self.activation}


@dataclass(frozen=True)
class Convolution:
    """A two-dimensional convolution in one group with an optional activation; pairs are (rows, columns)."""

    image: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    activation: Activation | None = None

    op = "task_convolution"
    kernel_dtypes = KERNEL_DTYPES

    def settings(self, precision: str) -> dict[str, Any]:
        return {"layer": self, "precision": precision}

    @property
    def output(self) -> tuple[int, int]:
        """Size of the output, (rows, columns)."""
        sizes = zip(self.image, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in sizes)
        return height, width


@dataclass(frozen=True)
class TransposedConvolution(Convolution):
    """The transpose of a convolution from `image` to `output`; it maps inputs of size `output` to size `image`."""

    op = "task_transposed_convolution"


Layer = Linear | Convolution


def run(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Run a layer without an activation, each task with its own weights; differentiable to any order.

    Args:
        layer: the layer's kind and settings.
        x: `[tasks, n, in]` or `[tasks, n, c, h, w]`.
        weight: `[tasks, out, in]` or `[tasks, o, c, kh, kw]`, for a transposed convolution `[tasks, c, o, kh, kw]`;
            contiguous within a task with any stride between tasks, else it is copied.
        bias: `[tasks, out]` or None.

    Returns:
        `[tasks, n, out]` or `[tasks, n, o, oh, ow]`.
    """
    return Forward.apply(layer, x, weight, bias)


class Forward(Pass):
    """`F(x, w) + bias`."""

    @staticmethod
    def forward(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return select(layer, "forward", x)(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.layer, x, weight, bias = inputs
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = BackwardData.apply(ctx.layer, dy, weight) if ctx.needs_input_grad[1] else None
        dw, db = None, None
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            dw, db = BackwardWeights.apply(ctx.layer, dy, x)
        return None, dx, dw, db if ctx.has_bias else None

    @staticmethod
    def jvp(ctx: Any, _: None, tx: Tensor | None, tw: Tensor | None, tb: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        tw = torch.zeros_like(weight) if tw is None else tw
        ty = Forward.apply(ctx.layer, x, tw, tb)
        return ty if tx is None else ty + Forward.apply(ctx.layer, tx, weight, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> Any:
        return Forward._fold(info, in_dims, *operands)


class BackwardData(Pass):
    """`D(dy, w)`."""

    @staticmethod
    def forward(layer: Layer, dy: Tensor, weight: Tensor) -> Tensor:
        return select(layer, "backward_data", dy)(dy, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.layer, *operands = inputs
        ctx.save_for_backward(*operands)
        ctx.save_for_forward(*operands)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
        dy, weight = ctx.saved_tensors
        ddy = Forward.apply(ctx.layer, ddx, weight, None) if ctx.needs_input_grad[1] else None
        dw = BackwardWeights.apply(ctx.layer, dy, ddx)[0] if ctx.needs_input_grad[2] else None
        return None, ddy, dw

    @staticmethod
    def jvp(ctx: Any, _: None, tdy: Tensor | None, tw: Tensor | None) -> Tensor:
        dy, weight = ctx.saved_tensors
        tdx = BackwardData.apply(ctx.layer, torch.zeros_like(dy) if tdy is None else tdy, weight)
        return tdx if tw is None else tdx + BackwardData.apply(ctx.layer, dy, tw)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> Any:
        return BackwardData._fold(info, in_dims, *operands)


class BackwardWeights(Pass):
    """`W(dy, x)` and the sum of `dy` for the bias."""

    @staticmethod
    def forward(layer: Layer, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return select(layer, "backward_weights", dy)(dy, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.layer, *operands = inputs
        ctx.save_for_backward(*operands)
        ctx.save_for_forward(*operands)

    @staticmethod
    def backward(ctx: Any, ddw: Tensor, ddb: Tensor) -> tuple[Tensor | None, ...]:
        dy, x = ctx.saved_tensors
        ddy = Forward.apply(ctx.layer, x, ddw, ddb) if ctx.needs_input_grad[1] else None
        dx = BackwardData.apply(ctx.layer, dy, ddw) if ctx.needs_input_grad[2] else None
        return None, ddy, dx

    @staticmethod
    def jvp(ctx: Any, _: None, tdy: Tensor | None, tx: Tensor | None) -> tuple[Tensor, Tensor]:
        dy, x = ctx.saved_tensors
        tdw, tdb = BackwardWeights.apply(ctx.layer, torch.zeros_like(dy) if tdy is None else tdy, x)
        return (tdw, tdb) if tx is None else (tdw + BackwardWeights.apply(ctx.layer, dy, tx)[0], tdb)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> Any:
        return BackwardWeights._fold(info, in_dims, *operands)


def _linear_forward(
    layer: Linear, x: Tensor, weight: Tensor, bias: Tensor | None, slope: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    return _activate(layer, x @ weight.mT, bias, slope)


def _linear_backward_data(
    layer: Linear, dy: Tensor, weight: Tensor, saved: Tensor | None = None, slope: Tensor | None = None
) -> Tensor:
    return _through_activation(layer, dy, saved, slope)[0] @ weight


def _linear_backward_weights(
    layer: Linear, dy: Tensor, x: Tensor, saved: Tensor | None = None, slope: Tensor | None = None
) -> tuple[Tensor, ...]:
    dz, *of_slope = _through_activation(layer, dy, saved, slope)
    return dz.mT @ x, *map(sum_over_rows, (dz, *of_slope))


def _convolution_forward(
    layer: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None, slope: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    settings = (layer.stride, layer.padding, layer.dilation)
    z = torch.stack([F.conv2d(images, w, None, *settings) for images, w in zip(x, weight, strict=True)])
    return _activate(layer, z, bias, slope)


def _convolution_backward_data(
    layer: Convolution, dy: Tensor, weight: Tensor, saved: Tensor | None = None, slope: Tensor | None = None
) -> Tensor:
    dz = _through_activation(layer, dy, saved, slope)[0]
    sizes = (dy.shape[1], weight.shape[2], *layer.image)
    settings = (layer.stride, layer.padding, layer.dilation)
    return torch.stack([conv2d_input(sizes, w, d, *settings) for w, d in zip(weight, dz, strict=True)])


def _convolution_backward_weights(
    layer: Convolution, dy: Tensor, x: Tensor, saved: Tensor | None = None, slope: Tensor | None = None
) -> tuple[Tensor, ...]:
    dz, *of_slope = _through_activation(layer, dy, saved, slope)
    sizes = (dy.shape[2], x.shape[2], *layer.kernel)
    settings = (layer.stride, layer.padding, layer.dilation)
    rows = [conv2d_weight(image, sizes, d, *settings) for image, d in zip(x, dz, strict=True)]
    return torch.stack(rows), *map(sum_over_rows, (dz, *of_slope))


def _transposed_forward(
    layer: TransposedConvolution, x: Tensor, weight: Tensor, bias: Tensor | None, slope: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    return _activate(layer, _convolution_backward_data(layer, x, weight), bias, slope)


def _transposed_backward_data(
    layer: TransposedConvolution, dy: Tensor, weight: Tensor, saved: Tensor | None = None, slope: Tensor | None = None
) -> Tensor:
    dz = _through_activation(layer, dy, saved, slope)[0]
    settings = (layer.stride, layer.padding, layer.dilation)
    return torch.stack([F.conv2d(d, w, None, *settings) for d, w in zip(dz, weight, strict=True)])


def _transposed_backward_weights(
    layer: TransposedConvolution, dy: Tensor, x: Tensor, saved: Tensor | None = None, slope: Tensor | None = None
) -> tuple[Tensor, ...]:
    dz, *of_slope = _through_activation(layer, dy, saved, slope)
    return _convolution_backward_weights(layer, x, dz)[0], *map(sum_over_rows, (dz, *of_slope))


def _activate(layer: Layer, z: Tensor, bias: Tensor | None, slope: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    """Add the bias and apply the activation; return the pre-activation too if the backward pass needs it."""
    if bias is not None:
        z = z + broadcast_outputs(bias, z)
    if layer.activation is None:
        return z
    y = layer.activation.value(z, slope)
    return (y, z) if layer.activation.saves_preactivation else y


def _through_activation(
    layer: Layer, dy: Tensor, saved: Tensor | None, slope: Tensor | None
) -> tuple[Tensor] | tuple[Tensor, Tensor]:
    """Return the gradient by the pre-activation and, with slopes, the element-wise terms of the slopes' gradient."""
    if layer.activation is None or saved is None:
        return (dy,)
    dz, of_slope = layer.activation.backward_with_slope(dy, saved, slope)
    return (dz,) if of_slope is None else (dz, of_slope)


PASSES = ("forward", "backward_data", "backward_weights")
define_plain(
    "task_linear",
    forward=_linear_forward,
    backward_data=_linear_backward_data,
    backward_weights=_linear_backward_weights,
)
define_plain(
    "task_convolution",
    forward=_convolution_forward,
    backward_data=_convolution_backward_data,
    backward_weights=_convolution_backward_weights,
)
define_plain(
    "task_transposed_convolution",
    forward=_transposed_forward,
    backward_data=_transposed_backward_data,
    backward_weights=_transposed_backward_weights,
)
