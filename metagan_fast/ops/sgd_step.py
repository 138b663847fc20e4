"""`sgd_step`: linear in its operands except for `lr * direction`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._native import buffers
from . import _check, reference
from ._dispatch import dispatch
from ._op import Op
from ._rows import as_rows, fold_into_rows, rate_as_rows, sum_over_rate, zeros_for_none
from .clip_grad_norm import CLIP_GRAD_NORM
from .reference import widen

if TYPE_CHECKING:
    from ..flat import FlatLayout


def sgd_step(
    params: Tensor,
    grads: Tensor,
    lr: float | Tensor,
    *,
    momentum_buffer: Tensor | None = None,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    layout: FlatLayout | None = None,
    max_norm: float | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Take one step of stochastic gradient descent, as `torch.optim.SGD` does.

    Args:
        params: `[numel]` or `[tasks, numel]`.
        grads: like `params`.
        lr: learning rate, at least 0, in any form of `metagan_fast.functional`.
        momentum_buffer: like `params`, of the step before; None on the first step, which is not dampened.
        momentum: factor of the buffer, at least 0.
        dampening: the gradient enters the buffer times `1 - dampening`.
        nesterov: look ahead along the buffer (Sutskever et al. 2013); needs momentum and no dampening.
        weight_decay: L2 penalty, at least 0.
        layout: makes `lr` one value a parameter tensor.
        max_norm: scale each row of `grads` down to this L2 norm first, as `clip_grad_norm` does; None: never.

    Returns:
        The new parameters, or `(params, momentum_buffer)` when `momentum` is not 0.

    Raises:
        ValueError: shapes, dtypes, devices or numbers do not fit.

    Example:
        >>> import torch
        >>> from metagan_fast import functional
        >>> functional.sgd_step(torch.tensor([1.0, 2.0]), torch.tensor([1.0, -1.0]), lr=0.5)
        tensor([0.5000, 2.5000])
        >>> lr = torch.tensor(0.5, requires_grad=True)
        >>> functional.sgd_step(torch.ones(2), torch.tensor([3.0, 4.0]), lr).sum().backward()
        >>> lr.grad
        tensor(-7.)
    """
    return _sgd_step(
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
    )


def sgd_step_(
    params: Tensor,
    grads: Tensor,
    lr: float | Tensor,
    *,
    momentum_buffer: Tensor | None = None,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    layout: FlatLayout | None = None,
    max_norm: float | None = None,
    zero_grads: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Overwrite `params` and `momentum_buffer` with the result of `sgd_step`.

    With momentum the buffer is required: zeros before the first step, which needs `dampening=0.0`. With `zero_grads`
    `grads` ends as zeros, otherwise it is unchanged: the clipped gradient is not stored.
    """
    return _sgd_step(
        "sgd_step_",
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
    )


def _sgd_step(
    op: str,
    params: Tensor,
    grads: Tensor,
    lr: float | Tensor,
    *,
    momentum_buffer: Tensor | None,
    zero_grads: bool = False,
    **options: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Check the arguments and run `op`, the function or its twin."""
    _check.buffers(op, params=params, grads=grads, momentum_buffer=momentum_buffer)
    lr = _check.learning_rate(op, lr, params, options["layout"])
    _check.non_negative(op, options, "momentum", "weight_decay")
    momentum = options["momentum"]
    dampening = options["dampening"] = _check.number(op, "dampening", options["dampening"])
    _check.max_norm(op, options)
    if options["nesterov"] and (momentum == 0 or dampening != 0):
        raise ValueError(f"{op}: nesterov needs momentum > 0 and dampening 0, got {momentum} and {dampening}")
    written: dict[str, Tensor | None] = {"params": params}
    if momentum != 0:
        written["momentum_buffer"] = momentum_buffer
    out = _check.step_targets(op, written, grads, lr, zero_grads)
    if momentum == 0:
        momentum_buffer = None
    elif momentum_buffer is None:
        momentum_buffer, options["dampening"] = torch.zeros_like(params), 0.0
    results = SGD_STEP.run(
        params, grads, lr, momentum_buffer=momentum_buffer, zero_grads=zero_grads, out=out, **options
    )
    return (results[0], results[1]) if momentum != 0 else results[0]


def _compiled(
    params: Tensor,
    grads: Tensor,
    lr: float | Tensor,
    *,
    momentum_buffer: Tensor | None,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    layout: FlatLayout | None,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    """Run the compiled kernel."""
    params, grads, momentum_buffer = buffers.inputs(params, grads, momentum_buffer if momentum != 0 else None)
    results = out or buffers.new_results(params, 1 if momentum == 0 else 2)
    rate, _keep = buffers.learning_rate(lr, params, layout)
    buffers.run(
        "sgd_step",
        params,
        buffers.matrix(params),
        buffers.matrix(grads),
        buffers.optional_matrix(momentum_buffer),
        buffers.matrix(results[0]),
        buffers.optional_matrix(results[1] if momentum != 0 else None),
        rate,
        (momentum, dampening, weight_decay, nesterov),
    )
    return results


def _differentiable(
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
        step = dispatch(SGD_STEP, params)
        return step(params, grads, lr, momentum_buffer=momentum_buffer, layout=None, out=None, **options)

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


SGD_STEP = Op("sgd_step", _compiled, _differentiable, clip=CLIP_GRAD_NORM)
