"""The meta-update: a meta-gradient is clamped, checked, clipped and applied to the initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import functional
from .._utils.coerce import convert, non_negative, real, reals
from .._utils.pair import Pair
from .._utils.tensors import ordinary
from ..executors import MetaGradient
from ..ops import reference
from ..schedules import Rate, check_rate, rate_at

OPTIMIZERS = ("sgd", "adam", "adamw")

Buffers = tuple[Tensor, ...]
"""State of the meta-optimizer for one network, `[numel]` each."""


@dataclass(frozen=True)
class MetaOptimizer:
    """Settings of the meta-optimizer, and its update of the initialisation.

    Args:
        optimizer: "sgd", "adam" or "adamw". SGD on Reptile's difference is Reptile's own update with
            epsilon = lr (Nichol et al. 2018, equation 2).
        lr: learning rate: a number of at least 0, or a callable of the meta-step (`schedules.Linear(1.0, 0.0, n)`).
        momentum: of "sgd", in [0, 1).
        betas, eps: of "adam" and "adamw".
        weight_decay: L2 for "sgd" and "adam", decoupled for "adamw" (Loshchilov & Hutter 2019).
        clip_norm: scale each network's meta-gradient down to this L2 norm; None: never.
        clip_value: clamp each component to [-clip_value, clip_value] first; None: never.

    Raises:
        ValueError: a value out of range or a setting that the optimizer does not read.
    """

    optimizer: str = "adam"
    lr: Rate = 1e-4
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"expected a meta-optimizer of {', '.join(OPTIMIZERS)}; got {self.optimizer!r}")
        convert(self, check_rate, "lr")
        convert(self, real, "momentum")
        convert(self, reals, "betas", length=2)
        convert(self, non_negative, "eps", "weight_decay")
        convert(self, real, "clip_norm", "clip_value", optional=True)
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f'expected no momentum with "{self.optimizer}", got {self.momentum}; use betas')
        if not 0 <= self.momentum < 1:
            raise ValueError(f"expected a momentum in [0, 1), got {self.momentum}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"expected betas in [0, 1), got {self.betas}")
        for name in ("clip_norm", "clip_value"):
            bound = getattr(self, name)
            if bound is not None and not 0 < bound < math.inf:
                raise ValueError(f"expected {name} to be positive and finite, or None, got {bound}")

    @property
    def buffers(self) -> int:
        """Number of state buffers of a network."""
        return 2 if self.optimizer != "sgd" else 1 if self.momentum else 0

    def initial_state(self, params: Tensor) -> Buffers:
        """Return the zero state for parameters [numel]."""
        return tuple(torch.zeros_like(params) for _ in range(self.buffers))

    def numbers(self, meta_step: int, update: int) -> tuple[float, float, float]:
        """Return the numbers that change from update to update: learning rate and inverse bias corrections.

        `meta_step` counts from 0, for the schedule; `update` from 1, for Adam's bias corrections.
        """
        return (rate_at(self.lr, meta_step), *reference.inverse_bias_corrections(update, self.betas))

    def update(
        self,
        initial: Pair[Tensor],
        buffers: Pair[Buffers],
        gradient: MetaGradient,
        lr: float | Tensor,
        step: int | Tensor,
        *,
        check: Callable[[float], None] | None,
    ) -> dict[str, Tensor]:
        """Take one meta-update; return the gradient's metrics, averaged over tasks, and its norm as `gradient_norm`.

        Args:
            initial, buffers: the initialisation and the optimizer's state, overwritten.
            gradient: the meta-gradient; `clip_value` clamps it in place.
            lr: learning rate, a number or float64 [] on the parameters' device.
            step: number of the update from 1, or Adam's inverse bias corrections, float64 [2] on that device.
            check: takes the norm and raises to refuse the update, before anything is written. None reads nothing back,
                as a recorded meta-step must: a meta-gradient that is not finite then leaves initialisation and state
                unchanged by a `torch.where`.

        Returns:
            0-dimensional tensors by name; the norm is the L2 norm over both networks, before clamping and clipping.
        """
        directions = Pair(gradient.generator, gradient.discriminator).map(ordinary)
        norm = torch.stack(directions.map(self.clamp)).norm()
        if check is not None:
            check(norm.item())
        for params, state, direction in zip(initial, buffers, directions, strict=True):
            if check is not None:
                self.step(params, direction, state, lr, step, in_place=True)
            else:
                updated = self.step(params, direction, state, lr, step, in_place=False)
                with torch.no_grad():
                    for old, new in zip((params, *state), updated, strict=True):
                        old.copy_(torch.where(norm < float("inf"), new, old))
        return {name: value.mean() for name, value in gradient.metrics.items()} | {"gradient_norm": norm}

    def clamp(self, gradient: Tensor) -> Tensor:
        """Clamp a meta-gradient [numel] to `clip_value` in place; return its L2 norm before that."""
        norm = torch.linalg.vector_norm(gradient)
        if self.clip_value is not None:
            gradient.clamp_(-self.clip_value, self.clip_value)
        return norm

    def step(
        self,
        params: Tensor,
        gradient: Tensor,
        state: Buffers,
        lr: float | Tensor,
        step: int | Tensor,
        *,
        in_place: bool,
    ) -> tuple[Tensor, ...]:
        """Return one network's parameters and state after a step along the gradient, clipped to `clip_norm`.

        Args:
            params, gradient, state: `[numel]` each.
            lr, step: as in `update`.
            in_place: overwrite parameters and state; otherwise return new tensors.
        """
        if self.optimizer == "sgd":
            sgd_step = functional.sgd_step_ if in_place else functional.sgd_step
            result = sgd_step(
                params,
                gradient,
                lr,
                momentum_buffer=state[0] if state else None,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                max_norm=self.clip_norm,
            )
            return result if isinstance(result, tuple) else (result,)
        adam_step = functional.adam_step_ if in_place else functional.adam_step
        exp_avg, exp_avg_sq = state
        return adam_step(
            params,
            gradient,
            exp_avg,
            exp_avg_sq,
            lr,
            step=step,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            decoupled=self.optimizer == "adamw",
            max_norm=self.clip_norm,
        )
