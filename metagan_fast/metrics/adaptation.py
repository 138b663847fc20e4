"""Samples of a learner adapted to held-out classes, for the evaluation and the trainer's validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..distributed import Ranks
from ..noise import Noise, Stream, draw_noise

if TYPE_CHECKING:
    from ..learner import MetaGAN
    from ..tasks import TaskBatch

MOST_TASKS = 16
"""Classes adapted at once; bounds memory."""


def adapted_samples(
    learner: MetaGAN,
    batch: TaskBatch,
    samples: int,
    *,
    steps: int | None = None,
    best_of: int = 1,
    seed: int = 0,
    most_tasks: int = MOST_TASKS,
    progress: Callable[[int], None] | None = None,
    ranks: Ranks | None = None,
) -> Tensor:
    """Return samples `[tasks, samples, channels, height, width]` of a learner adapted to each task; float32.

    The noise depends on `seed` and the tasks' index alone, not on the learner's seed or its number of meta-steps; more
    steps begin with the noise of fewer.

    Args:
        learner: unchanged.
        batch: the tasks.
        samples: images a task.
        steps: inner steps; None: the learner's own, 0: its initialisation as it is.
        best_of: as for `AdaptedGAN.sample`.
        seed: of the noise of adaptation and of the samples' latents.
        most_tasks: tasks adapted at once; one at a time where the inner optimizer's state persists.
        progress: called with the number of tasks adapted.
        ranks: processes that share the tasks, and all get the samples; progress is then called once, at the end.
    """
    if ranks is not None and ranks.size > 1:

        def adapt(part: TaskBatch) -> dict[str, Tensor]:
            options: dict[str, Any] = {"steps": steps, "best_of": best_of, "seed": seed, "most_tasks": most_tasks}
            return {"": adapted_samples(learner, part, samples, **options)}

        everyone = ranks.map_tasks(batch, adapt)[""]
        if progress is not None:
            progress(batch.tasks)
        return everyone
    inner = learner.inner
    steps = inner.steps if steps is None else steps
    most_tasks = 1 if inner.inner_state == "persist" else most_tasks
    parts = []
    for start in range(0, batch.tasks, most_tasks):
        part = batch.slice(start, min(start + most_tasks, batch.tasks))
        noise = _noise(learner, part, steps, seed) if steps else None
        adapted = learner.inner_loop(part, noise, steps=steps)
        images = learner.sample_tasks(adapted, samples, seed, first_task=part.first_task, best_of=best_of)
        parts.append(images.float().cpu())
        if progress is not None:
            progress(part.tasks)
    return torch.cat(parts)


def _noise(learner: MetaGAN, batch: TaskBatch, steps: int, seed: int) -> Noise:
    shape = learner._settings.noise_shape(batch, steps)
    return draw_noise(shape, seed=seed, meta_step=0, first_task=batch.first_task, stream=Stream.ADAPTATION)
