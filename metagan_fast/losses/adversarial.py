"""Adversarial losses, as defined in their papers."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .._utils.coerce import convert, flag, non_negative, real
from .penalties import GradientPenalty, Penalty
from .terms import Term, Terms

_LINEAR, _MINUS_LINEAR = Term("linear"), Term("linear", -1)
_SOFTPLUS, _SOFTPLUS_OF_MINUS = Term("softplus"), Term("softplus", -1)
_WASSERSTEIN = Terms(_MINUS_LINEAR, _LINEAR, _MINUS_LINEAR)


@dataclass(frozen=True)
class Loss(ABC):
    """Base class: the adversarial losses of discriminator and generator, stated as constant data.

    Args:
        separate_batches: pass real and fake images through the discriminator apart, not as one batch;
            networks with BatchNorm want this.
    """

    separate_batches: bool = field(default=False, kw_only=True)

    name: ClassVar[str]
    relativistic: ClassVar[bool] = False
    """True to subtract other scores (real, fake) from each score: their mean, or those it is paired with."""
    paired: ClassVar[bool] = False
    """True to subtract, in a relativistic loss, the other score of a pair: the i-th real and the i-th fake one."""
    generator_needs_real: ClassVar[bool] = False
    """True if `generator_loss` compares with real scores, as in every relativistic loss."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.relativistic:
            cls.generator_needs_real = True

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

    @property
    def terms(self) -> Terms:
        """Terms of the discriminator's and the generator's loss.

        A subclass states them, or overrides `discriminator_loss` and `generator_loss`; only stated losses run on the
        engine.
        """
        raise NotImplementedError(
            f"expected {type(self).__name__} to state `terms`, or to override discriminator_loss and generator_loss"
        )

    def discriminator_loss(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """Return the discriminator's loss without the penalty: `[..., samples]` twice -> `[...]`."""
        if real_scores.shape[:-1] != fake_scores.shape[:-1]:
            raise ValueError(
                "expected real and fake scores [..., samples] with the same leading dimensions, got "
                f"{list(real_scores.shape)} and {list(fake_scores.shape)}"
            )
        if self.relativistic:
            real_scores, fake_scores = (_relative_to_pairs if self.paired else _relative_to_means)(
                real_scores, fake_scores
            )
        terms = self.terms
        return terms.real.value(real_scores).mean(-1) + terms.fake.value(fake_scores).mean(-1)

    def generator_loss(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
        """Return the generator's loss: `[..., samples]` -> `[...]`.

        `real_scores` are required only where `generator_needs_real`, and ignored elsewhere.
        """
        if not self.relativistic:
            return self.terms.generator.value(fake_scores).mean(-1)
        if real_scores is None:
            raise ValueError("expected real_scores too: this generator loss compares with them")
        return self.discriminator_loss(fake_scores, real_scores)  # with exchanged roles

    def realness(self, scores: Tensor) -> Tensor:
        """Return how real the discriminator finds each image: minus the generator's loss of its score alone.

        A relativistic loss compares with a real score of 0, which keeps the order.

        Args:
            scores: `[..., samples]`.

        Returns:
            `[..., samples]` in float64, higher for what looks more real.
        """
        each = scores.double().unsqueeze(-1)
        return -self.generator_loss(each, torch.zeros_like(each) if self.generator_needs_real else None)

    def to_config(self) -> dict[str, Any]:
        """Return the loss as JSON-able data, which `from_config` reads."""
        config = {"name": self.name, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}}
        if isinstance(config.get("penalty"), Penalty):
            config["penalty"] = config["penalty"].to_config()
        return config


def _relative_to_means(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    return real - fake.mean(-1, keepdim=True), fake - real.mean(-1, keepdim=True)


def _relative_to_pairs(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences of pairs; the kind with fewer samples is paired more than once, in turn."""
    pairs = torch.arange(max(real.shape[-1], fake.shape[-1]), device=real.device)
    difference = real[..., pairs % real.shape[-1]] - fake[..., pairs % fake.shape[-1]]
    return difference, -difference


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
    terms: ClassVar[Terms] = Terms(_SOFTPLUS_OF_MINUS, _SOFTPLUS, Term("negative_softplus"))


@dataclass(frozen=True)
class NonSaturating(_WithPenalty):
    """`Minimax` with the generator loss `-mean log sigmoid(fake)` (Goodfellow et al. 2014, section 3).

    `"r1"` names this loss with `ZeroCenteredPenalty("real")`.
    """

    name: ClassVar[str] = "non-saturating"
    terms: ClassVar[Terms] = Terms(_SOFTPLUS_OF_MINUS, _SOFTPLUS, _SOFTPLUS_OF_MINUS)


@dataclass(frozen=True)
class Hinge(_WithPenalty):
    """The hinge loss (Lim & Ye 2017, arXiv:1705.02894; Miyato et al. 2018, arXiv:1802.05957).

    Discriminator `mean max(0, 1 - real) + mean max(0, 1 + fake)`, generator `-mean fake`. The derivative at a
    kink is 0.
    """

    name: ClassVar[str] = "hinge"
    terms: ClassVar[Terms] = Terms(Term("hinge", -1), Term("hinge"), _MINUS_LINEAR)


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

    @property
    def terms(self) -> Terms:
        """Half squares of the distances from the labels."""
        labels = self.real_label, self.fake_label, self.generator_label
        return Terms(*(Term("half_square", label=label) for label in labels))


@dataclass(frozen=True)
class WGAN(_WithPenalty):
    """The Wasserstein GAN (Arjovsky et al. 2017, arXiv:1701.07875, algorithm 1).

    Discriminator `mean fake - mean real`, generator `-mean fake`.

    Args:
        clip: every discriminator parameter is clamped to [-clip, clip] after each update; None: never.
    """

    clip: float | None = 0.01

    name: ClassVar[str] = "wgan"
    terms: ClassVar[Terms] = _WASSERSTEIN

    def __post_init__(self) -> None:
        super().__post_init__()
        convert(self, real, "clip", optional=True)
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"expected clip to be positive or None, got {self.clip}")


@dataclass(frozen=True)
class WGANGP(Loss):
    """The Wasserstein GAN with gradient penalty (Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1).

    Scores as in `WGAN`, and `GradientPenalty(weight, penalty_norm)`.
    """

    weight: float = 10.0
    penalty_norm: Literal["sample", "pixel"] = "sample"

    name: ClassVar[str] = "wgan-gp"
    terms: ClassVar[Terms] = _WASSERSTEIN

    def __post_init__(self) -> None:
        super().__post_init__()
        convert(self, non_negative, "weight")
        _ = self.penalty  # checks the norm

    @property
    def penalty(self) -> Penalty:
        """Gradient penalty of `weight` and `penalty_norm`."""
        return GradientPenalty(self.weight, self.penalty_norm)


@dataclass(frozen=True)
class FIGR(Loss):
    """WGAN-GP as in FIGR's code (Clouâtre & Demers 2019, arXiv:1901.02199).

    Signs are reversed; the mean runs over real and fake scores together, which halves their scale against the penalty;
    the norm is taken at each pixel: discriminator `(mean real - mean fake) / 2`
    and `GradientPenalty(weight, "pixel")`, generator `mean fake`.
    """

    weight: float = 10.0

    name: ClassVar[str] = "figr"
    terms: ClassVar[Terms] = Terms(Term("linear", 0.5), Term("linear", -0.5), _LINEAR)

    def __post_init__(self) -> None:
        super().__post_init__()
        convert(self, non_negative, "weight")

    @property
    def penalty(self) -> Penalty:
        """Gradient penalty per pixel."""
        return GradientPenalty(self.weight, "pixel")


@dataclass(frozen=True)
class RelativisticAverage(_WithPenalty):
    """The relativistic average GAN (Jolicoeur-Martineau 2018, arXiv:1807.00734, algorithm 2).

    With `a = real - mean fake` and `b = fake - mean real`: discriminator `mean softplus(-a) + mean
    softplus(b)`, generator `mean softplus(-b) + mean softplus(a)`.
    """

    name: ClassVar[str] = "relativistic-average"
    relativistic: ClassVar[bool] = True
    terms: ClassVar[Terms] = Terms(_SOFTPLUS_OF_MINUS, _SOFTPLUS, _SOFTPLUS_OF_MINUS)


@dataclass(frozen=True)
class RelativisticPaired(_WithPenalty):
    """The relativistic paired GAN (Jolicoeur-Martineau 2018, arXiv:1807.00734, section 4.1), R3GAN's loss.

    Discriminator `mean softplus(-(real_i - fake_i))`, generator `mean softplus(-(fake_i - real_i))`. With
    `ZeroCenteredPenalty(location="both")` it is the loss of Huang et al. 2024, arXiv:2501.05441, section 2. Where there
    are more fake than real scores, or fewer, these are paired in turn.
    """

    name: ClassVar[str] = "relativistic-paired"
    relativistic: ClassVar[bool] = True
    paired: ClassVar[bool] = True
    terms: ClassVar[Terms] = Terms(_SOFTPLUS_OF_MINUS, Term("linear", 0), _SOFTPLUS_OF_MINUS)
