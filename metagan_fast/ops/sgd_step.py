"""`sgd_step`: argument checks and derivatives; the step is linear except for `lr * direction`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _check, _dispatch, reference
from ._common import as_rows, fold_into_rows, rate_as_rows, run, sum_over_rate, zeros_for_none
from .reference import widen

if TYPE_CHECKING:
    from ..flat import FlatLayout


def call(
    op: str,
    params: Tensor,
    grads: Tensor,
    lr: float | Tensor,
    momentum_buffer: Tensor | None,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    layout: FlatLayout | None,
    max_norm: float | None,
    zero_grads: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Check the arguments and run `op`: `sgd_step` or its in-place twin `sgd_step_`."""
    _check.buffers(op, params=params, grads=grads, momentum_buffer=momentum_buffer)
    lr = _check.learning_rate(op, lr, params, layout)
    momentum, weight_decay = _check.non_negative(op, momentum=momentum, weight_decay=weight_decay)
    dampening = _check.number(op, "dampening", dampening)
    max_norm = _check.max_norm(op, max_norm)
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError(f"{op}: nesterov needs momentum > 0 and dampening 0, got {momentum} and {dampening}")
    written: dict[str, Tensor | None] = {"params": params}
    if momentum != 0:
        written["momentum_buffer"] = momentum_buffer
    out = _check.step_targets(op, written, grads, lr, zero_grads)
    if momentum == 0:
        momentum_buffer = None
    elif momentum_buffer is None:
        momentum_buffer, dampening = torch.zeros_like(params), 0.0
    results = run(
        "sgd_step",
        params,
        grads,
        lr,
        momentum_buffer=momentum_buffer,
        momentum=momentum,
        dampening=dampening,
        nesterov=nesterov,
        weight_decay=weight_decay,
        layout=layout,
        max_norm=max_norm,
        zero_grads=zero_grads,
        out=out,
        differentiable=differentiable,
    )
    return (results[0], results[1]) if momentum != 0 else results[0]


def differentiable(
    params: Tensor,
    grads: Tensor,
    lr: float | Tensor,
    *,
    momentum_buffer: Tensor | None,
    layout: FlatLayout | None,
    **options: Any,
) -> tuple[Tensor, ...]:
    """Run the op as an `autograd.Function`."""
    buffer = None if momentum_buffer is None else as_rows(momentum_buffer)
    results = _SGDStep.apply(as_rows(params), as_rows(grads), rate_as_rows(lr, layout, params.device), buffer, options)
    return tuple(x.view_as(params) for x in results)


class _SGDStep(torch.autograd.Function):
    """Fused step over `[rows, numel]`; the learning rate is `[1 or rows, 1 or numel]`."""

    @staticmethod
    def forward(
        params: Tensor, grads: Tensor, lr: Tensor, momentum_buffer: Tensor | None, options: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        return _dispatch.dispatch(
            "sgd_step", params, grads, lr, momentum_buffer=momentum_buffer, layout=None, out=None, **options
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        params, grads, lr, _, ctx.options = inputs
        saved = (params, grads, lr, *output[1:])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, d_params: Tensor, *d_state: Tensor) -> tuple[Tensor | None, ...]:
        params, _, lr, *_ = ctx.saved_tensors
        options = ctx.options
        d_params = widen(d_params)
        d_direction = -widen(lr, like=d_params) * d_params
        d_lr = sum_over_rate(-d_params * _direction(ctx), lr) if ctx.needs_input_grad[2] else None
        d_grads, d_buffer = d_direction, None
        if d_state:
            momentum = options["momentum"]
            d_result = widen(d_state[0]) + (momentum * d_direction if options["nesterov"] else d_direction)
            d_grads = (1 - options["dampening"]) * d_result + (d_direction if options["nesterov"] else 0)
            d_buffer = (momentum * d_result).to(params.dtype)
        if options["weight_decay"] != 0:
            d_params = d_params + options["weight_decay"] * d_grads
        return d_params.to(params.dtype), d_grads.to(params.dtype), d_lr, d_buffer, None

    @staticmethod
    def jvp(ctx: Any, t_params: Tensor, t_grads: Tensor, t_lr: Tensor, t_buffer: Tensor, _: None) -> tuple[Tensor, ...]:
        params, _, lr, *_ = ctx.saved_tensors
        t_params, t_grads, t_buffer = zeros_for_none((t_params, t_grads, t_buffer), like=params)
        moved, *state = reference.sgd_step(t_params, t_grads, lr, momentum_buffer=t_buffer, **ctx.options)
        if t_lr is not None:
            direction = _direction(ctx)
            moved = (widen(moved) - widen(t_lr, like=direction) * direction).to(params.dtype)
        return moved, *state

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> Any:
        return fold_into_rows(_SGDStep.apply, info.batch_size, in_dims, operands)


def _direction(ctx: Any) -> Tensor:
    """Return the update direction, the factor of the learning rate."""
    params, grads, _, *state = map(widen, ctx.saved_tensors)
    options = ctx.options
    if state and not options["nesterov"]:
        return state[0]
    if options["weight_decay"] != 0:
        grads = grads + options["weight_decay"] * params
    return grads + options["momentum"] * state[0] if state else grads
