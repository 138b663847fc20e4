"""Linear layers and convolutions whose weights differ from task to task: derivatives to any order.

Three passes make a layer, each linear in both operands: forward `F(x, w)` (plus the bias), backward-data `D(dy, w)`
and backward-weights `W(dy, x)`, which also sums `dy` for the bias. Each pass is an `autograd.Function`, and its own
derivatives are the other two passes, so that a gradient of a gradient runs on the same kernels. The vmap rule
turns a batch of task batches into more tasks.

Task batches come first in every operand: `x [tasks, n, in]` or `[tasks, n, c, h, w]`, `w [tasks, out, in]` or
`[tasks, o, c, kh, kw]`, bias `[tasks, out]`. Sums are float32 at least. Operands of products in float32 are as precise
as `torch.get_float32_matmul_precision()` says: "highest" float32, "high" tf32, "medium" bf16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from .task_passes import PLAIN, Pass, select

KERNEL_DTYPES = frozenset((torch.float32, torch.bfloat16))


@dataclass(frozen=True)
class Linear:
    """A linear layer."""

    op = "task_linear"
    kernel_dtypes = KERNEL_DTYPES

    def settings(self, precision: str) -> dict[str, Any]:
        return {"precision": precision}


@dataclass(frozen=True)
class Convolution:
    """A two-dimensional convolution in one group; pairs are (rows, columns)."""

    image: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    op = "task_convolution"
    kernel_dtypes = KERNEL_DTYPES

    def settings(self, precision: str) -> dict[str, Any]:
        return {"layer": self, "precision": precision}

    @property
    def output(self) -> tuple[int, int]:
        """The size of the output."""
        sizes = zip(self.image, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in sizes)
        return height, width


Layer = Linear | Convolution


def run(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Run a layer on every task's inputs with that task's weights; differentiable to any order.

    Args:
        layer: which layer, with its settings.
        x: `[tasks, n, in]` or `[tasks, n, c, h, w]`.
        weight: `[tasks, out, in]` or `[tasks, o, c, kh, kw]`, the elements of a task adjacent, tasks any distance apart
            (others are copied).
        bias: `[tasks, out]` or None.

    Returns:
        `[tasks, n, out]` or `[tasks, n, o, oh, ow]`.
    """
    return _Forward.apply(layer, x, weight, bias)


class _Forward(Pass):
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
        dx = _BackwardData.apply(ctx.layer, dy, weight) if ctx.needs_input_grad[1] else None
        dw, db = None, None
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            dw, db = _BackwardWeights.apply(ctx.layer, dy, x)
        return None, dx, dw, db if ctx.has_bias else None

    @staticmethod
    def jvp(ctx: Any, _: None, tx: Tensor | None, tw: Tensor | None, tb: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        tw = torch.zeros_like(weight) if tw is None else tw
        ty = _Forward.apply(ctx.layer, x, tw, tb)
        return ty if tx is None else ty + _Forward.apply(ctx.layer, tx, weight, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> Any:
        return _Forward._fold(info, in_dims, *operands)


class _BackwardData(Pass):
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
        ddy = _Forward.apply(ctx.layer, ddx, weight, None) if ctx.needs_input_grad[1] else None
        dw = _BackwardWeights.apply(ctx.layer, dy, ddx)[0] if ctx.needs_input_grad[2] else None
        return None, ddy, dw

    @staticmethod
    def jvp(ctx: Any, _: None, tdy: Tensor | None, tw: Tensor | None) -> Tensor:
        dy, weight = ctx.saved_tensors
        tdx = _BackwardData.apply(ctx.layer, torch.zeros_like(dy) if tdy is None else tdy, weight)
        return tdx if tw is None else tdx + _BackwardData.apply(ctx.layer, dy, tw)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> Any:
        return _BackwardData._fold(info, in_dims, *operands)


class _BackwardWeights(Pass):
    """`W(dy, x)` and the sum of `dy` for the bias; the bias's cotangent comes back as a bias."""

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
        ddy = _Forward.apply(ctx.layer, x, ddw, ddb) if ctx.needs_input_grad[1] else None
        dx = _BackwardData.apply(ctx.layer, dy, ddw) if ctx.needs_input_grad[2] else None
        return None, ddy, dx

    @staticmethod
    def jvp(ctx: Any, _: None, tdy: Tensor | None, tx: Tensor | None) -> tuple[Tensor, Tensor]:
        dy, x = ctx.saved_tensors
        tdw, tdb = _BackwardWeights.apply(ctx.layer, torch.zeros_like(dy) if tdy is None else tdy, x)
        return (tdw, tdb) if tx is None else (tdw + _BackwardWeights.apply(ctx.layer, dy, tx)[0], tdb)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> Any:
        return _BackwardWeights._fold(info, in_dims, *operands)


def _linear_forward(layer: Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = x @ weight.mT
    return y if bias is None else y + bias.unsqueeze(1)


def _linear_backward_data(layer: Linear, dy: Tensor, weight: Tensor) -> Tensor:
    return dy @ weight


def _linear_backward_weights(layer: Linear, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return dy.mT @ x, dy.sum(1)


def _convolution_forward(layer: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    settings = (layer.stride, layer.padding, layer.dilation)
    biases = [None] * len(x) if bias is None else bias.unbind()
    return torch.stack([F.conv2d(*operands, *settings) for operands in zip(x, weight, biases, strict=True)])


def _convolution_backward_data(layer: Convolution, dy: Tensor, weight: Tensor) -> Tensor:
    sizes = (dy.shape[1], weight.shape[2], *layer.image)
    settings = (layer.stride, layer.padding, layer.dilation)
    return torch.stack([conv2d_input(sizes, w, d, *settings) for w, d in zip(weight, dy, strict=True)])


def _convolution_backward_weights(layer: Convolution, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    sizes = (dy.shape[2], x.shape[2], *layer.kernel)
    settings = (layer.stride, layer.padding, layer.dilation)
    rows = [conv2d_weight(image, sizes, d, *settings) for image, d in zip(x, dy, strict=True)]
    return torch.stack(rows), dy.sum((1, 3, 4))


PASSES = ("forward", "backward_data", "backward_weights")
PLAIN.update(
    {
        ("task_linear", "forward"): _linear_forward,
        ("task_linear", "backward_data"): _linear_backward_data,
        ("task_linear", "backward_weights"): _linear_backward_weights,
        ("task_convolution", "forward"): _convolution_forward,
        ("task_convolution", "backward_data"): _convolution_backward_data,
        ("task_convolution", "backward_weights"): _convolution_backward_weights,
    }
)
