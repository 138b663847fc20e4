"""Penalties on the gradient of a discriminator's scores by its input images."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .._utils.coerce import convert, non_negative

Location = Literal["interpolate", "real", "fake", "both"]


def _to_one(weight: float, norms: Tensor) -> Tensor:
    """Return `weight * mean (norm - 1)^2`."""
    return weight * (norms - 1).square().mean((-4, -3, -2, -1))


def _norm(gradient: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the L2 norm over `dims`, kept with size 1; all derivatives are 0 where it is 0."""
    squares = gradient.square().sum(dims, keepdim=True)
    limits = torch.finfo(gradient.dtype)
    positive = squares > limits.tiny / limits.eps
    return torch.where(positive, torch.where(positive, squares, 1).sqrt(), 0)


_FUNCTIONS: dict[str, Callable[[float, Tensor], Tensor]] = {
    "sample": lambda weight, gradient: _to_one(weight, _norm(gradient, (-3, -2, -1))),
    "pixel": lambda weight, gradient: _to_one(weight, _norm(gradient, (-3,))),
    "zero_centered": lambda weight, gradient: weight / 2 * gradient.square().sum((-3, -2, -1)).mean(-1),
}
"""Functions of weight and input gradient by kind; `penalty` in csrc/engine/loss.cpp has the same, with derivatives."""

PENALTY_KINDS: tuple[str, ...] = tuple(_FUNCTIONS)
"""Kinds of penalties."""


@dataclass(frozen=True)
class Penalty(ABC):
    """Base class: a penalty on the gradient of each score by its own image."""

    weight: float = 10.0

    name: ClassVar[str]

    def __post_init__(self) -> None:
        convert(self, non_negative, "weight")

    @property
    @abstractmethod
    def location(self) -> Location:
        """Images at which the gradient is taken: interpolates `w real + (1 - w) fake`, real or fake ones, or both.

        At both the penalty is the sum of its values at real and at fake images.
        """

    @property
    def kind(self) -> str:
        """Kind of the function of the input gradient, one of `PENALTY_KINDS`, unless a subclass overrides `value`.

        Only a penalty that states its kind runs on the engine.
        """
        raise NotImplementedError(f"expected {type(self).__name__} to state its `kind`, or to override value")

    def value(self, input_gradient: Tensor) -> Tensor:
        """Return the penalty, weight included: `[..., samples, C, H, W]` -> `[...]`."""
        if self.kind not in _FUNCTIONS:
            raise ValueError(f"expected a kind of penalty of {', '.join(PENALTY_KINDS)}; got {self.kind!r}")
        return _FUNCTIONS[self.kind](self.weight, input_gradient)

    def to_config(self) -> dict[str, Any]:
        """Return the penalty as JSON-able data."""
        return {"name": self.name, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class GradientPenalty(Penalty):
    """Penalty that pulls the norm of the input gradient at interpolates to 1: `weight * mean (norm - 1)^2`.

    Args:
        weight: factor of the penalty.
        norm: "sample", one norm for each image (Gulrajani et al. 2017, arXiv:1704.00028, equation 3), or
            "pixel", one norm over the channels for each pixel, as in FIGR's code.

    A norm has derivative 0 where it is 0, of every order. Squared norms up to `tiny / eps` of the dtype
    (norms up to 3e-16 in float32) count as 0, so that second derivatives never overflow.
    """

    norm: Literal["sample", "pixel"] = "sample"

    name: ClassVar[str] = "gradient"
    location: ClassVar[Location] = "interpolate"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in ("sample", "pixel"):
            raise ValueError(f'expected a penalty norm of "sample" or "pixel", got {self.norm!r}')

    @property
    def kind(self) -> str:
        """The norm."""
        return self.norm


@dataclass(frozen=True)
class ZeroCenteredPenalty(Penalty):
    """Penalty that pulls the input gradient to 0: `weight / 2 * mean |gradient|^2`, norms over each image.

    R1 at real images, R2 at fake ones (Mescheder et al. 2018, arXiv:1801.04406, equations 9 and 10), the sum of both at
    "both" (Huang et al. 2024, arXiv:2501.05441, section 2).

    Args:
        weight: gamma of the papers.
        location: "real", "fake" or "both".
    """

    location: Literal["real", "fake", "both"] = "real"

    name: ClassVar[str] = "zero-centered"
    kind: ClassVar[str] = "zero_centered"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.location not in ("real", "fake", "both"):
            raise ValueError(f'expected a penalty location of "real", "fake" or "both", got {self.location!r}')
