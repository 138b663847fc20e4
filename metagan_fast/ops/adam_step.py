"""`adam_step`; m and v are `exp_avg` and `exp_avg_sq`, as in Kingma and Ba 2015."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .._native import buffers
from . import _check
from ._dispatch import dispatch
from ._op import Op
from ._rows import as_rows, fold_into_rows, rate_as_rows, sum_over_rate, zeros_for_none
from .clip_grad_norm import CLIP_GRAD_NORM
from .reference import inverse_bias_corrections, safe_sqrt, widen

if TYPE_CHECKING:
    from ..flat import FlatLayout


def adam_step(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float | Tensor,
    *,
    step: int | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    layout: FlatLayout | None = None,
    max_norm: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take one step of Adam (Kingma and Ba 2015, algorithm 1) or AdamW (Loshchilov and Hutter 2019).

    Args:
        params: `[numel]` or `[tasks, numel]`.
        grads: like `params`.
        exp_avg: like `params`, mean of the gradients; zeros before the first step.
        exp_avg_sq: like `params`, mean of their squares; zeros before the first step.
        lr: learning rate, at least 0, in any form of `metagan_fast.functional`.
        step: number of this step, from 1; or its inverse bias corrections `1 / (1 - beta**step)`, float64 `[2]` on the
            buffers' device, which a recorded step reads anew each time.
        betas: decay of the two means, in [0, 1).
        eps: added to the square root, at least 0.
        eps_root: added under the square root, at least 0; keeps its derivative finite. One of the two is
        above 0.
        weight_decay: at least 0; an L2 penalty, or with `decoupled` AdamW's shrinking by `lr * weight_decay`.
        decoupled: AdamW.
        layout: makes `lr` one value a parameter tensor.
        max_norm: scale each row of `grads` down to this L2 norm first, as `clip_grad_norm` does; None: never.

    Returns:
        `(params, exp_avg, exp_avg_sq)`.

    Raises:
        ValueError: shapes, dtypes, devices or numbers do not fit.

    Example:
        >>> import torch
        >>> from metagan_fast import functional
        >>> params, grads = torch.zeros(2), torch.tensor([1.0, -2.0])
        >>> params, exp_avg, exp_avg_sq = functional.adam_step(
        ...     params, grads, torch.zeros(2), torch.zeros(2), lr=0.25, step=1
        ... )
        >>> params
        tensor([-0.2500,  0.2500])
    """
    return _adam_step(
        "adam_step",
        params,
        grads,
        exp_avg,
        exp_avg_sq,
        lr,
        step=step,
        betas=betas,
        eps=eps,
        eps_root=eps_root,
        weight_decay=weight_decay,
        decoupled=decoupled,
        layout=layout,
        max_norm=max_norm,
    )


def adam_step_(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float | Tensor,
    *,
    step: int | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    layout: FlatLayout | None = None,
    max_norm: float | None = None,
    zero_grads: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Overwrite `params`, `exp_avg` and `exp_avg_sq` with the result of `adam_step`; `zero_grads` as in `sgd_step_`."""
    return _adam_step(
        "adam_step_",
        params,
        grads,
        exp_avg,
        exp_avg_sq,
        lr,
        step=step,
        betas=betas,
        eps=eps,
        eps_root=eps_root,
        weight_decay=weight_decay,
        decoupled=decoupled,
        layout=layout,
        max_norm=max_norm,
        zero_grads=zero_grads,
    )


def _adam_step(
    op: str,
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float | Tensor,
    *,
    zero_grads: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the arguments and run `op`, the function or its twin."""
    _check.buffers(op, params=params, grads=grads, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    lr = _check.learning_rate(op, lr, params, options["layout"])
    _check.adam(op, options, params.device)
    _check.max_norm(op, options)
    written = {"params": params, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    out = _check.step_targets(op, written, grads, lr, zero_grads)
    params, exp_avg, exp_avg_sq = ADAM_STEP.run(
        params, grads, exp_avg, exp_avg_sq, lr, zero_grads=zero_grads, out=out, **options
    )
    return params, exp_avg, exp_avg_sq


def _compiled(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float | Tensor,
    *,
    step: int | Tensor,
    betas: tuple[float, float],
    eps: float,
    eps_root: float,
    weight_decay: float,
    decoupled: bool,
    layout: FlatLayout | None,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    """Run the compiled kernel."""
    params, grads, exp_avg, exp_avg_sq = buffers.inputs(params, grads, exp_avg, exp_avg_sq)
    results = out or buffers.new_results(params, 3)
    rate, _keep = buffers.learning_rate(lr, params, layout)
    corrections = [buffers.number(x, params) for x in inverse_bias_corrections(step, betas)]
    buffers.run(
        "adam_step",
        params,
        buffers.matrix(params),
        buffers.matrix(grads),
        buffers.matrix(exp_avg),
        buffers.matrix(exp_avg_sq),
        buffers.matrix(results[0]),
        buffers.matrix(results[1]),
        buffers.matrix(results[2]),
        rate,
        (*betas, *(number for number, _ in corrections), eps, eps_root, weight_decay, decoupled),
    )
    return results


def _differentiable(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float | Tensor,
    *,
    layout: FlatLayout | None,
    **options: Any,
) -> tuple[Tensor, ...]:
    """Run the op as an `autograd.Function`."""
    rows = map(as_rows, (params, grads, exp_avg, exp_avg_sq))
    return tuple(x.view_as(params) for x in _AdamStep.apply(*rows, rate_as_rows(lr, layout, params.device), options))


class _AdamStep(torch.autograd.Function):
    """Fused step over `[rows, numel]`; the learning rate is `[1 or rows, 1 or numel]`."""

    @staticmethod
    def forward(
        params: Tensor,
        grads: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        lr: Tensor,
        options: dict[str, Any],
    ) -> tuple[Tensor, ...]:
        step = dispatch(ADAM_STEP, params)
        return step(params, grads, exp_avg, exp_avg_sq, lr, layout=None, out=None, **options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        params, grads, _, _, lr, ctx.options = inputs
        saved = (params, grads, lr, *output[1:])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, d_params: Tensor, d_exp_avg: Tensor, d_exp_avg_sq: Tensor) -> tuple[Tensor | None, ...]:
        at = _linearise(ctx)
        options = ctx.options
        beta1, beta2 = options["betas"]
        d_params = widen(d_params)
        d_lr = sum_over_rate(-d_params * at.direction, at.lr) if ctx.needs_input_grad[4] else None
        d_update = -at.rate * d_params
        d_m = widen(d_exp_avg) + d_update * at.update_by_m
        d_v = widen(d_exp_avg_sq) + d_update * at.update_by_v
        d_grads = (1 - beta1) * d_m + (1 - beta2) * (2 * at.grads * d_v)
        if options["decoupled"]:
            d_params = d_params * (1 - at.rate * options["weight_decay"])
        else:
            d_params = d_params + options["weight_decay"] * d_grads
        d_buffers = (x.to(at.dtype) for x in (d_params, d_grads, beta1 * d_m, beta2 * d_v))
        return *d_buffers, d_lr, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        at = _linearise(ctx)
        options = ctx.options
        beta1, beta2 = options["betas"]
        t_params, t_grads, t_m, t_v = map(widen, zeros_for_none(tangents[:4], like=ctx.saved_tensors[0]))
        t_lr = tangents[4]
        if options["decoupled"]:
            t_params = t_params * (1 - at.rate * options["weight_decay"])
        else:
            t_grads = t_grads + options["weight_decay"] * t_params
        t_m = beta1 * t_m + (1 - beta1) * t_grads
        t_v = beta2 * t_v + (1 - beta2) * (2 * at.grads * t_grads)
        t_params = t_params - at.rate * (t_m * at.update_by_m + t_v * at.update_by_v)
        if t_lr is not None:
            t_params = t_params - widen(t_lr, like=t_params) * at.direction
        return tuple(x.to(at.dtype) for x in (t_params, t_m, t_v))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> Any:
        return fold_into_rows(_AdamStep.apply, info.batch_size, in_dims, operands)


class _Linearisation(NamedTuple):
    """Partial derivatives, themselves differentiable, that backward and jvp share."""

    grads: Tensor  # with L2 weight decay added
    update_by_m: Tensor
    update_by_v: Tensor  # 0 where v is 0
    direction: Tensor  # factor of the learning rate
    rate: Tensor  # the learning rate in the arithmetic dtype
    lr: Tensor  # the learning rate as passed
    dtype: torch.dtype  # of the buffers


def _linearise(ctx: Any) -> _Linearisation:
    """Recompute the partial derivatives from the inputs and the new moments."""
    params, grads, lr, *_ = ctx.saved_tensors
    dtype = params.dtype
    params, grads, _, m, v = map(widen, ctx.saved_tensors)
    options = ctx.options
    weight_decay, decoupled = options["weight_decay"], options["decoupled"]
    inverse_bias1, inverse_bias2 = inverse_bias_corrections(options["step"], options["betas"])

    root = safe_sqrt(v * inverse_bias2 + options["eps_root"])
    at_zero = root == 0
    root_by_v = torch.where(at_zero, 0.0, (0.5 * inverse_bias2) / torch.where(at_zero, 1.0, root))
    update_by_m = inverse_bias1 / (root + options["eps"])
    update = m * update_by_m
    update_by_v = -update * root_by_v / (root + options["eps"])
    return _Linearisation(
        grads=grads if decoupled else grads + weight_decay * params,
        update_by_m=update_by_m,
        update_by_v=update_by_v,
        direction=update + weight_decay * params if decoupled else update,
        rate=widen(lr, like=params),
        lr=lr,
        dtype=dtype,
    )


ADAM_STEP = Op("adam_step", _compiled, _differentiable, clip=CLIP_GRAD_NORM)
