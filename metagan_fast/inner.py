"""Settings of the inner loop, and the table of inner optimizers over the fused ops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import functional
from ._utils.coerce import convert, count, non_negative, real, reals
from .schedules import Rate, check_rate, rate_at, rate_from_config, rate_to_config


class TrainState(NamedTuple):
    """Parameters and optimizer state of one network, for every task of an inner loop."""

    params: Tensor  # [tasks, numel]
    buffers: tuple[Tensor, ...] = ()  # optimizer buffers, [tasks, numel] each
    updates: int = 0  # optimizer updates so far, for bias corrections

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The parameters, then the buffers."""
        return (self.params, *self.buffers)

    def with_tensors(self, tensors: Sequence[Tensor]) -> TrainState:
        """Return the state with other parameters and buffers."""
        return TrainState(tensors[0], tuple(tensors[1:]), self.updates)


@dataclass(frozen=True)
class InnerLoop:
    """Settings of the inner loop: the K gradient steps that adapt both networks to a task.

    One inner step is `critic_steps` discriminator updates, then `generator_steps` generator updates against the updated
    discriminator, each on fresh latents. Defaults are FIGR's (arXiv:1901.02199, section 4).

    Args:
        optimizer: "sgd", "momentum", "adam" or "rmsprop".
        lr: learning rate of both networks: a number of at least 0, or a callable of the inner step.
        steps: K, at least 1.
        critic_steps: discriminator updates a step, at least 1.
        batch_size: support images an update draws, cycling through the task without replacement, several times where
            the task has fewer; None: all of them. With `generated`, all of them once if each came equally often.
        momentum: of "momentum" (between 0 and 1; None: 0.9) and "rmsprop" (None: none).
        betas, eps: Adam's; `eps` is also RMSprop's.
        alpha: RMSprop's smoothing constant, in [0, 1).
        weight_decay: L2 penalty added to the gradient, at least 0.
        discriminator_lr: the discriminator's own rate; None: `lr`.
        inner_state: "reset" starts each task with fresh optimizer state; "persist" carries it from one meta-step to
            the next, as supervised-reptile does, and needs one task a meta-step.
        generated: images that the generator makes for an update, its own or the discriminator's, at least 1; None: as
            many as there are real ones. Penalties at interpolates need as many.
        generator_steps: generator updates a step, at least 1.

    Raises:
        ValueError: a value out of range, or a setting that the optimizer does not read.

    Example:
        >>> from metagan_fast import InnerLoop, schedules
        >>> inner = InnerLoop("sgd", lr=schedules.Linear(0.5, 0.25, steps=10), discriminator_lr=0.1, steps=10)
        >>> inner.generator_rate(0), inner.generator_rate(10), inner.discriminator_rate(0)
        (0.5, 0.25, 0.1)
        >>> InnerLoop(optimizer="sgd", momentum=0.9)
        Traceback (most recent call last):
        ...
        ValueError: ...
    """

    optimizer: str = "sgd"
    lr: Rate = 1e-3
    steps: int = 10
    critic_steps: int = 1
    batch_size: int | None = None
    momentum: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    alpha: float = 0.99
    weight_decay: float = 0.0
    discriminator_lr: Rate | None = None
    inner_state: Literal["reset", "persist"] = "reset"
    generated: int | None = None
    generator_steps: int = 1

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"expected an inner optimizer of {', '.join(OPTIMIZERS)}; got {self.optimizer!r}")
        convert(self, check_rate, "lr")
        convert(self, check_rate, "discriminator_lr", optional=True)
        convert(self, count, "steps", "critic_steps", "generator_steps", least=1)
        convert(self, count, "batch_size", "generated", least=1, optional=True)
        convert(self, real, "momentum", optional=True)
        convert(self, reals, "betas", length=2)
        convert(self, real, "alpha")
        convert(self, non_negative, "eps", "weight_decay")
        if self.momentum is not None and self.optimizer not in ("momentum", "rmsprop"):
            raise ValueError(f'expected no momentum with "{self.optimizer}"; use optimizer="momentum" or "rmsprop"')
        if self.momentum is not None and not 0 < self.momentum < 1:
            raise ValueError(f"expected a momentum between 0 and 1, got {self.momentum}; for none leave it out")
        if not (0 <= self.betas[0] < 1 and 0 <= self.betas[1] < 1 and 0 <= self.alpha < 1):
            raise ValueError(f"expected betas and alpha in [0, 1), got {self.betas} and {self.alpha}")
        if self.inner_state not in ("reset", "persist"):
            raise ValueError(f'expected inner_state "reset" or "persist", got {self.inner_state!r}')

    def discriminator_rate(self, step: int) -> float:
        """Return the discriminator's learning rate at an inner step."""
        return rate_at(self.lr if self.discriminator_lr is None else self.discriminator_lr, step)

    def generator_rate(self, step: int) -> float:
        """Return the generator's learning rate at an inner step."""
        return rate_at(self.lr, step)

    def mini_batch(self, shots: int) -> int | None:
        """Return the number of real images that an update draws from a task of `shots`; None: all, once.

        A mini-batch with every image equally often has the mean of all. Where the number of generated images does not
        follow from it, it is spared.
        """
        is_spared = (
            self.batch_size is not None
            and self.batch_size % shots == 0
            and self.generated not in (None, self.batch_size)
        )
        return None if is_spared else self.batch_size

    @property
    def momentum_factor(self) -> float:
        """Momentum in use: 0 without momentum, 0.9 where "momentum" sets no other."""
        return 0.9 if self.optimizer == "momentum" and self.momentum is None else self.momentum or 0.0

    def start(self, params: Tensor, carried: TrainState | None = None) -> TrainState:
        """Return parameters [tasks, numel] with fresh optimizer state, or with a copy of the state in `carried`.

        A carried state of one task is expanded to all tasks.
        """
        if carried is not None:
            return TrainState(params, tuple(b.expand_as(params).clone() for b in carried.buffers), carried.updates)
        count = OPTIMIZERS[self.optimizer].buffers(self)
        return TrainState(params, tuple(torch.zeros_like(params) for _ in range(count)))

    def update(self, network: TrainState, grads: Tensor, lr: float, *, in_place: bool) -> TrainState:
        """Apply the optimizer once to every task's row.

        Args:
            network: the state to update.
            grads: [tasks, numel].
            lr: learning rate.
            in_place: overwrite the state's tensors; otherwise return new ones, differentiable to any order.
        """
        network = network._replace(updates=network.updates + 1)
        return network.with_tensors(OPTIMIZERS[self.optimizer].update(self, network, grads, lr, in_place))

    def to_config(self) -> dict[str, Any]:
        """Return the settings as JSON-able data; those that older records lack are absent at their defaults."""
        newer = ("generated", "generator_steps")
        settings = ((f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self))
        config = {name: x for name, x, default in settings if x != default or name not in newer}
        config["lr"] = rate_to_config(self.lr)
        config["betas"] = list(self.betas)
        if self.discriminator_lr is not None:
            config["discriminator_lr"] = rate_to_config(self.discriminator_lr)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> InnerLoop:
        """Build the settings that `to_config` described."""
        arguments = dict(config)
        arguments["lr"] = rate_from_config(arguments["lr"])
        arguments["betas"] = tuple(arguments["betas"])
        if arguments["discriminator_lr"] is not None:
            arguments["discriminator_lr"] = rate_from_config(arguments["discriminator_lr"])
        return cls(**arguments)


_Op = Callable[..., Any]  # a fused op or its in-place twin


@dataclass(frozen=True)
class _Optimizer:
    """Row of the optimizer table: number of buffers, and update by a fused op or its in-place twin.

    The update returns the new parameters and buffers.
    """

    buffers: Callable[[InnerLoop], int]
    update: Callable[[InnerLoop, TrainState, Tensor, float, bool], Sequence[Tensor]]


def _sgd(inner: InnerLoop, state: TrainState, grads: Tensor, lr: float, in_place: bool) -> Sequence[Tensor]:
    op: _Op = functional.sgd_step_ if in_place else functional.sgd_step
    return (op(state.params, grads, lr, weight_decay=inner.weight_decay),)


def _momentum(inner: InnerLoop, state: TrainState, grads: Tensor, lr: float, in_place: bool) -> Sequence[Tensor]:
    op: _Op = functional.sgd_step_ if in_place else functional.sgd_step
    (buffer,) = state.buffers
    return op(
        state.params,
        grads,
        lr,
        momentum_buffer=buffer,
        momentum=inner.momentum_factor,
        weight_decay=inner.weight_decay,
    )


def _adam(inner: InnerLoop, state: TrainState, grads: Tensor, lr: float, in_place: bool) -> Sequence[Tensor]:
    op: _Op = functional.adam_step_ if in_place else functional.adam_step
    return op(
        state.params,
        grads,
        *state.buffers,
        lr,
        step=state.updates,
        betas=inner.betas,
        eps=inner.eps,
        weight_decay=inner.weight_decay,
    )


def _rmsprop(inner: InnerLoop, state: TrainState, grads: Tensor, lr: float, in_place: bool) -> Sequence[Tensor]:
    op: _Op = functional.rmsprop_step_ if in_place else functional.rmsprop_step
    square_avg, *momentum_buffer = state.buffers
    return op(
        state.params,
        grads,
        square_avg,
        lr,
        alpha=inner.alpha,
        eps=inner.eps,
        weight_decay=inner.weight_decay,
        momentum=inner.momentum_factor,
        momentum_buffer=momentum_buffer[0] if momentum_buffer else None,
    )


OPTIMIZERS: dict[str, _Optimizer] = {
    "sgd": _Optimizer(lambda inner: 0, _sgd),
    "momentum": _Optimizer(lambda inner: 1, _momentum),
    "adam": _Optimizer(lambda inner: 2, _adam),
    "rmsprop": _Optimizer(lambda inner: 2 if inner.momentum else 1, _rmsprop),
}
