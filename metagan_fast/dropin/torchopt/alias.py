"""Optimizers as gradient transformations; they return new tensors and ignore `inplace`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import _updates
from .._flat_module import FlatRule, Layout, Part, Rule, State, advance, over_buffers
from .._originals import fall_back_to
from ._trees import aligned, leaves, rebuild
from .base import GradientTransformation, Init, Update

__all__ = ["adam", "adamw", "rmsprop", "sgd"]
__getattr__, __dir__ = fall_back_to(__name__, "torchopt.alias")

Schedule = Callable[[Tensor], Any]
"""Learning rate as a function of the number of steps taken (an int64 tensor)."""

Rate = float | Tensor | Schedule


class FusedTransformation(GradientTransformation):
    """Transformation of a single update rule, which can step all parameters in one call.

    Attributes:
        rule: the update rule; its learning rate may be a schedule.
        options: the rule's hyper-parameters.
    """

    rule: Rule
    options: Mapping[str, Any]
    _arguments: tuple[Rule, FlatRule, Mapping[str, Any]]

    def __new__(cls, rule: Rule, flat_rule: FlatRule, options: Mapping[str, Any]) -> FusedTransformation:
        """Build the pure functions of a rule, given over lists and over buffers."""
        transformation = super().__new__(cls, _initialiser(options), _updater(flat_rule, options))
        transformation.rule, transformation.options = _scheduled(rule), options
        transformation._arguments = (rule, flat_rule, options)
        return transformation

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments


def sgd(
    lr: Rate,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    *,
    moment_requires_grad: bool = False,
    maximize: bool = False,
) -> FusedTransformation:
    """Return stochastic gradient descent; arguments as in `torch.optim.SGD`.

    Args:
        lr: learning rate: a number, a tensor that may require grad, or a function of the number of steps taken.
        momentum, dampening, weight_decay, nesterov, maximize: as in `torch.optim.SGD`.
        moment_requires_grad: accepted; no effect, since the momentum buffer starts with the first gradient.

    Raises:
        ValueError: a number is out of range.
    """
    _check(lr=lr, momentum=momentum, weight_decay=weight_decay)
    if nesterov and (momentum <= 0 or dampening != 0):
        raise ValueError(f"nesterov needs momentum above 0 and dampening 0, got {momentum} and {dampening}")
    return FusedTransformation(
        _updates.sgd,
        _updates.flat_sgd,
        {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        },
    )


def adam(
    lr: Rate = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    eps_root: float = 0.0,
    moment_requires_grad: bool = False,
    maximize: bool = False,
    use_accelerated_op: bool = False,
) -> FusedTransformation:
    """Return Adam.

    Args:
        lr: learning rate: a number, a tensor that may require grad, or a function of the number of steps taken.
        betas: decay rates of the two moments.
        eps: added to the square root; `eps` or `eps_root` must be above 0.
        weight_decay: L2 penalty.
        eps_root: added under the square root; keeps its derivative finite.
        moment_requires_grad: let `init` create moments that require grad.
        maximize: ascend the gradient.
        use_accelerated_op: accepted; the step is always fused.

    Raises:
        ValueError: a number is out of range.
    """
    return _adam(lr, betas, eps, weight_decay, eps_root, moment_requires_grad, maximize, decoupled=False)


def adamw(
    lr: Rate = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    *,
    eps_root: float = 0.0,
    moment_requires_grad: bool = False,
    maximize: bool = False,
    use_accelerated_op: bool = False,
) -> FusedTransformation:
    """Return AdamW, which shrinks parameters by `lr * weight_decay`; arguments as in `adam`."""
    return _adam(lr, betas, eps, weight_decay, eps_root, moment_requires_grad, maximize, decoupled=True)


def rmsprop(
    lr: Rate = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    *,
    initial_scale: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> FusedTransformation:
    """Return RMSprop.

    Args:
        lr: learning rate: a number, a tensor that may require grad, or a function of the number of steps taken.
        alpha: decay rate of the mean squared gradient.
        eps: added to the square root, above 0.
        weight_decay: L2 penalty.
        momentum: factor of the momentum buffer.
        centered: divide by the gradient's standard deviation.
        initial_scale: initial mean squared gradient.
        nesterov: use Nesterov momentum.
        maximize: ascend the gradient.

    Raises:
        ValueError: a number is out of range.
    """
    _check(lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum)
    if nesterov and momentum <= 0:
        raise ValueError(f"nesterov needs momentum above 0, got {momentum}")
    return FusedTransformation(
        _updates.rmsprop,
        _updates.flat_rmsprop,
        {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "initial_scale": initial_scale,
            "nesterov": nesterov,
            "maximize": maximize,
        },
    )


def _adam(
    lr: Rate,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    eps_root: float,
    moment_requires_grad: bool,
    maximize: bool,
    *,
    decoupled: bool,
) -> FusedTransformation:
    _check(lr=lr, eps=eps, weight_decay=weight_decay, eps_root=eps_root)
    for name, beta in zip(("first", "second"), betas, strict=True):
        if not 0 <= beta < 1:
            raise ValueError(f"the {name} of betas must be in [0, 1), got {beta}")
    return FusedTransformation(
        _updates.adam,
        _updates.flat_adam,
        {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "eps_root": eps_root,
            "moment_requires_grad": moment_requires_grad,
            "maximize": maximize,
            "decoupled": decoupled,
        },
    )


def _scheduled(rule: Rule) -> Rule:
    """Return the rule with support for a learning rate schedule."""

    def scheduled(
        layout: Layout,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        state: Mapping[str, Tensor],
        step: int,
        options: Mapping[str, Any],
    ) -> tuple[list[Tensor], State]:
        if callable(options["lr"]):
            options = {**options, "lr": options["lr"](torch.tensor(step - 1))}
        return rule(layout, params, grads, state, step, options)

    return scheduled


def _increment_rule(rule: FlatRule) -> FlatRule:
    """Return a rule whose result is the parameters' increment instead of the new parameters."""

    def update(
        params: Tensor, grads: Tensor, state: Mapping[str, Tensor], step: int, options: Mapping[str, Any]
    ) -> tuple[Tensor, State]:
        weight_decay, decoupled = options["weight_decay"], options.get("decoupled", False)
        if options["maximize"]:
            grads = -grads
        if weight_decay != 0 and not decoupled:
            grads = grads + weight_decay * params
        without = {**options, "weight_decay": 0.0, "maximize": False}
        moved, new_state = rule(torch.zeros_like(params, requires_grad=False), grads, state, step, without)
        if weight_decay != 0 and decoupled:
            moved = moved - (options["lr"] * weight_decay) * params
        return moved, new_state

    return update


def _initialiser(options: Mapping[str, Any]) -> Init:
    def init(params: Any) -> tuple[Part, ...]:
        if not options.get("moment_requires_grad"):
            return ()  # state is created at a parameter's first gradient
        tensors = leaves(params)

        def start(flat: Tensor, *_: Any) -> tuple[Tensor, State]:
            return flat, {name: torch.zeros_like(flat, requires_grad=True) for name in ("exp_avg", "exp_avg_sq")}

        return tuple(replace(part, step=0) for part in advance(over_buffers(start), {}, (), tensors, tensors)[1])

    return init


def _updater(rule: FlatRule, options: Mapping[str, Any]) -> Update:
    as_update = _scheduled(over_buffers(_increment_rule(rule)))

    def update(updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> tuple[Any, Any]:
        grads = leaves(updates)
        if params is not None:
            tensors = aligned(leaves(params), updates)
        elif options["weight_decay"] != 0:
            raise AssertionError("weight decay needs the parameters: call update(grads, state, params=params)")
        else:
            tensors = grads
        results, parts = advance(as_update, options, state, tensors, grads)
        kept = [None if g is None else result for g, result in zip(grads, results, strict=True)]
        return rebuild(updates, kept), tuple(parts)

    return update


def _check(**numbers: Any) -> None:
    for name, value in numbers.items():
        if not isinstance(value, Tensor) and not callable(value) and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
