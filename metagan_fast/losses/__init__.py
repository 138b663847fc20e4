"""GAN losses as data: terms of the scores, and penalties on the discriminator's input gradient.

Scores are `[..., samples]`: every reduction is a mean over the last dimension, leading ones (tasks) stay. A
penalty gets the gradient of each score by its own image, `[..., samples, C, H, W]`. Everything is differentiable to
any order and works under torch.func. The engine reads the same data.

Example:
    >>> import torch
    >>> from metagan_fast import losses
    >>> loss = losses.get("wgan-gp", weight=5.0)
    >>> real, fake = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 2.0]])  # one task, two samples
    >>> loss.discriminator_loss(real, fake), loss.generator_loss(fake)
    (tensor([-1.]), tensor([-1.]))
    >>> loss.terms.generator, loss.penalty
    (Term(kind='linear', factor=-1.0, label=0.0), GradientPenalty(weight=5.0, norm='sample'))
    >>> losses.from_config(loss.to_config()) == loss
    True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .adversarial import (
    FIGR,
    WGAN,
    WGANGP,
    Hinge,
    LeastSquares,
    Loss,
    Minimax,
    NonSaturating,
    RelativisticAverage,
    RelativisticPaired,
)
from .penalties import PENALTY_KINDS, GradientPenalty, Penalty, ZeroCenteredPenalty
from .terms import TERM_KINDS, Term, Terms

__all__ = [
    "FIGR",
    "NAMES",
    "PENALTY_KINDS",
    "TERM_KINDS",
    "WGAN",
    "WGANGP",
    "GradientPenalty",
    "Hinge",
    "LeastSquares",
    "Loss",
    "Minimax",
    "NonSaturating",
    "Penalty",
    "RelativisticAverage",
    "RelativisticPaired",
    "Term",
    "Terms",
    "ZeroCenteredPenalty",
    "from_config",
    "get",
]


def _r1(weight: float = 10.0, **options: Any) -> Loss:
    return NonSaturating(penalty=ZeroCenteredPenalty(weight, "real"), **options)


_LOSSES: dict[str, type[Loss]] = {
    loss.name: loss
    for loss in (
        *(Minimax, NonSaturating, Hinge, LeastSquares, WGAN, WGANGP, FIGR),
        *(RelativisticAverage, RelativisticPaired),
    )
}
_PENALTIES: dict[str, type[Penalty]] = {penalty.name: penalty for penalty in (GradientPenalty, ZeroCenteredPenalty)}
_FACTORIES: dict[str, Callable[..., Loss]] = {**_LOSSES, "r1": _r1}

NAMES: tuple[str, ...] = tuple(_FACTORIES)
"""Names that `get` accepts."""


def get(loss: str | Loss, **options: Any) -> Loss:
    """Return the loss of a name, with options of its class; return a `Loss` object unchanged.

    Raises:
        ValueError: unknown name or option, or a value out of range.
    """
    if isinstance(loss, Loss) and not options:
        return loss
    if not isinstance(loss, str) or loss not in _FACTORIES:
        raise ValueError(f"expected a loss of {', '.join(NAMES)}, or a Loss object without options; got {loss!r}")
    try:
        return _FACTORIES[loss](**options)
    except TypeError as error:
        raise ValueError(f"loss {loss!r} does not take these options: {error}") from None


def from_config(config: Mapping[str, Any]) -> Loss:
    """Return the loss that `Loss.to_config` described."""
    options = dict(config)
    name = options.pop("name")
    if options.get("penalty") is not None:
        penalty = dict(options["penalty"])
        options["penalty"] = _PENALTIES[penalty.pop("name")](**penalty)
    return get(name, **options)
