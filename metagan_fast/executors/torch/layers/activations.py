"""Activations fused into a per-task layer's kernels, and their derivatives.

`kernels/layers/activations.py` has value and derivative for Triton. The derivative is computed from the layer's saved
output where the output determines it, else from the pre-activation. At kinks the derivatives are PyTorch's: at 0, ReLU
and its relatives take the left one.
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
    """An activation in PyTorch's functions; the numbers of an `Activation` come last.

    Attributes:
        value: of the sum.
        backward: the derivative by the sum from that by the output, and what is kept.
        second: the derivative of that derivative by what is kept; None where it is zero.
        keeps_input: what is kept is the sum, not the output.
    """

    value: Callable[..., Tensor]
    backward: Callable[..., Tensor]
    second: Callable[..., Tensor] | None = None
    keeps_input: bool = False


@dataclass(frozen=True)
class Activation:
    """An activation by name, with its number: the slope of a leaky ReLU, alpha of an ELU, beta of a softplus.

    Of "prelu" the slopes `[tasks, out]` are operands, beside sums `[tasks, n, out, ...]`; other activations take None.
    """

    name: str
    numbers: tuple[float, ...] = ()

    @property
    def keeps_input(self) -> bool:
        """Whether derivatives are computed from the sum; else they are from the output."""
        return self.name == "prelu" or RULES[self.name].keeps_input

    def value(self, z: Tensor, slope: Tensor | None) -> Tensor:
        """Return the activation of a sum."""
        if slope is not None:
            return torch.where(z > 0, z, along(slope, z) * z)
        return RULES[self.name].value(z, *self.numbers)

    def backward(self, dy: Tensor, kept: Tensor, slope: Tensor | None) -> Tensor:
        """Return dy times the derivative by the sum."""
        return self.backward_with_slope(dy, kept, slope)[0]

    def backward_with_slope(self, dy: Tensor, kept: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return dy times the derivatives by the sum and by the slope, element by element."""
        if slope is not None:
            return aten._prelu_kernel_backward(dy, kept, along(slope, kept))
        return RULES[self.name].backward(dy, kept, *self.numbers), None

    def second(self, kept: Tensor) -> Tensor | None:
        """Return the derivative of the derivative by what is kept, or None where that is zero."""
        second = None if self.name == "prelu" else RULES[self.name].second
        return None if second is None else second(kept, *self.numbers)


def along(slope: Tensor, z: Tensor) -> Tensor:
    """Align a number for each output, `[tasks, out]`, with sums `[tasks, n, out, ...]`."""
    return slope.view(len(slope), 1, -1, *[1] * (z.ndim - 3))


def over_rows(z: Tensor) -> Tensor:
    """Sum `[tasks, n, out, ...]` to `[tasks, out]`."""
    return z.sum((1, *range(3, z.ndim)))


def _silu_backward(dy: Tensor, z: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return aten.silu_backward(dy, z)  # which has no derivative
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
    "silu": Rule(F.silu, _silu_backward, _silu_second, keeps_input=True),
    "gelu": Rule(F.gelu, aten.gelu_backward, _gelu_second, keeps_input=True),
    "softplus": Rule(
        F.softplus, lambda dy, z, beta: aten.softplus_backward(dy, z, beta, 20), _softplus_second, keeps_input=True
    ),
}
