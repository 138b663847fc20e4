"""Reptile and EMA updates of an initialisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..ops import ema_update as _ema_update
from ..ops import meta_adam_step as _meta_adam_step
from ..ops import reptile_gradient as _reptile_gradient
from ..ops import reptile_interpolate as _reptile_interpolate

if TYPE_CHECKING:
    from ..flat import FlatLayout


def reptile_interpolate(
    initial: Tensor, adapted: Tensor, step_size: float | Tensor, weights: Tensor | None = None
) -> Tensor:
    """Move an initialisation towards adapted parameters, Reptile's meta-step (Nichol et al. 2018, alg. 2).

    `initial + step_size * mean(adapted[task] - initial)`, or with weights the weighted sum in place of the
    mean. Tasks are added in index order.

    Args:
        initial: `[numel]`.
        adapted: `[tasks, numel]`, at least one task.
        step_size: a finite number, or a 0-dim tensor.
        weights: `[tasks]`, used as they are (normalise them yourself); None for the mean.

    Returns:
        The new initialisation, `[numel]`.

    Raises:
        ValueError: shapes, dtypes, devices or numbers do not fit.

    Example:
        >>> import torch
        >>> from metagan_fast import functional
        >>> adapted = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # two tasks
        >>> functional.reptile_interpolate(torch.zeros(2), adapted, step_size=0.5)
        tensor([1.0000, 1.5000])
    """
    return _reptile_interpolate.call("reptile_interpolate", initial, adapted, step_size, weights)


def reptile_interpolate_(
    initial: Tensor, adapted: Tensor, step_size: float | Tensor, weights: Tensor | None = None
) -> Tensor:
    """Overwrite `initial` with the result of `reptile_interpolate`."""
    return _reptile_interpolate.call("reptile_interpolate_", initial, adapted, step_size, weights)


def reptile_gradient(initial: Tensor, adapted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return Reptile's meta-gradient, `mean(initial - adapted[task])` or with weights the weighted sum.

    Args and Raises as in `reptile_interpolate`.

    Returns:
        `[numel]`, the gradient for an optimizer.

    Example:
        >>> import torch
        >>> from metagan_fast import functional
        >>> functional.reptile_gradient(torch.zeros(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([-2., -3.])
    """
    return _reptile_gradient.call("reptile_gradient", None, initial, adapted, weights)


def reptile_gradient_(gradient: Tensor, initial: Tensor, adapted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Overwrite `gradient` with the result of `reptile_gradient`."""
    return _reptile_gradient.call("reptile_gradient_", gradient, initial, adapted, weights)


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
    return _meta_adam_step.call(
        "meta_adam_step",
        params,
        adapted,
        exp_avg,
        exp_avg_sq,
        lr,
        step,
        betas,
        eps,
        weight_decay,
        decoupled,
        weights,
        layout,
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
    return _meta_adam_step.call(
        "meta_adam_step_",
        params,
        adapted,
        exp_avg,
        exp_avg_sq,
        lr,
        step,
        betas,
        eps,
        weight_decay,
        decoupled,
        weights,
        layout,
    )


def ema_update(average: Tensor, params: Tensor, decay: float) -> Tensor:
    """Return the exponential moving average, `average + (1 - decay) * (params - average)`.

    Args:
        average: `[numel]` or `[tasks, numel]`.
        params: like `average`.
        decay: in [0, 1].

    Raises:
        ValueError: shapes, dtypes, devices or `decay` do not fit.

    Example:
        >>> import torch
        >>> from metagan_fast import functional
        >>> functional.ema_update(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), decay=0.75)
        tensor([0.2500, 1.0000])
    """
    return _ema_update.call("ema_update", average, params, decay)


def ema_update_(average: Tensor, params: Tensor, decay: float) -> Tensor:
    """Overwrite `average` with the result of `ema_update`."""
    return _ema_update.call("ema_update_", average, params, decay)
