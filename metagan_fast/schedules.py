"""Learning-rate schedules: functions of the step that are plain data, so a run can save them.

Example:
    >>> from metagan_fast import schedules
    >>> rate = schedules.Linear(1.0, 0.0, steps=100)
    >>> rate(0), rate(50), rate(1000)
    (1.0, 0.5, 0.0)
    >>> round(schedules.Cosine(1.0, 0.0, steps=100)(25), 3)
    0.854
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ._utils.coerce import convert, count, non_negative, real

Rate = float | Callable[[int], float]
"""A learning rate: a number, or a callable of the step (0, 1, ...)."""


@dataclass(frozen=True)
class _Schedule:
    """Schedule from `initial` at step 0 to `final` at step `steps`, at least 1."""

    initial: float
    final: float
    steps: int

    def __post_init__(self) -> None:
        convert(self, count, "steps", least=1)
        convert(self, non_negative, "initial", "final")


@dataclass(frozen=True)
class Linear(_Schedule):
    """Linear schedule from `initial` at step 0 to `final` at step `steps`, then constant (Nichol et al. 2018)."""

    def __call__(self, step: int) -> float:
        return self.initial + (self.final - self.initial) * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class Cosine(_Schedule):
    """Half-cosine schedule from `initial` to `final` in `steps`, then constant (Loshchilov & Hutter 2017, eq. 5)."""

    def __call__(self, step: int) -> float:
        progress = min(step / self.steps, 1.0)
        return self.final + (self.initial - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))


_SCHEDULES: dict[str, type[Linear] | type[Cosine]] = {"linear": Linear, "cosine": Cosine}


def rate_at(rate: Rate, step: int) -> float:
    """Return the learning rate at `step`."""
    return real(f"the learning rate at step {step}", rate(step)) if callable(rate) else rate


def rate_to_config(rate: Rate) -> Any:
    """Return a rate as JSON-able data; ValueError for a callable that is not one of this module's schedules."""
    if not callable(rate):
        return rate
    if isinstance(rate, (Linear, Cosine)):
        name = next(name for name, schedule in _SCHEDULES.items() if isinstance(rate, schedule))
        return {"schedule": name, "initial": rate.initial, "final": rate.final, "steps": rate.steps}
    raise ValueError(
        f"expected a number, schedules.Linear or schedules.Cosine as a rate that can be saved, got {rate!r}; "
        "use one of them, or save the networks yourself"
    )


def rate_from_config(config: Any) -> Rate:
    """Build the rate that `rate_to_config` described."""
    if not isinstance(config, dict):
        return config  # a number; its user checks it
    arguments = dict(config)
    return _SCHEDULES[arguments.pop("schedule")](**arguments)


def check_rate(name: str, rate: Rate) -> Rate:
    """Return `rate`, a number as a float; ValueError unless it is callable or a finite number of at least 0."""
    if callable(rate):
        return rate
    number = real(name, rate)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"expected {name} to be a finite number of at least 0 or a callable of the step, got {rate!r}")
    return number
