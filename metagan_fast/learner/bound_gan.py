"""`BoundGAN`: two modules bound to an initialisation, and the executor that runs them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._utils import coerce
from .._utils.lock import Lock
from .._utils.pair import Pair
from ..executors import Executor
from ..executors.select import choose
from ..inner import InnerLoop, TrainState
from ..losses import Loss
from ..noise import Noise, Stream, draw_noise
from ..tasks import TaskBatch
from . import checks
from .algorithms import MetaAlgorithm
from .graphs import MetaStepGraphs, why_not
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

    @torch.inference_mode(False)
    def __init__(self, generator: nn.Module, discriminator: nn.Module, settings: LearnerSettings) -> None:
        checks.modules(generator, discriminator)
        self._settings = settings
        self._training = Lock()  # held for a whole meta-step
        self._lock = Lock()  # held while the initialisation changes or is copied
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
            return {name: value for name, value in self.__dict__.items() if name not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_settings" not in state:  # a pickle of 0.1, with settings and counters as attributes
            state = LearnerSettings.gathered(state)
            state["_state"].step, state["_state"].updates = state.pop("step"), state.pop("_updates")
        self.__dict__.update(state)
        self._derive()

    def _change_settings(self, settings: LearnerSettings) -> None:
        """Use other settings from the next call on; ValueError if the meta-optimizer's state does not fit them."""
        with self._lock:
            self._state.change_settings(settings.meta, settings.inner)
            before, self._settings = self._settings, settings
            if (settings.executor, settings.executor_settings()) != (before.executor, before.executor_settings()):
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
        self._executor = choose(self.executor_name, state.networks, like, **self._settings.executor_settings())
        self._other: tuple[dict[str, Any], Executor] | None = None
        self._why_eager = why_not(like.device, self.inner)
        self._graphs = None if self._why_eager else MetaStepGraphs(self._executor, state.initial, state.buffers)

    def _executor_of(self, settings: LearnerSettings) -> Executor:
        """Return the executor of these settings: the learner's own, or another one, of which the last is kept."""
        chosen = settings.executor_settings()
        if chosen == self._settings.executor_settings():
            return self._executor
        if self._other is None or self._other[0] != chosen:
            state = self._state
            executor = choose(settings.executor, state.networks, state.initial.generator, **chosen)
            self._other = chosen, executor
        return self._other[1]

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
