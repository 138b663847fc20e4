"""Per-task layers fused with an activation: derivatives to any order.

With the layer's passes F, D and W of `task_layers.py`, z = F(x, w) + b and the activation a, whose operands are z and
a PReLU's slopes p, there are two passes:

    forward   a(z; p)
    backward  D(dz, w), W(dz, x), the sums of dz for the bias and of dy da/dp for the slopes, where dz = dy a'(z)

The kernels of D and W multiply dy by a' as they load it. They compute a' from the saved tensor: the output of the
forward pass, or z as its second output. The saved tensor is a differentiable operand of the backward pass, so the
derivatives of both passes consist of the same passes and element-wise formulas. If z itself has a cotangent, dz is
computed separately and the passes without activation run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import task_layers as plain
from .activations import Activation, broadcast_outputs, sum_over_rows
from .dispatch import select
from .task_layers import Layer
from .task_passes import Pass


def run(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, slope: Tensor | None = None) -> Tensor:
    """Run a layer and its activation, each task with its own weights; differentiable to any order.

    Args:
        layer: the layer's kind and settings; its activation is not None.
        x, weight, bias: as in `task_layers.run`.
        slope: a PReLU's slopes, `[tasks, out]`; None with other activations.

    Returns:
        `[tasks, n, out]` or `[tasks, n, o, oh, ow]`.
    """
    results = _Forward.apply(layer, x, weight, bias, slope)
    return results[0] if isinstance(results, tuple) else results


@dataclass(frozen=True)
class _BackwardCall:
    """A layer, and the gradients to return from its backward pass.

    Attributes:
        data: the gradient by the input.
        weights: the gradients by weights, bias and slopes.
    """

    layer: Layer
    data: bool
    weights: bool

    @property
    def activation(self) -> Activation:
        return _activation(self.layer)


def _activation(layer: Layer) -> Activation:
    assert layer.activation is not None
    return layer.activation


def _without(layer: Layer) -> Layer:
    return replace(layer, activation=None)


def _sum(*terms: Tensor | None) -> Tensor | None:
    """Return the sum of the terms that are not None, None if there are none."""
    given = [x for x in terms if x is not None]
    return sum(given[1:], given[0]) if given else None


class _Forward(Pass):
    """a(z; p), and z if the activation saves it."""

    @staticmethod
    def forward(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, slope: Tensor | None) -> Any:
        return select(layer, "forward", x)(x, weight, bias, slope=slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.layer, x, weight, bias, slope = inputs
        ctx.has_bias = bias is not None
        ctx.set_materialize_grads(False)
        saved = output[1] if isinstance(output, tuple) else output
        ctx.save_for_backward(x, weight, slope, saved)
        ctx.save_for_forward(x, weight, slope, saved)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dz: Tensor | None = None) -> tuple[Tensor | None, ...]:
        x, weight, slope, saved = ctx.saved_tensors
        layer = ctx.layer
        data, weights = ctx.needs_input_grad[1], any(ctx.needs_input_grad[2:])
        dx, dw, db, dp = None, None, None, None
        if dy is not None and dz is None:
            found = list(_Backward.apply(_BackwardCall(layer, data, weights), dy, saved, x, weight, slope))
            dx = found.pop(0) if data else None
            dw, db, dp = [*found, None, None, None][:3]
        elif dz is not None:
            if dy is not None:
                through, of_slope = _activation(layer).backward_with_slope(dy, saved, slope)
                dz, dp = _sum(through, dz), None if of_slope is None else sum_over_rows(of_slope)
            dx = plain.BackwardData.apply(_without(layer), dz, weight) if data else None
            dw, db = plain.BackwardWeights.apply(_without(layer), dz, x) if weights else (None, None)
        return None, dx, dw, db if ctx.has_bias else None, dp

    @staticmethod
    def jvp(
        ctx: Any, _: None, tx: Tensor | None, tw: Tensor | None, tb: Tensor | None, tp: Tensor | None
    ) -> Tensor | tuple[Tensor, Tensor]:
        x, weight, slope, saved = ctx.saved_tensors
        layer, activation = _without(ctx.layer), _activation(ctx.layer)
        tz = None
        if tw is not None or tb is not None:
            tz = plain.Forward.apply(layer, x, torch.zeros_like(weight) if tw is None else tw, tb)
        if tx is not None:
            tz = _sum(tz, plain.Forward.apply(layer, tx, weight, None))
        tz = torch.zeros_like(saved) if tz is None else tz
        ty = activation.backward(tz, saved, slope)
        if tp is not None:
            ty = ty + broadcast_outputs(tp, saved) * saved * (saved <= 0)
        return (ty, tz) if activation.saves_preactivation else ty

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> Any:
        return _Forward._fold(info, in_dims, *operands)


class _Backward(Pass):
    """The wanted ones of D(dy a', w), W(dy a', x), the sum of dy a' and the sum of dy min(z, 0)."""

    @staticmethod
    def forward(
        wanted: _BackwardCall, dy: Tensor, saved: Tensor, x: Tensor, weight: Tensor, slope: Tensor | None
    ) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = ()
        if wanted.data:
            found = (select(wanted.layer, "backward_data", dy)(dy, weight, saved=saved, slope=slope),)
        if wanted.weights:
            found += select(wanted.layer, "backward_weights", dy)(dy, x, saved=saved, slope=slope)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.wanted, *operands = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands)
        ctx.save_for_forward(*operands)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, saved, x, weight, slope = ctx.saved_tensors
        given = list(cotangents)
        u = given.pop(0) if ctx.wanted.data else None
        ddw, ddb, ddp = [*given, None, None, None][:3]
        _, of_dy, of_saved, of_x, of_weight, of_slope = ctx.needs_input_grad
        layer, activation = ctx.wanted.layer, ctx.wanted.activation
        ddz, ddy, dsaved, dp, dx, dw = None, None, None, None, None, None
        if of_dy or of_saved or of_slope:
            if ddw is not None or ddb is not None:
                ddz = plain.Forward.apply(_without(layer), x, torch.zeros_like(weight) if ddw is None else ddw, ddb)
            if u is not None:
                ddz = _sum(ddz, plain.Forward.apply(_without(layer), u, weight, None))
        if ddz is not None:
            ddy = activation.backward(ddz, saved, slope)
            second = activation.second(saved) if of_saved else None
            dsaved = None if second is None else ddz * dy * second
            dp = sum_over_rows(ddz * dy * (saved <= 0)) if slope is not None and of_slope else None
        if ddp is not None:
            reached = broadcast_outputs(ddp, saved) * (saved <= 0)
            ddy, dsaved = _sum(ddy, reached * saved), _sum(dsaved, reached * dy)
        if of_x and ddw is not None:
            (dx,) = _Backward.apply(_BackwardCall(layer, data=True, weights=False), dy, saved, x, ddw, slope)
        if of_weight and u is not None:
            dw = _Backward.apply(_BackwardCall(layer, data=False, weights=True), dy, saved, u, weight, slope)[0]
        return None, ddy, dsaved, dx, dw, dp

    @staticmethod
    def jvp(
        ctx: Any,
        _: None,
        tdy: Tensor | None,
        tsaved: Tensor | None,
        tx: Tensor | None,
        tw: Tensor | None,
        tp: Tensor | None,
    ) -> tuple[Tensor, ...]:
        dy, saved, x, weight, slope = ctx.saved_tensors
        layer, activation = ctx.wanted.layer, ctx.wanted.activation
        second = activation.second(saved)
        tdz = _sum(
            None if tdy is None else activation.backward(tdy, saved, slope),
            None if tsaved is None or second is None else dy * second * tsaved,
            None if tp is None else dy * broadcast_outputs(tp, saved) * (saved <= 0),
        )
        tdz = torch.zeros_like(dy) if tdz is None else tdz
        found: list[Tensor] = []
        if ctx.wanted.data:
            found.append(plain.BackwardData.apply(_without(layer), tdz, weight))
            if tw is not None:
                found[0] = found[0] + _Backward.apply(_BackwardCall(layer, True, False), dy, saved, x, tw, slope)[0]
        if ctx.wanted.weights:
            tdw, tdb = plain.BackwardWeights.apply(_without(layer), tdz, x)
            if tx is not None:
                tdw = tdw + _Backward.apply(_BackwardCall(layer, False, True), dy, saved, tx, weight, slope)[0]
            found += [tdw, tdb]
            if slope is not None:
                of_slope = _sum(None if tdy is None else tdy * saved, None if tsaved is None else dy * tsaved)
                found.append(torch.zeros_like(slope) if of_slope is None else sum_over_rows(of_slope * (saved <= 0)))
        return tuple(found)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> Any:
        return _Backward._fold(info, in_dims, *operands)
