"""Terms of adversarial losses as data, which the torch executor and the engine both read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from .._utils.coerce import convert, real

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "softplus": lambda x: -F.logsigmoid(-x),  # F.softplus is cut off above 20
    "negative_softplus": lambda x: F.logsigmoid(-x),
    "hinge": lambda x: F.relu(1 + x),
    "half_square": lambda x: 0.5 * x.square(),
}
"""Functions by kind; `Term` in csrc/engine/loss.h has the same, with first and second derivatives."""

TERM_KINDS: tuple[str, ...] = tuple(_FUNCTIONS)
"""Kinds of terms."""


@dataclass(frozen=True)
class Term:
    """Function of a score `s`: a kind of function at `x = factor * s - label`.

    Args:
        kind: "linear" (`x`), "softplus" (`log(1 + exp(x))`), "negative_softplus", "hinge" (`max(0, 1 + x)`, derivative
            0 at the kink) or "half_square" (`x^2 / 2`).
        factor: factor of the score.
        label: number subtracted from the scaled score.

    Raises:
        ValueError: unknown kind, or no number.
    """

    kind: str
    factor: float = 1.0
    label: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _FUNCTIONS:
            raise ValueError(f"expected a kind of term of {', '.join(TERM_KINDS)}; got {self.kind!r}")
        convert(self, real, "factor", "label")

    def value(self, scores: Tensor) -> Tensor:
        """Return the function of each score, in the shape of `scores`."""
        x = scores if self.factor == 1 else self.factor * scores
        return _FUNCTIONS[self.kind](x - self.label if self.label else x)


class Terms(NamedTuple):
    """Terms of a loss, each averaged over samples.

    Attributes:
        real: the discriminator's on real scores.
        fake: the discriminator's on fake scores.
        generator: the generator's on fake scores; not read in a relativistic loss, whose generator loss is the
            discriminator's with real and fake scores exchanged.
    """

    real: Term
    fake: Term
    generator: Term
