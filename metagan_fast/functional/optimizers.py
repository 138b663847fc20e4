"""Optimizer steps and gradient clipping."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..ops import adam_step as _adam_step
from ..ops import clip_grad_norm as _clip_grad_norm
from ..ops import rmsprop_step as _rmsprop_step
from ..ops import sgd_step as _sgd_step

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
    return _sgd_step.call(
        "sgd_step",
        params,
        grads,
        lr,
        momentum_buffer,
        momentum,
        dampening,
        nesterov,
        weight_decay,
        layout,
        max_norm,
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
    return _sgd_step.call(
        "sgd_step_",
        params,
        grads,
        lr,
        momentum_buffer,
        momentum,
        dampening,
        nesterov,
        weight_decay,
        layout,
        max_norm,
        zero_grads,
    )


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
    return _adam_step.call(
        "adam_step",
        params,
        grads,
        exp_avg,
        exp_avg_sq,
        lr,
        step,
        betas,
        eps,
        eps_root,
        weight_decay,
        decoupled,
        layout,
        max_norm,
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
    return _adam_step.call(
        "adam_step_",
        params,
        grads,
        exp_avg,
        exp_avg_sq,
        lr,
        step,
        betas,
        eps,
        eps_root,
        weight_decay,
        decoupled,
        layout,
        max_norm,
        zero_grads,
    )


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
    return _rmsprop_step.call(
        "rmsprop_step",
        params,
        grads,
        square_avg,
        lr,
        alpha,
        eps,
        weight_decay,
        momentum,
        momentum_buffer,
        centered,
        grad_avg,
        layout,
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
    return _rmsprop_step.call(
        "rmsprop_step_",
        params,
        grads,
        square_avg,
        lr,
        alpha,
        eps,
        weight_decay,
        momentum,
        momentum_buffer,
        centered,
        grad_avg,
        layout,
    )


def clip_grad_norm(grads: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """Scale each row to an L2 norm of at most `max_norm` (Pascanu et al. 2013), as torch's `clip_grad_norm_`.

    The norm is accumulated in float64 over fixed blocks: the same bits for any number of threads, within
    2 ulp of the reference (4 for scaled float64 rows). Rows are multiplied by
    `min(1, max_norm / (norm + 1e-6))`. As in torch, a row whose norm is infinite becomes 0 (NaN where it was
    infinite), one whose norm is NaN becomes NaN: look at the norms. On a GPU, rows of at most 8192 elements take one
    launch, in which one block reads its row twice; longer rows take two (no other op does), because scaling needs
    the whole norm and blocks synchronise only between launches.

    Args:
        grads: `[numel]` or `[tasks, numel]`.
        max_norm: finite, at least 0.

    Returns:
        `(grads, norms)`, the norms before scaling, `[]` or `[tasks]`, in float32 (float64 for float64).

    Raises:
        ValueError: `grads` or `max_norm` do not fit.

    Example:
        >>> import torch
        >>> from metagan_fast import functional
        >>> grads, norms = functional.clip_grad_norm(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), max_norm=1.0)
        >>> grads, norms
        (tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]]), tensor([5.0000, 0.5000]))
    """
    return _clip_grad_norm.call("clip_grad_norm", grads, max_norm)


def clip_grad_norm_(grads: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """Overwrite `grads` with the result of `clip_grad_norm`."""
    return _clip_grad_norm.call("clip_grad_norm_", grads, max_norm)
