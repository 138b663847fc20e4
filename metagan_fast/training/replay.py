"""Replay file: a meta-step that ended a run, with everything that decides it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checkpoint
from .._utils.coerce import counts
from ..checkpoint import CheckpointError
from ..inner import InnerLoop
from ..learner.finite import Divergence, Trial
from ..noise import Noise
from ..tasks import TaskBatch
from .run_folder import REPLAY

if TYPE_CHECKING:
    from ..learner import MetaGAN

_BATCH, _NOISE = "batch.", "noise."  # prefixes of tensors


@dataclass(frozen=True)
class Replay:
    """A meta-step to repeat.

    Attributes:
        batch: its tasks.
        noise: their noise.
        inner: the inner loop if it trained jointly, else None.
        tasks: the tasks that diverged on their own, by index.
    """

    batch: TaskBatch
    noise: Noise
    inner: InnerLoop | None
    tasks: Sequence[int]

    def divergences(self, learner: MetaGAN) -> list[Divergence]:
        """Return where the tasks diverge, given the learner before the meta-step; all are tried if none is known."""
        trial = Trial(learner, self.batch, self.noise, self.inner)
        return trial.divergences(self.tasks or range(self.batch.tasks))


def save(
    path: Path,
    learner: MetaGAN,
    batch: TaskBatch,
    noise: Noise,
    inner: InnerLoop | None,
    tasks: Sequence[int],
    record: Mapping[str, Any],
) -> None:
    """Write the replay file of the learner's next meta-step, atomically.

    Raises:
        CheckpointError: it cannot be written.
    """
    tensors, metadata = learner.state()
    tensors |= {_BATCH + "support": batch.support}
    if batch.query is not None:
        tensors |= {_BATCH + "query": batch.query}
    tensors |= {_NOISE + name: value for name, value in noise.drawn().items()}
    own = {
        "classes": batch.classes,
        "first_task": batch.first_task,
        "inner": None if inner is None else inner.to_config(),
        "tasks": list(tasks),
    }
    checkpoint.write(path, tensors, {**metadata, REPLAY: own, "run": dict(record)})


def load(path: Path, learner: MetaGAN) -> Replay:
    """Read a replay file, and put the learner where it was before the meta-step.

    Raises:
        CheckpointError: there is none, or it is damaged or belongs to other networks.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no meta-step to replay: only a run that diverged leaves {path.name}")
    tensors, metadata = checkpoint.read(path)
    with checkpoint.contents_of(path):
        own = metadata[REPLAY]
        batch = TaskBatch(
            tensors[_BATCH + "support"],
            tensors.get(_BATCH + "query"),
            own["classes"],
            own["first_task"],
        )
        noise = Noise(**{name.removeprefix(_NOISE): x for name, x in tensors.items() if name.startswith(_NOISE)})
        inner = None if own["inner"] is None else InnerLoop.from_config(own["inner"])
        tasks = counts("tasks", own["tasks"], len(own["tasks"]))
        state = {name: x for name, x in tensors.items() if not name.startswith((_BATCH, _NOISE))}
        learner.load_state(state, metadata)
    return Replay(batch, noise, inner, tasks)
