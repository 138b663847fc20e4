"""`meta_adam_step`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .._native import buffers
from . import _check
from ._op import Op
from .reference import inverse_bias_corrections

if TYPE_CHECKING:
    from ..flat import FlatLayout


def meta_adam_step(
    params: Tensor,
    adapted: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float | Tensor,
    *,
    step: int,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    weights: Tensor | None = None,
    layout: FlatLayout | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take one step of Adam along Reptile's meta-gradient, in one pass over memory.

    Equal to `adam_step(params, reptile_gradient(params, adapted, weights), ...)`, but in bfloat16 the
    intermediate gradient is not rounded.

    Args:
        params: the initialisation, `[numel]`.
        adapted: `[tasks, numel]`, at least one task.
        exp_avg, exp_avg_sq, lr, step, betas, eps, weight_decay, decoupled, layout: as in `adam_step`; `eps`
        above 0.
        weights: as in `reptile_interpolate`.

    Returns:
        `(params, exp_avg, exp_avg_sq)`.

    Raises:
        ValueError: shapes, dtypes, devices or numbers do not fit.

    Example:
        >>> import torch
        >>> from metagan_fast import functional
        >>> initial, adapted = torch.zeros(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> state = torch.zeros(2), torch.zeros(2)
        >>> params, *state = functional.meta_adam_step(initial, adapted, *state, lr=0.25, step=1)
        >>> params
        tensor([0.2500, 0.2500])
    """
    return _meta_adam_step(
        "meta_adam_step",
        params,
        adapted,
        exp_avg,
        exp_avg_sq,
        lr,
        step=step,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        decoupled=decoupled,
        weights=weights,
        layout=layout,
    )


def meta_adam_step_(
    params: Tensor,
    adapted: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float | Tensor,
    *,
    step: int,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    weights: Tensor | None = None,
    layout: FlatLayout | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Overwrite `params`, `exp_avg` and `exp_avg_sq` with the result of `meta_adam_step`."""
    return _meta_adam_step(
        "meta_adam_step_",
        params,
        adapted,
        exp_avg,
        exp_avg_sq,
        lr,
        step=step,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        decoupled=decoupled,
        weights=weights,
        layout=layout,
    )


def _meta_adam_step(
    op: str, params: Tensor, adapted: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, lr: float | Tensor, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the arguments and run `op`, the function or its twin."""
    weights = options["weights"]
    _check.tasks(op, "params", params, adapted, weights)
    _check.buffers(op, params=params, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    lr = _check.learning_rate(op, lr, params, options["layout"])
    options["step"] = _check.step_number(op, options["step"])  # not the corrections that `adam_step` takes
    _check.adam(op, options, params.device)
    written = {"params": params, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    out = _check.targets(op, written, adapted=adapted, lr=lr, weights=weights)
    params, exp_avg, exp_avg_sq = META_ADAM_STEP.run(params, adapted, exp_avg, exp_avg_sq, lr, out=out, **options)
    return params, exp_avg, exp_avg_sq


def _compiled(
    params: Tensor,
    adapted: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float | Tensor,
    *,
    step: int,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    weights: Tensor | None,
    layout: FlatLayout | None,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    """Run the compiled kernel."""
    params, adapted, exp_avg, exp_avg_sq = buffers.inputs(params, adapted, exp_avg, exp_avg_sq)
    results = out or buffers.new_results(params, 3)
    combine = buffers.arithmetic_weights(weights, params)
    rate, _keep = buffers.learning_rate(lr, params, layout)
    buffers.run(
        "meta_adam_step",
        adapted,
        buffers.address(params),
        buffers.matrix(adapted),
        buffers.address(combine),
        buffers.address(exp_avg),
        buffers.address(exp_avg_sq),
        buffers.address(results[0]),
        buffers.address(results[1]),
        buffers.address(results[2]),
        rate,
        (*betas, *inverse_bias_corrections(step, betas), eps, 0.0, weight_decay, decoupled),
    )
    return results


META_ADAM_STEP = Op("meta_adam_step", _compiled)
