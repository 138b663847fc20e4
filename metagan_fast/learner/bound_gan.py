"""`BoundGAN`: two modules bound to an initialisation, and the executor that runs them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._utils import coerce
from .._utils.lock import Lock
from .._utils.pair import Pair
from ..distributed import Ranks
from ..executors import Executor
from ..executors.select import choose
from ..inner import InnerLoop, TrainState
from ..losses import Loss
from ..noise import Noise, NoiseShape, Stream, draw_noise
from ..tasks import TaskBatch
from ..tasks.batch import BatchSizes
from . import checks
from .algorithms import MetaAlgorithm
from .graphs import MetaStepGraphs, why_not
from .memory import MemoryLimited, MemoryPlan, own_parts, plan
from .settings import LearnerSettings, Setting
from .state import LearnerState


class BoundGAN:
    """Generator and discriminator bound to flat buffers, with settings, state and executor.

    The base of `AdaptableGAN` and `MetaGAN`: it keeps the modules bound, chooses the executor that runs them, fits
    batches and noise to them, and is copied and pickled.

    Args:
        generator, discriminator: the modules.
        settings: the learner's settings, also readable and assignable as attributes.
    """

    latent_dim = Setting[int]("latent_dim")
    loss = Setting[Loss]("loss")
    inner = Setting[InnerLoop]("inner")
    meta = Setting[MetaAlgorithm]("meta")
    executor_name = Setting[str]("executor")
    precision = Setting[str]("precision")
    seed = Setting[int]("seed")
    allow_random = Setting[bool]("allow_random")
    max_memory = Setting[int | None]("max_memory")

    @torch.inference_mode(False)
    def __init__(self, generator: nn.Module, discriminator: nn.Module, settings: LearnerSettings) -> None:
        checks.modules(generator, discriminator)
        self._settings = settings
        self._training = Lock()  # held for a whole meta-step
        self._lock = Lock()  # held while the initialisation changes or is copied
        self._ranks: Ranks | None = None  # processes that share the meta-steps
        self._state = LearnerState(Pair(generator, discriminator), self.meta, self.inner)
        self._derive()

    def _derive(self) -> None:
        """Set the attributes derived from the settings and the state."""
        self._is_chosen = False
        (self.generator, self.generator_layout), (self.discriminator, self.discriminator_layout) = self._state.networks
        self._bind()

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings and the state, without the attributes that `_derive` sets."""
        derived = ("generator", "discriminator", "_executor", "_other", "_why_eager", "_graphs", "_is_chosen")
        with self._training:  # a whole meta-step or none of it
            self._bind()
            kept = {name: value for name, value in self.__dict__.items() if name not in derived}
        return kept | {"_ranks": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_settings" not in state:  # a pickle of 0.1, with settings and counters as attributes
            state = LearnerSettings.gathered(state)
            state["_state"].step, state["_state"].updates = state.pop("step"), state.pop("_updates")
        self.__dict__.update({"_ranks": None} | state)
        self._derive()

    def _change_settings(self, settings: LearnerSettings) -> None:
        """Use other settings from the next call on; ValueError if the meta-optimizer's state does not fit them."""
        with self._lock:
            self._state.change_settings(settings.meta, settings.inner)
            before, self._settings = self._settings, settings
            if settings.executor_key() != before.executor_key():
                self._is_chosen = False

    @property
    def step(self) -> int:
        """Number of completed meta-steps; assign it to go on at another."""
        return self._state.step

    @step.setter
    def step(self, step: int) -> None:
        self._state.step = step

    @property
    def generator_parameters(self) -> Tensor:
        """The generator's initialisation `[numel]`; its module's parameters are views of it."""
        self._bind()
        return self._state.initial.generator

    @property
    def discriminator_parameters(self) -> Tensor:
        """The discriminator's initialisation `[numel]`; its module's parameters are views of it."""
        self._bind()
        return self._state.initial.discriminator

    @torch.inference_mode(False)
    def _bind(self) -> None:
        """Follow modules that have changed: `.to()`, `.double()`, `assign=True`, other attributes or layers."""
        with self._lock:
            if self._state.follow_modules():
                self._is_chosen = False
            if not self._is_chosen:
                self._choose_executor()
                self._is_chosen = True

    def _start(self) -> tuple[Executor, Pair[Tensor], Pair[TrainState] | None]:
        """Return the executor, a copy of the initialisation, and the persistent inner state."""
        with self._lock:
            self._bind()
            return self._executor, self._state.initial.map(Tensor.clone), self._state.carried

    def _choose_executor(self) -> None:
        """Set the executor, by its name in the settings or the best that can run them, and its graph recorder."""
        state = self._state
        like = state.initial.generator
        self._executor = self._make_executor(self._settings)
        self._other: tuple[dict[str, Any], Executor] | None = None
        self._why_eager = why_not(like.device, self.inner, self._ranks)
        self._graphs = None if self._why_eager else MetaStepGraphs(self._executor, state.initial, state.buffers)

    def _executor_of(self, settings: LearnerSettings) -> Executor:
        """Return the executor of these settings: the learner's own, or another one, of which the last is kept."""
        chosen = settings.executor_settings()
        if chosen == self._settings.executor_settings():
            return self._executor
        if self._other is None or self._other[0] != chosen:
            self._other = chosen, self._make_executor(settings)
        return self._other[1]

    def _make_executor(self, settings: LearnerSettings) -> Executor:
        """Build the executor of these settings."""
        state, limit = self._state, settings.max_memory
        executor = choose(settings.executor, state.networks, state.initial.generator, **settings.executor_settings())
        if limit is None:
            return executor
        own = partial(self._own_memory, settings)
        return MemoryLimited(executor, limit, own, lambda batch, noise: settings.noise_shape(batch, noise.steps))

    def _own_memory(self, settings: LearnerSettings, shape: NoiseShape) -> dict[str, int]:
        meta = settings.meta
        return own_parts(shape, self._state.initial, meta.buffers, meta.clip_norm is not None)

    def plan_memory(
        self,
        batch: TaskBatch | None = None,
        *,
        tasks: int = 1,
        shots: int = 4,
        query: int | None = None,
        call: str = "meta_step",
        inner: InnerLoop | None = None,
    ) -> MemoryPlan:
        """Predict the memory of a meta-step: growth at its peak above the learner at rest, and its parts.

        Args:
            batch: the meta-step's tasks, of which only the sizes are read.
            tasks, shots, query: its sizes, if there is no batch; query None: as many as shots where the algorithm needs
                query images.
            call: "meta_step", "joint_step" or "inner_loop".
            inner: settings of the inner loop; None: the learner's.

        Returns:
            The plan, under `max_memory` if that is set. For the torch executor it follows from a trace without
            arithmetic; its prediction for a CUDA device has not been compared with one.

        Raises:
            ValueError: a wrong size or call, or one task does not fit in `max_memory`.
        """
        if call not in ("meta_step", "joint_step", "inner_loop"):
            raise ValueError(f'expected call to be "meta_step", "joint_step" or "inner_loop", got {call!r}')
        needs_query = call == "meta_step" and self.meta.needs_query
        if batch is not None:
            checks.batch_and_noise(batch)
            tasks, shots, query = batch.tasks, batch.shots, batch.query_shots
        tasks, shots = coerce.count("tasks", tasks, least=1), coerce.count("shots", shots, least=1)
        query = coerce.count("query", shots if query is None else query, least=1) if needs_query else query or 0
        sizes = BatchSizes(tasks, shots, query if call == "meta_step" else 0)
        settings = self._settings if inner is None else replace(self._settings, inner=inner)
        with torch.inference_mode(False):
            self._bind()
            return self._plan(settings, sizes, call)

    def _plan(self, settings: LearnerSettings, sizes: BatchSizes, call: str) -> MemoryPlan:
        """Return the plan of a call with these settings."""
        initial, meta = self._state.initial, settings.meta
        shape = settings.noise_shape(sizes, settings.inner.steps)
        is_meta, rows = call == "meta_step", call == "inner_loop"
        at_most = replace(shape, tasks=1) if is_meta and meta.serial else shape
        objective = meta.objective(self.step, settings.inner.steps) if is_meta else None
        if objective is not None and meta.second_order:  # at its most, after first-order meta-steps too
            objective = replace(objective, first_order=False)
        own = self._own_memory(settings, shape)
        if rows:
            own = {
                "noise": own["noise"],
                "copy of the initialisation": sum(x.numel() * x.element_size() for x in initial),
            }
        executor = self._executor_of(settings)
        planned = plan(executor, initial, at_most, objective, own, settings.max_memory, rows=rows)
        return replace(planned, tasks=sizes.tasks)

    def explain(self, shots: int = 4) -> str:
        """Describe the executor of the inner loops.

        Args:
            shots: support images of a task, for the figures of an inner step.

        Returns:
            For the native executor the plan of both networks: layers, shapes, parameters, multiply-adds, memory of a
            task; for the torch executor the reason, and whether meta-steps are replayed as CUDA graphs.
        """
        shots = coerce.count("shots", shots, least=1)
        self._bind()
        meta = self.meta
        text = self._executor.explain(
            shots, second_order=meta.second_order, generator_objective=meta.generator_objective
        )
        if not self._executor.is_recordable:
            return text
        way = f"one by one: {self._why_eager}" if self._graphs is None else f"as CUDA graphs: {self._graphs.describe()}"
        return f"{text}\nmeta-steps run {way}"

    def _fit(self, batch: TaskBatch) -> TaskBatch:
        """Convert a batch to the networks' dtype and device."""
        like = self._state.initial.generator
        return batch.to(device=like.device, dtype=like.dtype)

    def _noise(
        self,
        batch: TaskBatch,
        noise: Noise | None,
        steps: int,
        stream: Stream,
        settings: LearnerSettings | None = None,
    ) -> Noise:
        """Check a batch's noise and convert it to the networks' dtype and device; draw it if None.

        `settings`, the learner's own if None, are of the inner loop.
        """
        like = self._state.initial.generator
        shape = (settings or self._settings).noise_shape(batch, steps)
        if noise is not None:
            noise.check(shape)
            return noise.to(device=like.device, dtype=like.dtype)
        return draw_noise(
            shape,
            seed=self.seed,
            meta_step=self.step if stream is Stream.TRAINING else 0,
            first_task=batch.first_task,
            stream=stream,
            device=like.device,
            dtype=like.dtype,
        )
