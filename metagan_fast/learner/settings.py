"""Settings of a learner: checked, and convertible to JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .. import losses
from .._utils import coerce
from ..executors.select import EXECUTORS, PRECISIONS
from ..inner import InnerLoop
from ..losses import Loss
from ..noise import NoiseShape
from ..tasks import TaskBatch
from ..tasks.batch import BatchSizes
from . import algorithms
from .algorithms import MetaAlgorithm

T = TypeVar("T")


@dataclass(frozen=True)
class LearnerSettings:
    """Checked settings of a `MetaGAN`, named as its arguments; `loss` and `meta` may be given by name.

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
    max_memory: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", losses.get(self.loss))
        object.__setattr__(self, "meta", algorithms.get(self.meta))
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
        coerce.convert(self, coerce.memory, "max_memory", optional=True)
        self.meta.check(self.inner)
        penalty, generated = self.loss.penalty, self.inner.generated
        interpolates = penalty is not None and penalty.location == "interpolate"
        if interpolates and generated not in (None, self.inner.batch_size):
            raise ValueError(
                f"expected generated=None with {self.loss.name}, whose penalty pairs each generated image with a real "
                f"one, got {generated} with batch_size={self.inner.batch_size}; leave generated out, or use a penalty "
                "at real or at generated images, such as r1"
            )

    def executor_settings(self) -> dict[str, Any]:
        """Return the settings that an executor is chosen for and holds, apart from its name."""
        return {
            "latent_dim": self.latent_dim,
            "loss": self.loss,
            "inner": self.inner,
            "second_order": self.meta.second_order,
            "precision": self.precision,
            "allow_random": self.allow_random,
        }

    def executor_key(self) -> tuple[Any, ...]:
        """Return the settings whose change needs another executor."""
        return self.executor, self.max_memory, self.executor_settings()

    def noise_shape(self, batch: TaskBatch | BatchSizes, steps: int) -> NoiseShape:
        """Return the sizes of a batch's noise for `steps` inner steps."""
        return NoiseShape(
            tasks=batch.tasks,
            shots=batch.shots,
            latent_dim=self.latent_dim,
            steps=steps,
            critic_steps=self.inner.critic_steps,
            batch_size=self.inner.mini_batch(batch.shots),
            generated=self.inner.generated,
            generator_steps=self.inner.generator_steps,
            query=batch.query_shots,
            evaluations=steps if self.meta.multi_step else 1,
            query_adaptation=self.meta.needs_query_adaptation,
        )

    def to_config(self) -> dict[str, Any]:
        """Return the settings as JSON-able data, without `max_memory`, which is the machine's.

        Raises:
            ValueError: a rate is a custom function.
        """
        settings = {name: value for name, value in vars(self).items() if name != "max_memory"}
        return {
            **settings,
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

    @classmethod
    def gathered(cls, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Return attributes of an older learner with its settings gathered in `_settings`."""
        names = {f.name: "executor_name" if f.name == "executor" else f.name for f in dataclasses.fields(cls)}
        rest = {name: value for name, value in attributes.items() if name not in names.values()}
        given = {field: attributes[name] for field, name in names.items() if name in attributes}
        return rest | {"_settings": cls(**given)}


class Setting(Generic[T]):
    """Attribute of an object with `LearnerSettings` in `_settings`: one field, assigned through `_change_settings`."""

    def __init__(self, field: str) -> None:
        self._field = field

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        return getattr(instance._settings, self._field)

    def __set__(self, instance: Any, value: T) -> None:
        instance._change_settings(dataclasses.replace(instance._settings, **{self._field: value}))
