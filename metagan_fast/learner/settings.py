"""Settings of a learner: checked, and convertible to JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import losses
from .._utils import coerce
from ..executors.select import EXECUTORS, PRECISIONS
from ..inner import InnerLoop
from ..losses import Loss
from . import algorithms
from .algorithms import MetaAlgorithm

if TYPE_CHECKING:
    from .metagan import MetaGAN


@dataclass(frozen=True)
class LearnerSettings:
    """Checked settings of a `MetaGAN`, named as its arguments.

    Raises:
        ValueError: an unknown name, a value of another type, or contradictory settings.
    """

    latent_dim: int
    loss: Loss
    inner: InnerLoop
    meta: MetaAlgorithm
    executor: str
    precision: str
    seed: int
    allow_random: bool

    def __post_init__(self) -> None:
        coerce.convert(self, coerce.count, "latent_dim", least=1)
        if not isinstance(self.inner, InnerLoop):
            raise ValueError(
                f'expected inner to be an InnerLoop, such as InnerLoop("sgd", lr=0.01), got {self.inner!r}'
            )
        if self.executor not in EXECUTORS:
            raise ValueError(f"expected an executor of {', '.join(EXECUTORS)}; got {self.executor!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"expected a precision of {', '.join(PRECISIONS)}; got {self.precision!r}")
        object.__setattr__(self, "seed", coerce.seed(self.seed))
        coerce.convert(self, coerce.flag, "allow_random")
        self.meta.check(self.inner)

    @classmethod
    def of(cls, learner: MetaGAN) -> LearnerSettings:
        """Return the current settings of a learner."""
        attributes = {"executor": "executor_name"}
        return cls(**{f.name: getattr(learner, attributes.get(f.name, f.name)) for f in dataclasses.fields(cls)})

    def to_config(self) -> dict[str, Any]:
        """Return the settings as JSON-able data; ValueError for a rate that is a custom function."""
        return {
            **vars(self),
            "loss": self.loss.to_config(),
            "inner": self.inner.to_config(),
            "meta": self.meta.to_config(),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LearnerSettings:
        """Build the settings that `to_config` described; other keys are ignored."""
        return cls(
            latent_dim=config["latent_dim"],
            loss=losses.from_config(config["loss"]),
            inner=InnerLoop.from_config(config["inner"]),
            meta=algorithms.from_config(config["meta"]),
            **{name: config[name] for name in ("executor", "precision", "seed", "allow_random")},
        )
