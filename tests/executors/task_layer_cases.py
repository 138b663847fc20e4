"""Layers of every kind that the per-task kernels support, with operands and an independent oracle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from metagan_fast.executors.torch.layers.activations import Activation
from metagan_fast.executors.torch.layers.task_layers import Convolution, Layer, Linear, TransposedConvolution

Case = tuple[Layer, tuple[int, ...], int]
"""A layer, its input's shape with tasks first, and how many outputs it has."""

CASES: dict[str, Case] = {
    "linear": (Linear(), (2, 5, 21), 19),
    "linear-large": (Linear(), (1, 66, 70), 67),
    "linear-one-output": (Linear(), (3, 4, 33), 1),
    "convolution": (Convolution((6, 5), (3, 3), padding=(1, 1)), (2, 3, 3, 6, 5), 18),
    "convolution-1x1": (Convolution((3, 4), (1, 1)), (2, 2, 20, 3, 4), 5),
    "convolution-stride": (Convolution((7, 8), (4, 4), (2, 2), (1, 1)), (2, 2, 3, 7, 8), 4),
    "convolution-oblong": (Convolution((7, 9), (3, 2), (2, 3), (2, 0), (1, 2)), (2, 2, 2, 7, 9), 3),
    "convolution-dilation": (Convolution((9, 8), (3, 3), (1, 1), (2, 3), (2, 3)), (1, 2, 3, 9, 8), 65),
    "convolution-padding-beyond-the-kernel": (Convolution((2, 2), (2, 2), (3, 3), (4, 4)), (2, 1, 2, 2, 2), 2),
    "transposed": (TransposedConvolution((8, 6), (4, 4), (2, 2), (1, 1)), (2, 3, 5, 4, 3), 4),
    "transposed-output-padding": (TransposedConvolution((9, 8), (3, 2), (3, 2), (1, 0), (1, 2)), (2, 2, 3, 3, 3), 2),
}

ACTIVATIONS: dict[Activation, Callable[..., Tensor]] = {
    Activation("relu"): F.relu,
    Activation("leaky_relu", (0.2,)): lambda y: F.leaky_relu(y, 0.2),
    Activation("prelu"): F.prelu,
    Activation("tanh"): torch.tanh,
    Activation("sigmoid"): torch.sigmoid,
    Activation("elu", (0.7,)): lambda y: F.elu(y, 0.7),
    Activation("silu"): F.silu,
    Activation("gelu"): F.gelu,
    Activation("softplus", (1.5,)): lambda y: F.softplus(y, 1.5),
}
"""Activations that are fused into a layer, as PyTorch functions."""

ACTIVATED: dict[str, Case] = {
    f"{name}-{activation.name}": (replace(CASES[name][0], activation=activation), *CASES[name][1:])
    for name in ("linear", "convolution-oblong", "transposed")
    for activation in ACTIVATIONS
}
"""Layers with the activation that follows them."""


def weight_shape(case: Case) -> tuple[int, ...]:
    """Return the weights' shape, tasks first."""
    layer, shape, outputs = case
    kernel = layer.kernel if isinstance(layer, Convolution) else ()
    channels = (shape[2], outputs) if isinstance(layer, TransposedConvolution) else (outputs, shape[2])
    return shape[0], *channels, *kernel


def slopes(case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor | None:
    """Return strided PReLU slopes of either sign, or None for other activations."""
    layer, shape, outputs = case
    if layer.activation is None or layer.activation.name != "prelu":
        return None
    return torch.randn(outputs + 3, shape[0], dtype=dtype, device=device).T[:, 3:]


def operands(case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Return input, weights and bias; the last two are views of flat parameters, as in an executor."""
    _, shape, outputs = case
    wanted = weight_shape(case)
    numel = math.prod(wanted[1:])
    flat = torch.randn(shape[0], numel + outputs + 7, dtype=dtype, device=device)
    weight = flat[:, 3 : 3 + numel].unflatten(1, wanted[1:])
    return torch.randn(shape, dtype=dtype, device=device), weight, flat[:, 3 + numel : 3 + numel + outputs]


def oracle(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, slope: Tensor | None = None) -> Tensor:
    """Return the layer's output, by one PyTorch call a task."""
    rows = []
    for t in range(x.shape[0]):
        operands = x[t], weight[t], None if bias is None else bias[t]
        if isinstance(layer, TransposedConvolution):
            extra = [
                out - ((size - 1) * s - 2 * p + d * (k - 1) + 1)
                for out, size, k, s, p, d in zip(
                    *(layer.image, x.shape[3:], layer.kernel, layer.stride, layer.padding, layer.dilation), strict=True
                )
            ]
            y = F.conv_transpose2d(*operands, layer.stride, layer.padding, extra, 1, layer.dilation)
        elif isinstance(layer, Convolution):
            y = F.conv2d(*operands, layer.stride, layer.padding, layer.dilation)
        else:
            y = F.linear(*operands)
        if layer.activation is not None:
            y = ACTIVATIONS[layer.activation](y, *(() if slope is None else (slope[t],)))
        rows.append(y)
    return torch.stack(rows)


def expected(
    case: Case, x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor | None = None, slope: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Return the output and the derivatives by input, weights, bias, slopes in float64; without `dy` one is drawn."""
    given = (x, weight, bias) if slope is None else (x, weight, bias, slope)
    leaves = [v.detach().double().cpu().requires_grad_() for v in given]
    y = oracle(case[0], *leaves)
    dy = torch.randn_like(y) if dy is None else dy.double().cpu()
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


def kept(case: Case, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None) -> Tensor | None:
    """Return the forward results that an activated layer saves, by PyTorch in float64, in the operands' dtype."""
    layer = case[0]
    if layer.activation is None:
        return None
    before = replace(layer, activation=None) if layer.activation.saves_preactivation else layer
    wide = [None if v is None else v.double() for v in (x, weight, bias, slope)]
    if before is not layer:
        wide.pop()
    return oracle(before, *wide).to(x.dtype)
