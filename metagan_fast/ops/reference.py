"""Executable specification of the fused ops, in plain PyTorch.

The kernels in `csrc/ops/formulas.h` and `kernels/` follow it operation by operation, and tests hold them to the
same bits. Therefore:

- One torch call is one rounding: never `alpha=`, `addcmul`, `addcdiv`, `lerp`, and never `number / tensor`,
  which PyTorch computes as a reciprocal and a product.
- bfloat16 is storage only: converted to float32 on the way in, rounded once on the way out. Everything else
  computes in its own dtype. Python numbers are rounded to that dtype once.
- Tasks are added in index order, and anything that depends on the step alone is computed in Python.

The functions take tensors of any shape that broadcasts, return new tensors and are made of ordinary
differentiable operations, so they compose with autograd, `torch.func` and `torch.compile`. They validate
nothing and know no learning rate forms beyond broadcasting: `metagan_fast.functional` does that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CLIP_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm


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
) -> tuple[Tensor, ...]:
    """Return `(params,)`, or `(params, momentum_buffer)` when `momentum` is not 0."""
    p, g = widen(params), widen(grads)
    rate = widen(lr, like=p)
    if weight_decay != 0:
        g = g + weight_decay * p
    if momentum == 0:
        return (narrow(p - rate * g, params),)
    if momentum_buffer is None:  # the first step is not dampened, as in torch.optim.SGD
        momentum_buffer, dampening = torch.zeros_like(params), 0.0
    buffer = momentum * widen(momentum_buffer) + (1 - dampening) * g
    direction = g + momentum * buffer if nesterov else buffer
    return narrow(p - rate * direction, params), narrow(buffer, params)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `(params, exp_avg, exp_avg_sq)` after step number `step`, counted from 1.

    `step` may also be its inverse bias corrections, `[2]`, which a recorded step reads anew at each replay.
    """
    p, g, m, v = widen(params), widen(grads), widen(exp_avg), widen(exp_avg_sq)
    rate = widen(lr, like=p)
    beta1, beta2 = betas
    inverse_bias1, inverse_bias2 = inverse_bias_corrections(step, betas)
    if weight_decay != 0 and decoupled:
        p = p - (rate * weight_decay) * p
    elif weight_decay != 0:
        g = g + weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * (g * g)
    denominator = safe_sqrt(v * inverse_bias2 + eps_root) + eps
    p = p - (rate * (m * inverse_bias1)) / denominator
    return narrow(p, params), narrow(m, params), narrow(v, params)


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
) -> tuple[Tensor, ...]:
    """Return `(params, square_avg)`, then `momentum_buffer` with momentum, then `grad_avg` if `centered`."""
    p, g = widen(params), widen(grads)
    rate = widen(lr, like=p)
    if weight_decay != 0:
        g = g + weight_decay * p
    v = alpha * widen(square_avg) + (1 - alpha) * (g * g)
    state = [v]
    variance = v
    if centered:
        average = alpha * (torch.zeros_like(p) if grad_avg is None else widen(grad_avg)) + (1 - alpha) * g
        variance = torch.clamp(v - average * average, min=0.0)  # rounding may leave it just below zero
    direction = g / (safe_sqrt(variance) + eps)
    if momentum != 0:
        buffer = torch.zeros_like(p) if momentum_buffer is None else widen(momentum_buffer)
        direction = momentum * buffer + direction
        state.append(direction)
    if centered:
        state.append(average)
    return tuple(narrow(x, params) for x in (p - rate * direction, *state))


def reptile_interpolate(
    initial: Tensor, adapted: Tensor, step_size: float | Tensor, weights: Tensor | None = None
) -> Tensor:
    """Move `initial [numel]` towards the rows of `adapted [tasks, numel]`."""
    start = widen(initial)
    total = _sum_over_tasks([widen(row) - start for row in adapted.unbind(0)], weights)
    return narrow(start + widen(step_size, like=start) * total, initial)


def reptile_gradient(initial: Tensor, adapted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean, or weighted sum, of `initial - adapted[task]`."""
    return narrow(_reptile_gradient(initial, adapted, weights), initial)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `adam_step` along `reptile_gradient`, which stays in the arithmetic dtype in between."""
    return adam_step(
        params,
        _reptile_gradient(params, adapted, weights),
        exp_avg,
        exp_avg_sq,
        lr,
        step=step,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        decoupled=decoupled,
    )


def clip_grad_norm(grads: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """Return the rows of `grads` scaled to a norm of at most `max_norm`, and the norms before that.

    Norm and scale are computed in float64 and rounded to the arithmetic dtype; only the order
    of the sum is unspecified.
    """
    g = widen(grads)
    wide = g.double()
    norm = safe_sqrt((wide * wide).sum(-1))
    scale = torch.clamp(torch.full_like(norm, max_norm) / (norm + CLIP_EPSILON), max=1.0)
    return narrow(g * scale.to(g.dtype).unsqueeze(-1), grads), norm.to(g.dtype)


def ema_update(average: Tensor, params: Tensor, decay: float) -> Tensor:
    """Return `average` moved towards `params` by `1 - decay` of the distance."""
    a = widen(average)
    return narrow(a + (1 - decay) * (widen(params) - a), average)


def inverse_bias_corrections(step: int | Tensor, betas: tuple[float, float]) -> tuple[Any, Any]:
    """Return `1 / (1 - beta**step)` for both betas, so that the kernels multiply instead of dividing.

    A tensor as `step` holds the corrections already.
    """
    if isinstance(step, Tensor):
        return step[0], step[1]
    return 1 / (1 - betas[0] ** step), 1 / (1 - betas[1] ** step)


def safe_sqrt(x: Tensor) -> Tensor:
    """Return the square root, correctly rounded in float32, with every derivative at 0 defined as 0.

    On a CPU `torch.sqrt` may be MKL's, which is not always correctly rounded. Computed in float64 and rounded it
    is: no root of a float32 number lies within 4 ulp (of float64) of the middle between two others.
    """
    zero = x == 0
    x = torch.where(zero, 1.0, x)
    root = torch.sqrt(x.double()).float() if x.dtype == torch.float32 and x.is_cpu else torch.sqrt(x)
    return torch.where(zero, 0.0, root)


def widen(x: float | Tensor, like: Tensor | None = None) -> Tensor:
    """Return `x` in the arithmetic dtype: the dtype of `like` if given, else its own, float32 for bfloat16."""
    if not isinstance(x, Tensor):
        assert like is not None
        return torch.full((), x, dtype=like.dtype, device=like.device)
    if like is not None:
        return x.to(like.dtype)
    return x.float() if x.dtype == torch.bfloat16 else x


def narrow(x: Tensor, like: Tensor) -> Tensor:
    """Return `x` rounded to the storage dtype of `like`."""
    return x.to(like.dtype)


def _reptile_gradient(initial: Tensor, adapted: Tensor, weights: Tensor | None) -> Tensor:
    start = widen(initial)
    return _sum_over_tasks([start - widen(row) for row in adapted.unbind(0)], weights)


def _sum_over_tasks(differences: list[Tensor], weights: Tensor | None) -> Tensor:
    """Return the mean of the differences, or their weighted sum, added in index order."""
    if weights is not None:
        w = widen(weights, like=differences[0])
        differences = [w[task] * difference for task, difference in enumerate(differences)]
    total = differences[0]
    for difference in differences[1:]:
        total = total + difference
    return total if weights is not None else total * (1 / len(differences))
