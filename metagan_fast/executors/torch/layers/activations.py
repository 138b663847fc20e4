"""Activations fused into a per-task layer's kernels, and their derivatives.

The Triton twin is `kernels/layers/activations.py`. A derivative is computed from the saved tensor: the layer's output
if it determines the derivative, else the pre-activation. At kinks the derivatives are PyTorch's: at 0, ReLU and its
variants take the left one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


class Rule(NamedTuple):
    """PyTorch functions of an activation; each takes the numbers of an `Activation` last.

    Attributes:
        value: the activation of the pre-activation.
        backward: the gradient by the pre-activation, from the gradient by the output and the saved tensor.
        second: derivative of the activation's derivative by the saved tensor; None if it is zero.
        saves_preactivation: True if the saved tensor is the pre-activation, False if it is the output.
    """

    value: Callable[..., Tensor]
    backward: Callable[..., Tensor]
    second: Callable[..., Tensor] | None = None
    saves_preactivation: bool = False


@dataclass(frozen=True)
class Activation:
    """An activation by name, with its constant: slope of a leaky ReLU, alpha of an ELU, beta of a softplus.

    The slopes of "prelu", `[tasks, out]` for pre-activations `[tasks, n, out, ...]`, are an operand; None for others.
    """

    name: str
    numbers: tuple[float, ...] = ()

    @property
    def saves_preactivation(self) -> bool:
        """True if derivatives are computed from the pre-activation, False if from the output."""
        return self.name == "prelu" or RULES[self.name].saves_preactivation

    def value(self, z: Tensor, slope: Tensor | None) -> Tensor:
        """Return the activation of a pre-activation."""
        if slope is not None:
            return torch.where(z > 0, z, broadcast_outputs(slope, z) * z)
        return RULES[self.name].value(z, *self.numbers)

    def backward(self, dy: Tensor, saved: Tensor, slope: Tensor | None) -> Tensor:
        """Return dy times the derivative by the pre-activation."""
        return self.backward_with_slope(dy, saved, slope)[0]

    def backward_with_slope(self, dy: Tensor, saved: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return dy times the element-wise derivatives by the pre-activation and by the slope."""
        if slope is not None:
            return aten._prelu_kernel_backward(dy, saved, broadcast_outputs(slope, saved))
        return RULES[self.name].backward(dy, saved, *self.numbers), None

    def second(self, saved: Tensor) -> Tensor | None:
        """Return the derivative of the activation's derivative by the saved tensor, None if it is zero."""
        second = None if self.name == "prelu" else RULES[self.name].second
        return None if second is None else second(saved, *self.numbers)


def broadcast_outputs(slope: Tensor, z: Tensor) -> Tensor:
    """Reshape per-output values `[tasks, out]` to broadcast over pre-activations `[tasks, n, out, ...]`."""
    return slope.view(len(slope), 1, -1, *[1] * (z.ndim - 3))


def sum_over_rows(z: Tensor) -> Tensor:
    """Sum `[tasks, n, out, ...]` to `[tasks, out]`."""
    return z.sum((1, *range(3, z.ndim)))


def _silu_backward(dy: Tensor, z: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return aten.silu_backward(dy, z)  # not differentiable
    s = z.sigmoid()
    return dy * s * (1 + z * (1 - s))


def _silu_second(z: Tensor) -> Tensor:
    s = z.sigmoid()
    return s * (1 - s) * (2 + z * (1 - 2 * s))


def _gelu_second(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) * (2 - z * z)


def _softplus_second(z: Tensor, beta: float) -> Tensor:
    s = torch.sigmoid(beta * z)
    return beta * s * (1 - s)


RULES: dict[str, Rule] = {
    "relu": Rule(F.relu, lambda dy, y: aten.threshold_backward(dy, y, 0)),
    "leaky_relu": Rule(F.leaky_relu, lambda dy, y, number: aten.leaky_relu_backward(dy, y, number, True)),
    "tanh": Rule(torch.tanh, aten.tanh_backward, lambda y: -2 * y),
    "sigmoid": Rule(torch.sigmoid, aten.sigmoid_backward, lambda y: 1 - 2 * y),
    "elu": Rule(
        F.elu,
        lambda dy, y, alpha: aten.elu_backward(dy, alpha, 1, 1, True, y),
        lambda y, alpha: (y <= 0).to(y.dtype),
    ),
    "silu": Rule(F.silu, _silu_backward, _silu_second, saves_preactivation=True),
    "gelu": Rule(F.gelu, aten.gelu_backward, _gelu_second, saves_preactivation=True),
    "softplus": Rule(
        F.softplus,
        lambda dy, z, beta: aten.softplus_backward(dy, z, beta, 20),
        _softplus_second,
        saves_preactivation=True,
    ),
}
