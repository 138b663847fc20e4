"""Adversarial losses, as defined in their papers."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .._utils.coerce import convert, flag, non_negative, real
from .penalties import GradientPenalty, Penalty


class _Term(NamedTuple):
    """Function of a score, and its derivative."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]

    def __neg__(self) -> _Term:
        return _Term(lambda s: -self.value(s), lambda s: -self.slope(s))

    def mirrored(self) -> _Term:
        """Return the term at the negated score."""
        return _Term(lambda s: self.value(-s), lambda s: -self.slope(-s))


def _linear(factor: float) -> _Term:
    return _Term(lambda s: factor * s, lambda s: torch.full_like(s, factor))


def _half_square(label: float) -> _Term:
    return _Term(lambda s: 0.5 * (s - label).square(), lambda s: s - label)


_SOFTPLUS = _Term(lambda s: -F.logsigmoid(-s), torch.sigmoid)  # F.softplus is cut off above 20
_HINGE = _Term(lambda s: F.relu(1 + s), lambda s: (s > -1).to(s.dtype))


@dataclass(frozen=True)
class Loss(ABC):
    """Base class: the adversarial losses of discriminator and generator.

    Args:
        separate_batches: pass real and fake images through the discriminator apart, not as one batch;
            networks with BatchNorm want this.
    """

    separate_batches: bool = field(default=False, kw_only=True)

    name: ClassVar[str]
    generator_needs_real: ClassVar[bool] = False

    def __post_init__(self) -> None:
        convert(self, flag, "separate_batches")

    @property
    def penalty(self) -> Penalty | None:
        """Penalty on the input gradient, added to the discriminator's loss; None: none."""
        return None

    @property
    def clip(self) -> float | None:
        """Bound to which every discriminator parameter is clamped after each update; None: none."""
        return None

    @abstractmethod
    def _terms(self) -> tuple[_Term, _Term, _Term]:
        """Return the discriminator's terms on real and on fake scores, and the generator's on fake scores."""

    def discriminator_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """Return the discriminator's loss without the penalty: `[..., samples]` twice -> `[...]`."""
        _check(real_scores, fake_scores)
        real, fake, _ = self._terms()
        return real.value(real_scores).mean(-1) + fake.value(fake_scores).mean(-1)

    def generator_loss(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
        """Return the generator's loss: `[..., samples]` -> `[...]`.

        `real_scores` are required only where `generator_needs_real`, and ignored elsewhere.
        """
        return self._terms()[2].value(fake_scores).mean(-1)

    def discriminator_score_gradients(self, real_scores: Tensor, fake_scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of `discriminator_loss` by the real and the fake scores, in their shapes."""
        _check(real_scores, fake_scores)
        real, fake, _ = self._terms()
        by_real, by_fake = real.slope(real_scores), fake.slope(fake_scores)
        return by_real / real_scores.shape[-1], by_fake / fake_scores.shape[-1]

    def generator_score_gradient(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
        """Return the derivative of `generator_loss` by the fake scores, in their shape."""
        return self._terms()[2].slope(fake_scores) / fake_scores.shape[-1]

    def to_config(self) -> dict[str, Any]:
        """Return the loss as JSON-able data, which `from_config` reads."""
        config = {"name": self.name, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}}
        if isinstance(config.get("penalty"), Penalty):
            config["penalty"] = config["penalty"].to_config()
        return config


@dataclass(frozen=True)
class _WithPenalty(Loss):
    """Loss with an optional penalty."""

    penalty: Penalty | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty is not None and not isinstance(self.penalty, Penalty):
            raise ValueError(f"expected penalty to be a Penalty object or None, got {self.penalty!r}")


@dataclass(frozen=True)
class Minimax(_WithPenalty):
    """The original game (Goodfellow et al. 2014, arXiv:1406.2661, equation 1), scores as logits.

    Discriminator `-mean log sigmoid(real) - mean log(1 - sigmoid(fake))`,
    generator `mean log(1 - sigmoid(fake))`.
    """

    name: ClassVar[str] = "minimax"

    def _terms(self) -> tuple[_Term, _Term, _Term]:
        return _SOFTPLUS.mirrored(), _SOFTPLUS, -_SOFTPLUS


@dataclass(frozen=True)
class NonSaturating(_WithPenalty):
    """`Minimax` with the generator loss `-mean log sigmoid(fake)` (Goodfellow et al. 2014, section 3).

    `"r1"` names this loss with `ZeroCenteredPenalty("real")`.
    """

    name: ClassVar[str] = "non-saturating"

    def _terms(self) -> tuple[_Term, _Term, _Term]:
        return _SOFTPLUS.mirrored(), _SOFTPLUS, _SOFTPLUS.mirrored()


@dataclass(frozen=True)
class Hinge(_WithPenalty):
    """The hinge loss (Lim & Ye 2017, arXiv:1705.02894; Miyato et al. 2018, arXiv:1802.05957).

    Discriminator `mean max(0, 1 - real) + mean max(0, 1 + fake)`, generator `-mean fake`. The derivative at a
    kink is 0.
    """

    name: ClassVar[str] = "hinge"

    def _terms(self) -> tuple[_Term, _Term, _Term]:
        return _HINGE.mirrored(), _HINGE, _linear(-1)


@dataclass(frozen=True)
class LeastSquares(_WithPenalty):
    """The LSGAN loss (Mao et al. 2017, arXiv:1611.04076, equation 2).

    Discriminator `mean (real - b)^2 / 2 + mean (fake - a)^2 / 2`, generator `mean (fake - c)^2 / 2`. The
    paper's two choices: `b - c = 1, b - a = 2` (a Pearson chi-squared divergence), and `c = b`, as in the
    defaults.

    Args:
        fake_label: a.
        real_label: b.
        generator_label: c, the generator's target.
    """

    fake_label: float = 0.0
    real_label: float = 1.0
    generator_label: float = 1.0

    name: ClassVar[str] = "least-squares"

    def __post_init__(self) -> None:
        super().__post_init__()
        convert(self, real, "fake_label", "real_label", "generator_label")

    def _terms(self) -> tuple[_Term, _Term, _Term]:
        return (
            _half_square(self.real_label),
            _half_square(self.fake_label),
            _half_square(self.generator_label),
        )


@dataclass(frozen=True)
class WGAN(_WithPenalty):
    """The Wasserstein GAN (Arjovsky et al. 2017, arXiv:1701.07875, algorithm 1).

    Discriminator `mean fake - mean real`, generator `-mean fake`.

    Args:
        clip: every discriminator parameter is clamped to [-clip, clip] after each update; None: never.
    """

    clip: float | None = 0.01

    name: ClassVar[str] = "wgan"

    def __post_init__(self) -> None:
        super().__post_init__()
        convert(self, real, "clip", optional=True)
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"expected clip to be positive or None, got {self.clip}")

    def _terms(self) -> tuple[_Term, _Term, _Term]:
        return _linear(-1), _linear(1), _linear(-1)


@dataclass(frozen=True)
class WGANGP(Loss):
    """The Wasserstein GAN with gradient penalty (Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1).

    Scores as in `WGAN`, and `GradientPenalty(weight, penalty_norm)`.
    """

    weight: float = 10.0
    penalty_norm: Literal["sample", "pixel"] = "sample"

    name: ClassVar[str] = "wgan-gp"

    def __post_init__(self) -> None:
        super().__post_init__()
        convert(self, non_negative, "weight")
        _ = self.penalty  # checks the norm

    @property
    def penalty(self) -> Penalty:
        """Gradient penalty of `weight` and `penalty_norm`."""
        return GradientPenalty(self.weight, self.penalty_norm)

    def _terms(self) -> tuple[_Term, _Term, _Term]:
        return _linear(-1), _linear(1), _linear(-1)


@dataclass(frozen=True)
class FIGR(Loss):
    """WGAN-GP as in FIGR's code (Clouâtre & Demers 2019, arXiv:1901.02199).

    Signs are reversed; the mean runs over real and fake scores together, which halves their scale against the penalty;
    the norm is taken at each pixel: discriminator `(mean real - mean fake) / 2`
    and `GradientPenalty(weight, "pixel")`, generator `mean fake`.
    """

    weight: float = 10.0

    name: ClassVar[str] = "figr"

    def __post_init__(self) -> None:
        super().__post_init__()
        convert(self, non_negative, "weight")

    @property
    def penalty(self) -> Penalty:
        """Gradient penalty per pixel."""
        return GradientPenalty(self.weight, "pixel")

    def _terms(self) -> tuple[_Term, _Term, _Term]:
        return _linear(0.5), _linear(-0.5), _linear(1)


@dataclass(frozen=True)
class RelativisticAverage(_WithPenalty):
    """The relativistic average GAN (Jolicoeur-Martineau 2018, arXiv:1807.00734, algorithm 2).

    With `a = real - mean fake` and `b = fake - mean real`: discriminator `mean softplus(-a) + mean
    softplus(b)`, generator `mean softplus(-b) + mean softplus(a)`.
    """

    name: ClassVar[str] = "relativistic-average"
    generator_needs_real: ClassVar[bool] = True

    def _terms(self) -> tuple[_Term, _Term, _Term]:
        return _SOFTPLUS.mirrored(), _SOFTPLUS, _SOFTPLUS.mirrored()

    def discriminator_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """Return `mean softplus(-a) + mean softplus(b)`."""
        return super().discriminator_loss(*_relative(real_scores, fake_scores))

    def discriminator_score_gradients(self, real_scores: Tensor, fake_scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of `discriminator_loss` by the real and the fake scores."""
        by_a, by_b = super().discriminator_score_gradients(*_relative(real_scores, fake_scores))
        # Each real score also enters every b through their mean, and each fake score every a.
        by_real = by_a - by_b.sum(-1, keepdim=True) / real_scores.shape[-1]
        return by_real, by_b - by_a.sum(-1, keepdim=True) / fake_scores.shape[-1]

    def generator_loss(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
        """Return the discriminator's loss with the roles exchanged."""
        return self.discriminator_loss(fake_scores, _given(real_scores))

    def generator_score_gradient(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
        """Return the derivative of `generator_loss` by the fake scores."""
        return self.discriminator_score_gradients(fake_scores, _given(real_scores))[0]


def _check(real_scores: Tensor, fake_scores: Tensor) -> None:
    if real_scores.shape[:-1] != fake_scores.shape[:-1]:
        raise ValueError(
            "expected real and fake scores [..., samples] with the same leading dimensions, got "
            f"{list(real_scores.shape)} and {list(fake_scores.shape)}"
        )


def _relative(real_scores: Tensor, fake_scores: Tensor) -> tuple[Tensor, Tensor]:
    _check(real_scores, fake_scores)
    return real_scores - fake_scores.mean(-1, keepdim=True), fake_scores - real_scores.mean(-1, keepdim=True)


def _given(real_scores: Tensor | None) -> Tensor:
    if real_scores is None:
        raise ValueError("expected real_scores too: this generator loss compares with them")
    return real_scores
