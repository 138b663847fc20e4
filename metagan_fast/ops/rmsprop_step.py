"""`rmsprop_step`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._native import buffers
from . import _check
from ._op import Op

if TYPE_CHECKING:
    from ..flat import FlatLayout


def rmsprop_step(
    params: Tensor,
    grads: Tensor,
    square_avg: Tensor,
    lr: float | Tensor,
    *,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    momentum_buffer: Tensor | None = None,
    centered: bool = False,
    grad_avg: Tensor | None = None,
    layout: FlatLayout | None = None,
) -> tuple[Tensor, ...]:
    """Take one step of RMSprop (Hinton 2012; centered as in Graves 2013), as `torch.optim.RMSprop` does.

    A centered variance `square_avg - grad_avg**2` that rounding leaves below 0 counts as 0.

    Args:
        params: `[numel]` or `[tasks, numel]`.
        grads: like `params`.
        square_avg: like `params`, mean of the squared gradients; zeros before the first step.
        lr: learning rate, at least 0, in any form of `metagan_fast.functional`.
        alpha: decay of the means, in [0, 1).
        eps: added to the square root, above 0.
        weight_decay: L2 penalty, at least 0.
        momentum: factor of the momentum buffer, at least 0.
        momentum_buffer: like `params`, of the step before; None on the first step.
        centered: divide by the standard deviation of the gradient.
        grad_avg: like `params`, mean of the gradients when `centered`; None on the first step.
        layout: makes `lr` one value a parameter tensor.

    Returns:
        `(params, square_avg)`, then `momentum_buffer` when `momentum` is not 0, then `grad_avg` when
        `centered`.

    Raises:
        ValueError: shapes, dtypes, devices or numbers do not fit.

    Example:
        >>> import torch
        >>> from metagan_fast import functional
        >>> params, square_avg = functional.rmsprop_step(
        ...     torch.zeros(2), torch.tensor([1.0, -2.0]), torch.zeros(2), lr=0.1, alpha=0.75
        ... )
        >>> params, square_avg
        (tensor([-0.2000,  0.2000]), tensor([0.2500, 1.0000]))
    """
    return _rmsprop_step(
        "rmsprop_step",
        params,
        grads,
        square_avg,
        lr,
        alpha=alpha,
        eps=eps,
        weight_decay=weight_decay,
        momentum=momentum,
        momentum_buffer=momentum_buffer,
        centered=centered,
        grad_avg=grad_avg,
        layout=layout,
    )


def rmsprop_step_(
    params: Tensor,
    grads: Tensor,
    square_avg: Tensor,
    lr: float | Tensor,
    *,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    momentum_buffer: Tensor | None = None,
    centered: bool = False,
    grad_avg: Tensor | None = None,
    layout: FlatLayout | None = None,
) -> tuple[Tensor, ...]:
    """Overwrite `params` and the state in use with the result of `rmsprop_step`.

    The state is required: zeros before the first step.
    """
    return _rmsprop_step(
        "rmsprop_step_",
        params,
        grads,
        square_avg,
        lr,
        alpha=alpha,
        eps=eps,
        weight_decay=weight_decay,
        momentum=momentum,
        momentum_buffer=momentum_buffer,
        centered=centered,
        grad_avg=grad_avg,
        layout=layout,
    )


def _rmsprop_step(
    op: str,
    params: Tensor,
    grads: Tensor,
    square_avg: Tensor,
    lr: float | Tensor,
    *,
    momentum_buffer: Tensor | None,
    grad_avg: Tensor | None,
    **options: Any,
) -> tuple[Tensor, ...]:
    """Check the arguments and run `op`, the function or its twin."""
    _check.below_one(op, options, "alpha")
    _check.non_negative(op, options, "weight_decay", "momentum")
    _check.positive(op, options, "eps")
    has_momentum, centered = options["momentum"] != 0, options["centered"]
    momentum_buffer = momentum_buffer if has_momentum else None
    grad_avg = grad_avg if centered else None
    _check.buffers(
        op,
        params=params,
        grads=grads,
        square_avg=square_avg,
        momentum_buffer=momentum_buffer,
        grad_avg=grad_avg,
    )
    lr = _check.learning_rate(op, lr, params, options["layout"])
    written: dict[str, Tensor | None] = {"params": params, "square_avg": square_avg}
    if has_momentum:
        written["momentum_buffer"] = momentum_buffer
    if centered:
        written["grad_avg"] = grad_avg
    out = _check.targets(op, written, grads=grads, lr=lr)
    if has_momentum and momentum_buffer is None:
        momentum_buffer = torch.zeros_like(params)
    if centered and grad_avg is None:
        grad_avg = torch.zeros_like(params)
    return RMSPROP_STEP.run(
        params, grads, square_avg, lr, momentum_buffer=momentum_buffer, grad_avg=grad_avg, out=out, **options
    )


def _compiled(
    params: Tensor,
    grads: Tensor,
    square_avg: Tensor,
    lr: float | Tensor,
    *,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    momentum_buffer: Tensor | None,
    centered: bool,
    grad_avg: Tensor | None,
    layout: FlatLayout | None,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    """Run the compiled kernel."""
    params, grads, square_avg, momentum_buffer, grad_avg = buffers.inputs(
        params, grads, square_avg, momentum_buffer if momentum != 0 else None, grad_avg if centered else None
    )
    state = [x for x in (momentum_buffer, grad_avg) if x is not None]
    results = out or buffers.new_results(params, 2 + len(state))
    rate, _keep = buffers.learning_rate(lr, params, layout)
    buffers.run(
        "rmsprop_step",
        params,
        buffers.matrix(params),
        buffers.matrix(grads),
        buffers.matrix(square_avg),
        buffers.optional_matrix(momentum_buffer),
        buffers.optional_matrix(grad_avg),
        buffers.matrix(results[0]),
        buffers.matrix(results[1]),
        buffers.optional_matrix(results[2] if momentum != 0 else None),
        buffers.optional_matrix(results[-1] if centered else None),
        rate,
        (alpha, eps, weight_decay, momentum),
    )
    return results


RMSPROP_STEP = Op("rmsprop_step", _compiled)
