"""Tasks without a finite meta-gradient: meta-steps leave them out and count them; too many end the run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._utils.coerce import count
from ..learner.finite import Trial
from . import replay

if TYPE_CHECKING:
    from ..learner import MetaGAN
    from ..tasks import TaskBatch
    from .outer_loop import Training

logger = logging.getLogger(__name__)

DROPPED = "dropped_tasks"
"""Name of the number of tasks that a meta-step left out, in metrics, and of the counts in checkpoints."""


class DroppedTasks:
    """Meta-steps that leave out tasks whose meta-gradient is not finite.

    The result is that of the meta-step on the other tasks, each with its own noise. A meta-step without other tasks
    counts, and changes nothing.

    Args:
        file: place of the replay file that an ended run leaves.

    Attributes:
        total: number of tasks left out in the run.
        in_a_row: number of them since the last meta-step that left out none.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.total = self.in_a_row = 0

    def train_on(
        self, training: Training, learner: MetaGAN, batch: TaskBatch, record: Mapping[str, Any]
    ) -> dict[str, float]:
        """Take the learner's next meta-step without diverging tasks; return its metrics, with their number if any.

        Raises:
            FloatingPointError: more than `training.max_dropped` in a row, or tasks that diverge only together; the
                batch, its noise and the learner's state are saved first, with the run's `record`.
        """
        try:
            metrics = training.train_on(learner, batch)
        except FloatingPointError as error:
            return self._without(training, learner, batch, record, error)
        self.in_a_row = 0
        return metrics

    def _without(
        self, training: Training, learner: MetaGAN, batch: TaskBatch, record: Mapping[str, Any], error: Exception
    ) -> dict[str, float]:
        trial = Trial(learner, batch, inner=training.joint_inner(learner))
        bad = trial.diverging()
        kept = [task for task in range(batch.tasks) if task not in bad]
        if not bad or self.in_a_row + len(bad) > training.max_dropped:
            if learner._ranks is None or learner._ranks.is_first:
                replay.save(self._file, learner, batch, trial.noise, training.joint_inner(learner), bad, record)
            reason = f"{len(bad)} of {batch.tasks} tasks diverged, {self.in_a_row + len(bad)} in meta-steps in a row"
            raise FloatingPointError(
                f"{error}; {reason if bad else 'no task diverges on its own'}, where max_dropped is "
                f"{training.max_dropped}; see where with: metagan-fast replay {self._file.parent}"
            ) from error
        step = learner.step
        metrics: dict[str, float] = {}
        if kept:
            metrics = training.train_on(learner, batch.take(kept), trial.noise.take(kept))
        else:
            learner.step += 1
        self.total += len(bad)
        self.in_a_row += len(bad)
        names = "" if batch.classes is None else f" ({', '.join(batch.classes[task] for task in bad)})"
        logger.warning("meta-step %d leaves out tasks %s%s, whose meta-gradient is not finite", step + 1, bad, names)
        return {**metrics, DROPPED: len(bad)}

    def state(self) -> dict[str, Any]:
        """Return the counts as metadata of a checkpoint; nothing where no task was left out."""
        return {DROPPED: [self.total, self.in_a_row]} if self.total else {}

    def load(self, metadata: Mapping[str, Any]) -> None:
        """Go on from the counts of a checkpoint; ValueError if they are damaged."""
        total, in_a_row = metadata.get(DROPPED, [0, 0])
        self.total, self.in_a_row = count(DROPPED, total), count(DROPPED, in_a_row)
