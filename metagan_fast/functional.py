"""Fused optimizer and meta-learning updates over flat buffers: one pass over memory each.

**Buffers** are `[numel]`, or `[tasks, numel]` with one row a task, in float32, bfloat16 or float64; all
buffers of a call share shape, dtype and device. bfloat16 is storage: arithmetic is float32, rounded once at
the end. float32 and float64 compute in their own precision. Rows may be any distance apart; inputs whose
elements are not adjacent are copied first. Zero padding (see `metagan_fast.flat`) stays zero.

**Learning rates** are a number, a 0-dim tensor, or a tensor: `[tasks]` or `[tasks, 1]` (one a task),
`[numel]` or `[tasks, numel]` (one an element), and with `layout=` `[slots]` or `[tasks, slots]` (one a
parameter tensor, in the order of `layout.slots`). Tensors are not checked for sign.

**Results.** A function returns new tensors; its twin with a trailing underscore overwrites the tensors it
names and returns those. A twin refuses tensors that require grad while grad mode is on, memory that overlaps,
and `torch.func` transforms. On every backend, instruction set and number of threads the result has the bits
of `metagan_fast.reference`, except for `clip_grad_norm`.

**Derivatives.** The functions (not the twins) can be differentiated to any order by every tensor argument,
learning rates included, under autograd, `torch.func` (grad, vmap, jvp and their compositions) and
torch.compile. `sgd_step` and `adam_step` keep the fused kernel then; the others, and everything under
torch.compile, become plain PyTorch. The derivative of a square root at 0 is defined as 0, as in the library
`higher`.

`use_backend("native" | "triton" | "cuda" | "reference")` is a context manager that chooses who computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from metagan_fast._backends import use_backend
from metagan_fast._ops import adam_step as _adam_step
from metagan_fast._ops import clip_grad_norm as _clip_grad_norm
from metagan_fast._ops import ema_update as _ema_update
from metagan_fast._ops import meta_adam_step as _meta_adam_step
from metagan_fast._ops import reptile_gradient as _reptile_gradient
from metagan_fast._ops import reptile_interpolate as _reptile_interpolate
from metagan_fast._ops import rmsprop_step as _rmsprop_step
from metagan_fast._ops import sgd_step as _sgd_step

if TYPE_CHECKING:
    from metagan_fast.flat import FlatLayout

__all__ = [
    "adam_step",
    "adam_step_",
    "clip_grad_norm",
    "clip_grad_norm_",
    "ema_update",
    "ema_update_",
    "meta_adam_step",
    "meta_adam_step_",
    "reptile_gradient",
    "reptile_gradient_",
    "reptile_interpolate",
    "reptile_interpolate_",
    "rmsprop_step",
    "rmsprop_step_",
    "sgd_step",
    "sgd_step_",
    "use_backend",
]


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
) -> Tensor | tuple[Tensor, Tensor]:
    """Take one step of stochastic gradient descent, as `torch.optim.SGD` does.

    Args:
        params: `[numel]` or `[tasks, numel]`.
        grads: like `params`.
        lr: learning rate, at least 0, in any form of this module.
        momentum_buffer: like `params`, of the step before; None on the first step, which is not dampened.
        momentum: factor of the buffer, at least 0.
        dampening: the gradient enters the buffer times `1 - dampening`.
        nesterov: look ahead along the buffer (Sutskever et al. 2013); needs momentum and no dampening.
        weight_decay: L2 penalty, at least 0.
        layout: makes `lr` one value a parameter tensor.

    Returns:
        The new parameters, or `(params, momentum_buffer)` when `momentum` is not 0.

    Raises:
        ValueError: shapes, dtypes, devices or numbers do not fit.
    """
    return _sgd_step.call(
        "sgd_step", params, grads, lr, momentum_buffer, momentum, dampening, nesterov, weight_decay, layout
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
) -> Tensor | tuple[Tensor, Tensor]:
    """Overwrite `params` and `momentum_buffer` with the result of `sgd_step`.

    With momentum the buffer is required: zeros before the first step, and `dampening=0.0` in it.
    """
    return _sgd_step.call(
        "sgd_step_", params, grads, lr, momentum_buffer, momentum, dampening, nesterov, weight_decay, layout
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Take one step of Adam (Kingma and Ba 2015, algorithm 1) or AdamW (Loshchilov and Hutter 2019).

    Args:
        params: `[numel]` or `[tasks, numel]`.
        grads: like `params`.
        exp_avg: like `params`, mean of the gradients; zeros before the first step.
        exp_avg_sq: like `params`, mean of their squares; zeros before the first step.
        lr: learning rate, at least 0, in any form of this module.
        step: number of this step, from 1; or its inverse bias corrections `1 / (1 - beta**step)`, float64 `[2]` on the
            buffers' device, which a recorded step reads anew each time.
        betas: decay of the two means, in [0, 1).
        eps: added to the square root, at least 0.
        eps_root: added under the square root, at least 0; keeps its derivative finite. One of the two is
        above 0.
        weight_decay: at least 0; an L2 penalty, or with `decoupled` AdamW's shrinking by `lr * weight_decay`.
        decoupled: AdamW.
        layout: makes `lr` one value a parameter tensor.

    Returns:
        `(params, exp_avg, exp_avg_sq)`.

    Raises:
        ValueError: shapes, dtypes, devices or numbers do not fit.
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Overwrite `params`, `exp_avg` and `exp_avg_sq` with the result of `adam_step`."""
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

    Where the centered variance `square_avg - grad_avg**2` comes out below 0 by rounding it counts as 0.

    Args:
        params: `[numel]` or `[tasks, numel]`.
        grads: like `params`.
        square_avg: like `params`, mean of the squared gradients; zeros before the first step.
        lr: learning rate, at least 0, in any form of this module.
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
    """Overwrite `params` and the state that is in use with the result of `rmsprop_step`.

    The state must be there: zeros before the first step.
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
        `[numel]`, to hand to an optimizer.
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

    Equal to `adam_step(params, reptile_gradient(params, adapted, weights), ...)`, except that in bfloat16 the
    gradient in between is not rounded.

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


def clip_grad_norm(grads: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """Scale each row to an L2 norm of at most `max_norm` (Pascanu et al. 2013), as torch's `clip_grad_norm_`.

    The norm is accumulated in float64 over fixed blocks: the same bits for any number of threads, within
    2 ulp of the reference (4 for scaled float64 rows). Rows are multiplied by
    `min(1, max_norm / (norm + 1e-6))`. As in torch, a row whose norm is infinite becomes 0 (NaN where it was
    infinite), one whose norm is NaN becomes NaN: look at the norms.

    Args:
        grads: `[numel]` or `[tasks, numel]`.
        max_norm: finite, at least 0.

    Returns:
        `(grads, norms)`, the norms before scaling, `[]` or `[tasks]`, in float32 (float64 for float64).

    Raises:
        ValueError: `grads` or `max_norm` do not fit.
    """
    return _clip_grad_norm.call("clip_grad_norm", grads, max_norm)


def clip_grad_norm_(grads: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """Overwrite `grads` with the result of `clip_grad_norm`."""
    return _clip_grad_norm.call("clip_grad_norm_", grads, max_norm)


def ema_update(average: Tensor, params: Tensor, decay: float) -> Tensor:
    """Return the exponential moving average after one more value.

    That is `average + (1 - decay) * (params - average)`.

    Args:
        average: `[numel]` or `[tasks, numel]`.
        params: like `average`.
        decay: in [0, 1].

    Raises:
        ValueError: shapes, dtypes, devices or `decay` do not fit.
    """
    return _ema_update.call("ema_update", average, params, decay)


def ema_update_(average: Tensor, params: Tensor, decay: float) -> Tensor:
    """Overwrite `average` with the result of `ema_update`."""
    return _ema_update.call("ema_update_", average, params, decay)
