"""Settings of the outer loop, and its steps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._utils.coerce import convert, count, flag, non_negative, real

if TYPE_CHECKING:
    from ..inner import InnerLoop
    from ..learner import MetaGAN
    from ..learner.memory import MemoryPlan
    from ..noise import Noise
    from ..tasks import TaskBatch, TaskDistribution

MAX_DROPPED = 10
"""Default of `Training.max_dropped`."""


@dataclass(frozen=True)
class Training:
    """Settings of the outer loop.

    Args:
        meta_steps: total number, including those before a resume.
        tasks: tasks a meta-step.
        shots: support images a task.
        query: query images a task.
        validate_every: meta-steps between validations; 0: only at the end.
        validation_tasks: held-out classes a validation adapts to.
        validation_shots: support images of a held-out class, in validation, report and evaluation; None: `shots`.
        checkpoint_every: meta-steps between checkpoints; 0: only at the end.
        keep: checkpoints kept.
        log_every: meta-steps between lines of metrics.
        ema: decay, in (0, 1), of a moving average of the initialisation, which validation and all outputs use; None
            or 0: no average.
        keep_best: at each validation measure KID on held-out classes, and keep the checkpoint with the lowest.
        warm_up: the first meta-steps, which train jointly on images of mixed classes (`MetaGAN.joint_step`).
        warm_up_batch_size: images of an update of the warm-up; None: the inner loop's.
        warm_up_lr: learning rate of the warm-up's inner loop, for both networks; None: the inner loop's.
        max_dropped: tasks that meta-steps in a row may leave out because their meta-gradient is not finite; one more
            ends the run.

    Raises:
        ValueError: a value out of range.
    """

    meta_steps: int
    tasks: int = 8
    shots: int = 4
    query: int = 0
    validate_every: int = 0
    validation_tasks: int = 8
    validation_shots: int | None = None
    checkpoint_every: int = 0
    keep: int = 3
    log_every: int = 1
    ema: float | None = None
    keep_best: bool = False
    warm_up: int = 0
    warm_up_batch_size: int | None = None
    warm_up_lr: float | None = None
    max_dropped: int = MAX_DROPPED

    def __post_init__(self) -> None:
        convert(self, count, "max_dropped", "warm_up", "query", "validate_every", "checkpoint_every")
        convert(self, count, "meta_steps", "tasks", "shots", "validation_tasks", "keep", "log_every", least=1)
        convert(self, count, "validation_shots", "warm_up_batch_size", least=1, optional=True)
        convert(self, non_negative, "warm_up_lr", optional=True)
        convert(self, flag, "keep_best")
        if self.warm_up_lr == 0:
            raise ValueError("expected warm_up_lr to be positive, got 0; None takes the inner loop's rate")
        ema = None if self.ema is None else real("ema", self.ema)
        if ema and not 0 < ema < 1:
            raise ValueError(f"expected ema to be a decay between 0 and 1, such as 0.99, or 0 for none; got {ema}")
        object.__setattr__(self, "ema", ema or None)

    @property
    def held_out_shots(self) -> int:
        """Support images of a held-out class."""
        return self.shots if self.validation_shots is None else self.validation_shots

    def warm_up_inner(self, inner: InnerLoop) -> InnerLoop:
        """Return the settings of the warm-up's inner loop, given the learner's."""
        changes: dict[str, Any] = {}
        if self.warm_up_batch_size is not None:
            changes["batch_size"] = self.warm_up_batch_size
        if self.warm_up_lr is not None:
            changes |= {"lr": self.warm_up_lr, "discriminator_lr": None}
        return dataclasses.replace(inner, **changes)

    def to_config(self) -> dict[str, Any]:
        """Return the settings as JSON-able data; those that older records lack are absent where they are off."""
        newer = {"validation_shots", "ema", "keep_best", "warm_up", "warm_up_batch_size", "warm_up_lr"}
        config = {name: x for name, x in dataclasses.asdict(self).items() if x or name not in newer}
        if self.max_dropped == MAX_DROPPED:
            del config["max_dropped"]
        return config

    def batch(self, learner: MetaGAN, distribution: TaskDistribution, step: int) -> TaskBatch:
        """Draw the batch of a meta-step; in the warm-up its images are of mixed classes, new ones for every update."""
        if step < self.warm_up:
            inner = self.warm_up_inner(learner.inner)
            return distribution.sample(tasks=self.tasks, shots=self._warm_up_images(inner), step=step, mixed=True)
        return distribution.sample(tasks=self.tasks, shots=self.shots, query=self.query, step=step)

    def plan_memory(self, learner: MetaGAN) -> dict[str, MemoryPlan]:
        """Return the plans of the learner's calls in a run by name: its meta-steps, the warm-up's, its validation.

        Raises:
            ValueError: one task does not fit in the learner's `max_memory`.
        """
        plans = {}
        if self.warm_up:
            inner = self.warm_up_inner(learner.inner)
            plans["a warm-up step"] = learner.plan_memory(
                call="joint_step", inner=inner, tasks=self.tasks, shots=self._warm_up_images(inner)
            )
        if self.warm_up < self.meta_steps:
            plans["a meta-step"] = learner.plan_memory(tasks=self.tasks, shots=self.shots, query=self.query)
        plans["a validation"] = learner.plan_memory(
            call="inner_loop", tasks=self.validation_tasks, shots=self.held_out_shots
        )
        return plans

    def _warm_up_images(self, inner: InnerLoop) -> int:
        return inner.steps * inner.critic_steps * (inner.batch_size or self.shots)

    def take_step(self, learner: MetaGAN, distribution: TaskDistribution) -> dict[str, float]:
        """Take the learner's next meta-step, jointly in the warm-up; return its metrics."""
        return self.train_on(learner, self.batch(learner, distribution, learner.step))

    def train_on(self, learner: MetaGAN, batch: TaskBatch, noise: Noise | None = None) -> dict[str, float]:
        """Take the learner's next meta-step on a batch, jointly in the warm-up; return its metrics."""
        given: dict[str, Any] = {} if noise is None else {"noise": noise}
        inner = self.joint_inner(learner)
        return learner.meta_step(batch, **given) if inner is None else learner.joint_step(batch, inner=inner, **given)

    def joint_inner(self, learner: MetaGAN) -> InnerLoop | None:
        """Return the inner loop of the learner's next meta-step if it trains jointly, else None."""
        return self.warm_up_inner(learner.inner) if learner.step < self.warm_up else None
