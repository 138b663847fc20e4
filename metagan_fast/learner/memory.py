"""Memory of a meta-step: predicted from sizes, and bounded by micro-batches of its tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .._utils.coerce import in_units
from .._utils.pair import Pair
from ..executors import (
    Executor,
    GeneratorObjective,
    InnerLoopResult,
    MetaGradient,
    QueryObjective,
    TaskSum,
)
from ..executors.base import CHECKPOINTING, Checkpointing
from ..inner import TrainState
from ..noise import Noise, NoiseShape, noise_bytes
from ..tasks import TaskBatch

UNDO = "copies that undo an update"
"""Part of a plan that a learner keeps from its first meta-step on."""

SizesOf = Callable[[TaskBatch, Noise], NoiseShape]
"""Sizes of the noise of a batch, by which a call's memory is planned."""


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted memory of a meta-step: growth of the resident memory, at its peak, above the learner at rest.

    At rest are both networks with the state of the meta-optimizer, and the batch. Counted are the noise, activations
    and scratch memory of all threads, parameters and optimizer state of the tasks that are adapted at once, states that
    MAML keeps, sums of gradients, and the copies that undo an interrupted update. Python, libraries that a first call
    loads and the allocator's own overhead are not: some megabytes.

    Attributes:
        executor: "native" or "torch".
        tasks: tasks of the meta-step.
        tasks_at_once: tasks of a micro-batch: all of them, unless `max_memory` is lower.
        checkpointing: states of the inner loop that MAML keeps, "every step" or "sqrt"; None for other algorithms.
        parts: bytes by name.
        max_memory: the bound in bytes, or None.

    Example:
        >>> import metagan_fast as mgf
        >>> networks = mgf.models.mlp((1, 8, 8), latent_dim=4, hidden=(16,))
        >>> learner = mgf.MetaGAN(*networks, latent_dim=4)
        >>> plan = learner.plan_memory(tasks=4, shots=5)
        >>> plan.peak == sum(plan.parts.values()), plan.tasks_at_once
        (True, 4)
    """

    executor: str
    tasks: int
    tasks_at_once: int
    checkpointing: Checkpointing | None
    parts: Mapping[str, int]
    max_memory: int | None = None

    @property
    def peak(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        at_once = "at once" if self.tasks_at_once == self.tasks else f"{self.tasks_at_once} at once"
        tasks = "1 task" if self.tasks == 1 else f"{self.tasks} tasks"
        head = f"memory of a meta-step: {tasks}, {at_once}, executor {self.executor}"
        if self.checkpointing is not None:
            head += f", states kept: {self.checkpointing}"
        rows = [*self.parts.items(), ("peak", self.peak)]
        if self.max_memory is not None:
            rows.append(("max_memory", self.max_memory))
        width = max(len(name) for name, _ in rows)
        return "\n".join([head] + [f"  {name:{width}} {in_units(size):>10}" for name, size in rows])


class MemoryLimited(Executor):
    """Executor that splits a call's tasks into micro-batches of consecutive tasks, so that it fits in memory.

    The engine's results keep their bytes: a sum over tasks goes on in index order. The torch executor's agree to
    rounding. A derivative through the inner loop keeps fewer states where one task would not fit otherwise.

    Args:
        executor: runs the micro-batches.
        max_memory: bytes of a meta-step, as `MemoryPlan` counts them.
        own: the learner's own parts of a meta-step with this noise.
        sizes: sizes of a call.
    """

    def __init__(
        self, executor: Executor, max_memory: int, own: Callable[[NoiseShape], Mapping[str, int]], sizes: SizesOf
    ) -> None:
        self._executor = executor
        self._max_memory = max_memory
        self._own = own
        self._sizes = sizes
        self.name, self.is_recordable = executor.name, executor.is_recordable
        self._plans: dict[tuple[NoiseShape, QueryObjective | None, bool], MemoryPlan] = {}

    def plan(
        self, initial: Pair[Tensor], shape: NoiseShape, objective: QueryObjective | None, *, rows: bool = False
    ) -> MemoryPlan:
        """Return the plan of a call; see `plan`."""
        if objective is not None:  # annealed weights change from meta-step to meta-step, the losses evaluated seldom
            weights = tuple(float(weight != 0) for weight in objective.step_weights)
            objective = dataclasses.replace(objective, step_weights=weights)
        key = shape, objective, rows
        if key not in self._plans:
            own = self._own(shape)
            self._plans[key] = plan(self._executor, initial, shape, objective, own, self._max_memory, rows=rows)
        return self._plans[key]

    def inner_loop(
        self, initial: Pair[Tensor], batch: TaskBatch, noise: Noise, carried: Pair[TrainState] | None = None
    ) -> InnerLoopResult:
        if batch.tasks == 1:
            return self._executor.inner_loop(initial, batch, noise, carried)
        size = self.plan(initial, self._sizes(batch, noise), None, rows=True).tasks_at_once
        if size >= batch.tasks:
            return self._executor.inner_loop(initial, batch, noise, carried)
        return _joined([self._executor.inner_loop(initial, *part, carried) for part in _parts(batch, noise, size)])

    def reptile_gradient(
        self,
        initial: Pair[Tensor],
        batch: TaskBatch,
        noise: Noise,
        carried: Pair[TrainState] | None = None,
        total: TaskSum | None = None,
    ) -> MetaGradient:
        def gradient(batch: TaskBatch, noise: Noise, total: TaskSum | None) -> MetaGradient:
            return self._executor.reptile_gradient(initial, batch, noise, carried, total)

        size = self.plan(initial, self._sizes(batch, noise), None).tasks_at_once
        return _accumulated(gradient, batch, noise, size, total)

    def query_gradient(
        self,
        initial: Pair[Tensor],
        batch: TaskBatch,
        noise: Noise,
        objective: QueryObjective,
        total: TaskSum | None = None,
    ) -> MetaGradient:
        planned = self.plan(initial, self._sizes(batch, noise), objective)
        chosen = dataclasses.replace(objective, checkpointing=planned.checkpointing)

        def gradient(batch: TaskBatch, noise: Noise, total: TaskSum | None) -> MetaGradient:
            return self._executor.query_gradient(initial, batch, noise, chosen, total)

        return _accumulated(gradient, batch, noise, planned.tasks_at_once, total)

    def query_losses(self, params: Pair[Tensor], batch: TaskBatch, noise: Noise) -> dict[str, Tensor]:
        return self._executor.query_losses(params, batch, noise)

    def generate(self, generator: Tensor, latents: Tensor) -> Tensor:
        return self._executor.generate(generator, latents)

    def score(self, discriminator: Tensor, images: Tensor) -> Tensor:
        return self._executor.score(discriminator, images)

    def memory_use(
        self, initial: Pair[Tensor], shape: NoiseShape, objective: QueryObjective | None, *, rows: bool = False
    ) -> dict[str, int]:
        return self._executor.memory_use(initial, shape, objective, rows=rows)

    def explain(self, shots: int, *, second_order: bool, generator_objective: GeneratorObjective) -> str:
        return self._executor.explain(shots, second_order=second_order, generator_objective=generator_objective)


def plan(
    executor: Executor,
    initial: Pair[Tensor],
    shape: NoiseShape,
    objective: QueryObjective | None,
    own: Mapping[str, int],
    max_memory: int | None = None,
    *,
    rows: bool = False,
) -> MemoryPlan:
    """Return the plan of a meta-step with the most tasks at once, and the most states kept, that fit in `max_memory`.

    Fewer tasks at once come first, as they take no more arithmetic than many; fewer states after one task alone.

    Args:
        executor: runs the inner loops.
        initial: the initialisation.
        shape: sizes of the meta-step's noise.
        objective: of FOMAML and MAML; None: Reptile.
        own: the learner's parts, by name.
        max_memory: bytes; None: no bound.
        rows: for an inner loop that returns all adapted parameters.

    Raises:
        ValueError: one task does not fit.
    """
    second_order = objective is not None and not objective.first_order
    choices = [objective]
    if objective is not None and second_order and objective.checkpointing is None:
        choices = [dataclasses.replace(objective, checkpointing=each) for each in CHECKPOINTING]

    def planned(tasks: int, choice: QueryObjective | None) -> MemoryPlan:
        use = executor.memory_use(initial, dataclasses.replace(shape, tasks=tasks), choice, rows=rows)
        if rows and tasks < shape.tasks:
            adapted = sum(x.numel() * x.element_size() for x in initial) * (shape.tasks - tasks)
            use = use | {"adapted parameters of the other tasks": adapted}
        kept = choice.checkpointing if choice is not None and second_order else None
        parts = {name: size for name, size in {**use, **own}.items() if size}
        return MemoryPlan(executor.name, shape.tasks, tasks, kept, parts, max_memory)

    if max_memory is None:
        return planned(shape.tasks, choices[0])
    for choice in choices:
        if (whole := planned(shape.tasks, choice)).peak <= max_memory:
            return whole
        least = planned(1, choice)
        if least.peak > max_memory:
            continue
        low, high = 1, shape.tasks  # the first fits, the second does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if planned(middle, choice).peak <= max_memory else (low, middle)
        return planned(low, choice)
    raise ValueError(
        f"expected max_memory to hold one task, which takes {in_units(least.peak)}, got {in_units(max_memory)}; "
        f"{_lower(least, second_order)}"
    )


def _lower(least: MemoryPlan, second_order: bool) -> str:
    """Return advice on lowering the memory of one task."""
    largest = max(least.parts, key=least.parts.__getitem__)
    advice = "raise it, or lower it by fewer shots or generated images, narrower networks or fewer threads"
    if second_order and least.checkpointing == "every step":
        advice += ', or MAML(checkpointing="sqrt")'
    return f"the largest part is {largest}: {advice}"


def own_parts(shape: NoiseShape, initial: Pair[Tensor], meta_buffers: int, clips: bool) -> dict[str, int]:
    """Return the parts of a meta-step that do not depend on the executor.

    Args:
        shape: sizes of the noise.
        initial: the initialisation.
        meta_buffers: buffers of the meta-optimizer.
        clips: whether it clips by norm, on a copy of one network's meta-gradient at a time.
    """
    sizes = [x.numel() * x.element_size() for x in initial]
    return {
        "noise": noise_bytes(shape, initial.generator.element_size()),
        UNDO: sum(sizes) * (1 + meta_buffers),
        "clipped meta-gradient": max(sizes) if clips else 0,
    }


def _parts(batch: TaskBatch, noise: Noise, size: int) -> Iterator[tuple[TaskBatch, Noise]]:
    for start in range(0, batch.tasks, size):
        stop = min(start + size, batch.tasks)
        yield batch.slice(start, stop), noise.slice(start, stop)


def _accumulated(
    gradient: Callable[[TaskBatch, Noise, TaskSum | None], MetaGradient],
    batch: TaskBatch,
    noise: Noise,
    size: int,
    total: TaskSum | None,
) -> MetaGradient:
    """Return the meta-gradient of a batch by micro-batches of `size` tasks."""
    if size >= batch.tasks:
        return gradient(batch, noise, total)
    total = total or TaskSum(batch.tasks)
    results = [gradient(*part, total) for part in _parts(batch, noise, size)]
    metrics = {name: torch.cat([r.metrics[name] for r in results]) for name in results[0].metrics}
    last = results[-1]
    return MetaGradient(last.generator, last.discriminator, metrics)


def _joined(results: list[InnerLoopResult]) -> InnerLoopResult:
    """Return the inner loops of consecutive tasks as one."""

    def join(*states: TrainState) -> TrainState:
        return states[0].with_tensors([torch.cat(rows) for rows in zip(*(s.tensors for s in states), strict=True)])

    first, *others = results
    networks = first.networks.map(join, *(result.networks for result in others))
    metrics = {name: torch.cat([r.metrics[name] for r in results]) for name in first.metrics}
    history = {name: torch.cat([r.history[name] for r in results], dim=1) for name in first.history}
    return InnerLoopResult(networks, metrics, history)
