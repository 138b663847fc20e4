"""Layers of every kind that the per-task kernels take, with operands, and an oracle that shares no code with them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metagan_fast._ops.task_layers import Convolution, Layer, Linear

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
}


def weight_shape(case: Case) -> tuple[int, ...]:
    """Return the weights' shape, tasks first."""
    layer, shape, outputs = case
    kernel = layer.kernel if isinstance(layer, Convolution) else ()
    return shape[0], outputs, shape[2], *kernel


def operands(case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Return input, weights and bias; the last two are views of flat parameters, as in an executor."""
    _, shape, outputs = case
    wanted = weight_shape(case)
    numel = math.prod(wanted[1:])
    flat = torch.randn(shape[0], numel + outputs + 7, dtype=dtype, device=device)
    weight = flat[:, 3 : 3 + numel].unflatten(1, wanted[1:])
    return torch.randn(shape, dtype=dtype, device=device), weight, flat[:, 3 + numel : 3 + numel + outputs]


def oracle(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the layer's output by one call of PyTorch a task."""
    rows = []
    for t in range(x.shape[0]):
        b = None if bias is None else bias[t]
        if isinstance(layer, Convolution):
            rows.append(F.conv2d(x[t], weight[t], b, layer.stride, layer.padding, layer.dilation))
        else:
            rows.append(F.linear(x[t], weight[t], b))
    return torch.stack(rows)


def expected(case: Case, x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return the output and the derivatives by input, weights and bias in float64; `dy` is drawn if not given."""
    leaves = [v.detach().double().cpu().requires_grad_() for v in (x, weight, bias)]
    y = oracle(case[0], *leaves)
    dy = torch.randn_like(y) if dy is None else dy.double().cpu()
    return y.detach(), *torch.autograd.grad(y, leaves, dy)
