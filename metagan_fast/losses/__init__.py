"""GAN losses: values, closed-form derivatives by the scores, penalties on the discriminator's input gradient.

Scores are `[..., samples]`: every reduction is a mean over the last dimension, leading ones (tasks) stay. A
penalty gets the gradient of each score by its own image, `[..., samples, C, H, W]`. All is differentiable to
any order and works under torch.func. The closed forms serve executors without autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .adversarial import FIGR, WGAN, WGANGP, Hinge, LeastSquares, Loss, Minimax, NonSaturating, RelativisticAverage
from .penalties import GradientPenalty, Penalty, ZeroCenteredPenalty

__all__ = [
    "FIGR",
    "NAMES",
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
    "ZeroCenteredPenalty",
    "from_config",
    "get",
]


def _r1(weight: float = 10.0, **options: Any) -> Loss:
    return NonSaturating(penalty=ZeroCenteredPenalty(weight, "real"), **options)


_LOSSES: dict[str, type[Loss]] = {
    loss.name: loss for loss in (Minimax, NonSaturating, Hinge, LeastSquares, WGAN, WGANGP, FIGR, RelativisticAverage)
}
_PENALTIES: dict[str, type[Penalty]] = {penalty.name: penalty for penalty in (GradientPenalty, ZeroCenteredPenalty)}
_FACTORIES: dict[str, Callable[..., Loss]] = {**_LOSSES, "r1": _r1}

NAMES: tuple[str, ...] = tuple(_FACTORIES)
"""What `get` knows by name."""


def get(loss: str | Loss, **options: Any) -> Loss:
    """Return a loss by name, with options of its class; a `Loss` object is returned as it is.

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
    """Return the loss that `Loss.to_config` wrote."""
    options = dict(config)
    name = options.pop("name")
    if options.get("penalty") is not None:
        penalty = dict(options["penalty"])
        options["penalty"] = _PENALTIES[penalty.pop("name")](**penalty)
    return get(name, **options)
