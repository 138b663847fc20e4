"""Layer normalisation with per-task weights: derivatives to any order.

For one input of one task, with `x^ = (x - mean x) r`, `r = 1 / sqrt(var x + eps)`, means over its `k` elements and
`P(v) = v - mean v - x^ mean(v x^)`, the passes are

    forward           F(x, w, b)      w x^ + b
    backward-data     D(dy, x, w)     r P(w dy)
    backward-weights  W(dy, x)        sum over inputs of dy x^, and of dy
    backward-twice    T(u, dy, x, w)  the derivatives of <u, D(dy, x, w)> by dy, x and w

D and W are the derivatives of F, F and D the derivatives of W, and T gives the derivatives of D, so a gradient of a
gradient runs on kernels. Third derivatives differentiate T's formula in plain PyTorch. Only reverse mode is defined.

Every operand has tasks first: `x [tasks, n, k]`, `w` and `b [tasks, k]`. The mean and `r` of each input,
`statistics [tasks, n, 2]`, are computed once, in the forward pass. Sums are in float32 or float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .dispatch import define_plain, select
from .task_passes import Pass


@dataclass(frozen=True)
class LayerNorm:
    """Layer norm of each input over all its elements."""

    eps: float = 1e-5

    op = "task_layer_norm"
    kernel_dtypes = frozenset((torch.float32, torch.bfloat16, torch.float64))

    def settings(self, precision: str) -> dict[str, Any]:
        return {"eps": self.eps}


def run(layer: LayerNorm, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Normalise every task's inputs, then scale and shift them by that task's weights.

    Args:
        layer: the layer's settings.
        x: `[tasks, n, k]`.
        weight: `[tasks, k]`, with any stride between tasks.
        bias: `[tasks, k]` or None.

    Returns:
        `[tasks, n, k]`, differentiable to any order in reverse mode.
    """
    return _Forward.apply(layer, x, weight, bias)[0]


class _Forward(Pass):
    @staticmethod
    def forward(layer: LayerNorm, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        return select(layer, "forward", x)(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.layer, x, weight, bias = inputs
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # else the statistics get a gradient of zeros
        ctx.save_for_backward(x, weight, output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return None, None, None, None
        x, weight, statistics = ctx.saved_tensors
        dx = _BackwardData.apply(ctx.layer, dy, x, weight, statistics) if ctx.needs_input_grad[1] else None
        dw, db = None, None
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            dw, db = _BackwardWeights.apply(ctx.layer, dy, x, statistics)
        return None, dx, dw, db if ctx.has_bias else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> Any:
        return _Forward._fold(info, in_dims, *operands)


class _BackwardData(Pass):
    @staticmethod
    def forward(layer: LayerNorm, dy: Tensor, x: Tensor, weight: Tensor, statistics: Tensor) -> Tensor:
        return select(layer, "backward_data", x)(dy, x, weight, statistics)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.layer, *operands = inputs
        ctx.save_for_backward(*operands)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_BackwardTwice.apply(ctx.layer, u, *ctx.saved_tensors), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> Any:
        return _BackwardData._fold(info, in_dims, *operands)


class _BackwardWeights(Pass):
    @staticmethod
    def forward(layer: LayerNorm, dy: Tensor, x: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
        return select(layer, "backward_weights", x)(dy, x, statistics)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.layer, *operands = inputs
        ctx.save_for_backward(*operands)

    @staticmethod
    def backward(ctx: Any, ddw: Tensor, ddb: Tensor) -> tuple[Tensor | None, ...]:
        dy, x, statistics = ctx.saved_tensors
        ddy = _Forward.apply(ctx.layer, x, ddw, ddb)[0] if ctx.needs_input_grad[1] else None
        dx = _BackwardData.apply(ctx.layer, dy, x, ddw, statistics) if ctx.needs_input_grad[2] else None
        return None, ddy, dx, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> Any:
        return _BackwardWeights._fold(info, in_dims, *operands)


class _BackwardTwice(Pass):
    @staticmethod
    def forward(
        layer: LayerNorm, u: Tensor, dy: Tensor, x: Tensor, weight: Tensor, statistics: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return select(layer, "backward_twice", x)(u, dy, x, weight, statistics)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.layer, *operands, _ = inputs
        ctx.save_for_backward(*operands)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        def formula(u: Tensor, dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            return _backward_twice(ctx.layer, u, dy, x, weight, _statistics(ctx.layer, x))

        pull_back = torch.func.vjp(formula, *ctx.saved_tensors)[1]
        return None, *pull_back(cotangents), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> Any:
        return _BackwardTwice._fold(info, in_dims, *operands)


def _wide(x: Tensor) -> Tensor:
    """Return a tensor in the dtype of sums, float32 or float64."""
    return x if x.dtype == torch.float64 else x.float()


def _mean(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True)


def _statistics(layer: LayerNorm, x: Tensor) -> Tensor:
    x = _wide(x)
    mean = _mean(x)
    variance = _mean((x - mean).square())
    return torch.cat((mean, (variance + layer.eps).rsqrt()), -1)


def _normalised(x: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
    """Return the normalised inputs `x^`, and `r`."""
    mean, scale = statistics.split(1, -1)
    return (_wide(x) - mean) * scale, scale


def _forward(layer: LayerNorm, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    statistics = _statistics(layer, x)
    y = _wide(weight).unsqueeze(1) * _normalised(x, statistics)[0]
    if bias is not None:
        y = y + _wide(bias).unsqueeze(1)
    return y.to(x.dtype), statistics


def _project(v: Tensor, normalised: Tensor) -> Tensor:
    return v - _mean(v) - normalised * _mean(v * normalised)


def _backward_data(layer: LayerNorm, dy: Tensor, x: Tensor, weight: Tensor, statistics: Tensor) -> Tensor:
    normalised, scale = _normalised(x, statistics)
    return (scale * _project(_wide(weight).unsqueeze(1) * _wide(dy), normalised)).to(x.dtype)


def _backward_weights(layer: LayerNorm, dy: Tensor, x: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
    dw = (_wide(dy) * _normalised(x, statistics)[0]).sum(1)
    return dw.to(x.dtype), _wide(dy).sum(1).to(x.dtype)


def _backward_twice(
    layer: LayerNorm, u: Tensor, dy: Tensor, x: Tensor, weight: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    normalised, scale = _normalised(x, statistics)
    u, dy, weight = _wide(u), _wide(dy), _wide(weight).unsqueeze(1)
    g = weight * dy
    along_u, along_g = _mean(u * normalised), _mean(g * normalised)
    centred_u, centred_g = u - _mean(u), g - _mean(g)
    of_u = scale * (centred_u - normalised * along_u)
    of_scale = _mean(centred_u * centred_g) - 3 * along_u * along_g
    dx = -scale.square() * (along_g * centred_u + along_u * centred_g + of_scale * normalised)
    return (weight * of_u).to(x.dtype), dx.to(x.dtype), (dy * of_u).sum(1).to(x.dtype)


PASSES = ("forward", "backward_data", "backward_weights", "backward_twice")
define_plain(
    "task_layer_norm",
    forward=_forward,
    backward_data=_backward_data,
    backward_weights=_backward_weights,
    backward_twice=_backward_twice,
)
