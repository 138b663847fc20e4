"""Search for the tasks of a meta-step whose meta-gradient is not finite, and for where they diverged."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._utils.pair import Pair
from ..executors import Executor
from ..inner import InnerLoop
from ..noise import Noise, Stream
from ..tasks import TaskBatch

if TYPE_CHECKING:
    from .metagan import MetaGAN


@dataclass(frozen=True)
class Divergence:
    """Place where a task first had a value that is not finite.

    Attributes:
        task: its index in the batch.
        inner_step: from 1, with the parameters after it not finite; None: the inner loop is finite, the meta-gradient
            is not.
        network: "generator" or "discriminator"; of one inner step the discriminator's update comes first.
        losses: of that inner step by name, or of the query images.
    """

    task: int
    inner_step: int | None
    network: str
    losses: dict[str, float]


class _Undo(Exception):
    """End of a trial, whose updates are rolled back."""


class Trial:
    """Trial meta-steps of single tasks, which change nothing.

    Args:
        learner: at the meta-step.
        batch: of the meta-step.
        noise: of its tasks; None: drawn as the meta-step does.
        inner: inner loop of a joint step; None: the step is a meta-step.
    """

    def __init__(
        self, learner: MetaGAN, batch: TaskBatch, noise: Noise | None = None, inner: InnerLoop | None = None
    ) -> None:
        self._learner, self._is_joint = learner, inner is not None
        self._settings = learner._settings if inner is None else dataclasses.replace(learner._settings, inner=inner)
        learner._bind()
        self._batch = learner._fit(batch if inner is None else dataclasses.replace(batch, query=None))
        steps = self._settings.inner.steps
        self.noise = learner._noise(self._batch, noise, steps, Stream.TRAINING, self._settings)

    @property
    def _executor(self) -> Executor:
        return self._learner._executor_of(self._settings)

    @torch.inference_mode(False)
    def diverging(self) -> list[int]:
        """Return the tasks whose own meta-gradient is not finite."""
        return [task for task in self._tried() if not self._updates(task)]

    @torch.inference_mode(False)
    def divergences(self, tasks: Collection[int]) -> list[Divergence]:
        """Return where these tasks first had values that are not finite; tasks without such values are left out."""
        found = []
        for task in self._tried():
            place = self._divergence(task) if task in tasks else None
            if place is not None:
                found.append(place)
            elif self._is_serial:
                self._updates(task)
        return found

    @property
    def _is_serial(self) -> bool:
        return self._learner.meta.serial and not self._is_joint

    def _tried(self) -> Iterator[int]:
        """Yield each task, from the initialisation that it starts from in the meta-step; then undo all updates."""
        tasks = range(self._batch.tasks)
        with self._learner._training:
            for group in [tasks] if self._is_serial else [[task] for task in tasks]:
                with contextlib.suppress(_Undo), self._learner._state.atomic():
                    yield from group
                    raise _Undo

    def _one(self, task: int) -> tuple[TaskBatch, Noise]:
        return self._batch.slice(task, task + 1), self.noise.slice(task, task + 1)

    def _updates(self, task: int) -> bool:
        """Update by one task; return False, with nothing changed, if its meta-gradient is not finite."""
        learner, state = self._learner, self._learner._state
        updates = state.updates
        try:
            if self._is_joint:
                gradient = self._executor.reptile_gradient(state.initial, *self._one(task), state.carried)
                learner._update(gradient, joint=True)
            else:
                learner._train_on(*self._one(task))
        except FloatingPointError:
            state.updates = updates
            return False
        return True

    def _divergence(self, task: int) -> Divergence | None:
        state, executor, inner = self._learner._state, self._executor, self._settings.inner
        batch, noise = self._one(task)
        params = state.initial.map(Tensor.clone)
        carried = state.carried or params.map(lambda row: inner.start(row.unsqueeze(0)))
        for step in range(noise.steps):
            adapted = executor.inner_loop(params, batch, noise.at_step(step), carried)
            params, carried = adapted.params.map(lambda rows: rows[0]), adapted.networks
            network = _first_not_finite(params)
            if network is not None:
                return Divergence(task, step + 1, network, _numbers(adapted.metrics))
        meta = self._learner.meta
        if self._is_joint:
            gradient = executor.reptile_gradient(state.initial, batch, noise, state.carried)
        else:
            gradient = meta.meta_gradient(executor, state.initial, batch, noise, self._learner.step, state.carried)
        norms = Pair(gradient.generator, gradient.discriminator).map(torch.linalg.vector_norm)
        network = _first_not_finite(norms)
        return None if network is None else Divergence(task, None, network, _numbers(gradient.metrics))


def _first_not_finite(values: Pair[Tensor]) -> str | None:
    """Return the network with a value that is not finite, the discriminator first, as inner steps update it first."""
    names = [role for role, value in values.items() if not value.isfinite().all()]
    return "discriminator" if "discriminator" in names else names[0] if names else None


def _numbers(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: value.mean().item() for name, value in metrics.items()}
