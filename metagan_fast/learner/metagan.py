"""`MetaGAN`, a GAN with a meta-trained initialisation: the main API."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import checkpoint, losses
from .._utils import coerce
from .._utils.lock import Lock
from .._utils.tensors import ordinary
from ..executors import Executor, InnerLoopResult, MetaGradient, NativeExecutor, Parameters, TrainStates
from ..executors.select import choose
from ..inner import InnerLoop, TrainState
from ..losses import Loss
from ..noise import Noise, NoiseShape, Stream, draw_noise, draw_sample_latents, noise_counters
from ..tasks import TaskBatch
from ..tasks.batch import one_task
from . import algorithms, checks
from .adapted import AdaptedGAN
from .algorithms import FOMAML, MAML, MetaAlgorithm, Reptile
from .graphs import MetaStepGraphs, why_not
from .settings import LearnerSettings
from .state import LearnerState, RollbackPoint


class MetaGAN:
    """GAN whose initialisation is meta-trained, so that a few gradient steps adapt it to a new class.

    The modules' parameters become views of two flat buffers, `generator_parameters` and `discriminator_parameters`: the
    initialisation. They are updated in place, so the modules are always the current initialisation, and loading a
    state dict into them changes it. After `.to()` or `.double()` the next call binds them again. Changed attributes and
    replaced layers take effect too, as long as parameters keep their names and shapes; changes inside custom objects
    that a module holds are not detected.

    Args:
        generator: maps latents `[n, latent_dim]` to images `[n, channels, height, width]` in [-1, 1].
        discriminator: maps images to scores `[n]` or `[n, 1]`.
        latent_dim: size of a latent, standard normal.
        loss: a name of `losses.NAMES` or a `losses` object.
        inner: settings of the inner loop.
        meta: the algorithm and its meta-optimizer: `Reptile`, `FOMAML` or `MAML`, or a name for its defaults:
            "reptile", "fomaml" or "maml".
        executor: "native", the compiled engine for float32 modules on a CPU; "torch", any module on any device; "auto",
            "native" where it can run these networks and settings, else "torch". See `explain`.
        precision: "float32", or "bf16": parameters and updates stay float32; the torch executor runs the networks in
            bf16, the native one rounds the operands of matrix products to bf16.
            Otherwise the modules' dtype decides: float64 modules compute in float64.
        seed: 0 to 2**64 - 1; with the meta-step it decides every latent, interpolation weight and mini-batch.
        allow_random: accept modules that draw random numbers, such as dropout; results are then not reproducible.

    Batch norm always uses the statistics of the batch at hand, in `sample` too, and raises ValueError for a batch with
    a single value a channel. Other buffers are read and never written: a `forward` that writes one starts each call
    from the module's value, and the write is dropped, which is logged once. So spectral norm keeps its vectors and
    refines them anew in each call: `n_power_iterations` decides how exact the norm is.

    Several threads may use one learner. Meta-steps run one after another; `adapt`, `inner_loop` and `meta_gradient`
    read the initialisation between two updates. All methods work under `torch.inference_mode()` too.

    A copy (`copy.deepcopy`, `pickle`, `torch.save`, a worker's result) is an independent learner that continues to the
    same bytes.

    Raises:
        ValueError: an unknown name, contradictory settings, a parameter shared by both networks, or networks that
            `executor="native"` cannot run.

    Example:
        >>> import torch
        >>> import metagan_fast as mgf
        >>> generator, discriminator = mgf.models.mlp((1, 8, 8), latent_dim=4, hidden=(16,))
        >>> learner = mgf.MetaGAN(
        ...     generator,
        ...     discriminator,
        ...     latent_dim=4,
        ...     loss="wgan-gp",
        ...     inner=mgf.InnerLoop(optimizer="sgd", lr=1e-3, steps=3),
        ...     meta=mgf.Reptile(optimizer="adam", lr=1e-3),
        ... )
        >>> batch = mgf.TaskBatch(support=torch.rand(2, 4, 1, 8, 8) * 2 - 1)
        >>> sorted(learner.meta_step(batch)), learner.step
        (['gradient_norm', 'loss_discriminator', 'loss_generator', 'penalty'], 1)
        >>> learner.meta_gradient(batch).generator.shape == learner.generator_parameters.shape
        True
        >>> learner.adapt(batch.support[0], steps=5).sample(16).shape
        torch.Size([16, 1, 8, 8])
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        latent_dim: int,
        loss: str | Loss = "wgan-gp",
        inner: InnerLoop | None = None,
        meta: str | MetaAlgorithm | None = None,
        executor: str = "auto",
        precision: str = "float32",
        seed: int = 0,
        allow_random: bool = False,
    ) -> None:
        settings = LearnerSettings(
            latent_dim,
            losses.get(loss),
            InnerLoop() if inner is None else inner,
            algorithms.get("reptile" if meta is None else meta),
            executor,
            precision,
            seed,
            allow_random,
        )
        checks.modules(generator, discriminator)
        self.latent_dim = settings.latent_dim
        self.loss = settings.loss
        self.inner = settings.inner
        self.meta = settings.meta
        self.executor_name = settings.executor
        self.precision = settings.precision
        self.seed = settings.seed
        self.allow_random = settings.allow_random
        self.step = 0
        self._updates = 0
        self._training = Lock()  # held for a whole meta-step
        self._lock = Lock()  # held while the initialisation changes or is copied
        self._rollback: RollbackPoint | None = None  # set while an update is incomplete
        self._state = LearnerState(generator, discriminator, self.meta, self.inner)
        self._derive()

    def _derive(self) -> None:
        """Set the attributes derived from the settings and the state."""
        self._is_chosen = False
        self.generator, self.discriminator = self._state.modules
        self.generator_layout, self.discriminator_layout = self._state.layouts
        self._bind()

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings and the state, without the attributes that `_derive` sets."""
        derived = ("generator", "discriminator", "_executor", "_why_torch", "_why_eager", "_graphs", "_is_chosen")
        with self._training:  # a whole meta-step or none of it
            self._bind()
            return {name: value for name, value in self.__dict__.items() if name not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._derive()

    # The initialisation

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

    def _start(self) -> tuple[Executor, Parameters, TrainStates | None]:
        """Return the executor, a copy of the initialisation, and the persistent inner state."""
        with self._lock:
            self._bind()
            initial = Parameters(*(params.clone() for params in self._state.initial))
            return self._executor, initial, self._state.carried

    def _choose_executor(self) -> None:
        """Set the executor, by its name in the settings or the best that can run them, and its graph recorder."""
        state = self._state
        self._executor, self._why_torch = choose(
            self.executor_name,
            state.modules,
            state.layouts,
            state.initial,
            latent_dim=self.latent_dim,
            loss=self.loss,
            inner=self.inner,
            second_order=isinstance(self.meta, MAML),
            precision=self.precision,
            allow_random=self.allow_random,
        )
        self._why_eager = why_not(state.initial.generator.device, self.inner)
        self._graphs = None if self._why_eager else MetaStepGraphs(self._executor, state.initial, state.buffers)

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
        if isinstance(self._executor, NativeExecutor):
            objective = self.meta.generator_objective if isinstance(self.meta, FOMAML) else "support"
            plan = self._executor.explain(
                shots, second_order=isinstance(self.meta, MAML), generator_objective=objective
            )
            return f"executor: native, {self.precision}\n\n{plan}"
        way = f"one by one: {self._why_eager}" if self._graphs is None else f"as CUDA graphs: {self._graphs.describe()}"
        return f"executor: torch, because {self._why_torch}\nmeta-steps run {way}"

    # Meta-training

    @torch.inference_mode(False)
    def meta_step(self, batch: TaskBatch, noise: Noise | None = None) -> dict[str, float]:
        """Adapt the initialisation to each task of the batch and update it once, whole or not at all.

        Any exception, Ctrl-C included, leaves networks, optimizer state and counters unchanged.

        Args:
            batch: the tasks; FOMAML and MAML need query images.
            noise: all random numbers of the meta-step; None: `draw_noise(batch)`.

        Returns:
            Means over tasks: `loss_discriminator`, `loss_generator` and `penalty` of the last inner step,
            `query_loss_discriminator` and `query_loss_generator` after it where there are query images, and
            `gradient_norm`, the L2 norm of the meta-gradient of both networks before clipping.

        Raises:
            ValueError: the batch does not fit the networks or the algorithm.
            FloatingPointError: the meta-gradient is not finite; nothing is changed.
        """
        checks.batch_and_noise(batch, noise)
        checks.persistent_state(self.inner, batch)
        with self._training:
            self._bind()
            if self._graphs is not None and noise is None:  # the graph draws it
                checks.query(self.meta, batch)
                batch = self._fit_images(batch)
            else:
                batch, noise = self._prepare(batch, noise)
            parts = [(batch, noise)]
            if self._serial:
                each = range(batch.tasks)
                parts = [(batch.slice(t, t + 1), None if noise is None else noise.slice(t, t + 1)) for t in each]
            with self._atomic():
                metrics = [self._update(*part) for part in parts]
                self.step += 1
            return {name: sum(m[name] for m in metrics) / len(metrics) for name in metrics[0]}

    def check(self, batch: TaskBatch) -> None:
        """Raise the ValueError that `meta_step` would raise for this batch; change nothing."""
        checks.batch_and_noise(batch)
        checks.persistent_state(self.inner, batch)
        self._bind()
        self._prepare(batch, None)

    @property
    def _serial(self) -> bool:
        return isinstance(self.meta, Reptile) and self.meta.serial

    @contextlib.contextmanager
    def _atomic(self) -> Iterator[None]:
        """Roll back the updates of a meta-step that an exception ends."""
        self._roll_back()
        try:
            yield
            self._rollback = None
        except BaseException:
            while self._rollback is not None:
                with contextlib.suppress(KeyboardInterrupt):  # the first exception is raised below
                    self._roll_back()
            raise

    def _begin_update(self) -> None:
        """Save the state before the meta-step's first update."""
        if self._rollback is None:
            self._rollback = self._state.rollback_point(self.step, self._updates)

    def _roll_back(self) -> None:
        if self._rollback is not None:
            self._state.roll_back(self._rollback)
            self.step, self._updates = self._rollback.step, self._rollback.updates
            self._rollback = None

    def _update(self, batch: TaskBatch, noise: Noise | None) -> dict[str, float]:
        if self._graphs is not None:
            self._begin_update()
            with self._lock:
                metrics = self._graphs.update(
                    self.meta,
                    batch,
                    self._noise_shape(batch, self.inner.steps) if noise is None else noise,
                    counters=noise_counters(seed=self.seed, meta_step=self.step, first_task=batch.first_task),
                    meta_step=self.step,
                    update=self._updates + 1,
                )
            checks.gradient_norm(metrics["gradient_norm"], self.step)
            self._updates += 1
            return metrics
        assert noise is not None
        state = self._state
        return self._apply(
            self.meta.meta_gradient(self._executor, state.initial, batch, noise, self.step, state.carried)
        )

    @torch.inference_mode(False)
    def apply(self, gradient: MetaGradient) -> dict[str, float]:
        """Apply a meta-gradient by the meta-optimizer and count a meta-step, for inner loops that run elsewhere.

        Whole or not at all, as `meta_step`.

        Args:
            gradient: as `meta_gradient` returns it; `clip_value` clamps it in place.

        Returns:
            Means over tasks of its metrics, and `gradient_norm`, as `meta_step`.

        Raises:
            FloatingPointError: as `meta_step`.
        """
        checks.result(gradient, MetaGradient, "meta_gradient")
        with self._training:
            self._bind()
            with self._atomic():
                metrics = self._apply(gradient)
                self.step += 1
        return metrics

    def _apply(self, gradient: MetaGradient) -> dict[str, float]:
        directions = (ordinary(gradient.generator), ordinary(gradient.discriminator))
        norm = torch.stack([self.meta.clamp(direction) for direction in directions]).norm().item()
        checks.gradient_norm(norm, self.step)
        self._begin_update()
        with self._lock:
            self._updates += 1
            for params, direction, state in zip(self._state.initial, directions, self._state.buffers, strict=True):
                self.meta.apply(params, direction, state, self.step, self._updates)
            if self.inner.inner_state == "persist":
                self._state.carried = gradient.networks
        return {name: value.mean().item() for name, value in gradient.metrics.items()} | {"gradient_norm": norm}

    @torch.inference_mode(False)
    def meta_gradient(self, batch: TaskBatch, noise: Noise | None = None) -> MetaGradient:
        """Return the meta-gradient of a task batch, `.generator` and `.discriminator` `[numel]`, and change nothing.

        Raises:
            ValueError: as `meta_step`; serial Reptile, which has one meta-gradient a task.
        """
        checks.batch_and_noise(batch, noise)
        if self._serial and batch.tasks > 1:
            raise ValueError(
                f"expected one task with serial Reptile, which updates after each, got {batch.tasks}; "
                "use Reptile(serial=False) for their mean"
            )
        executor, initial, carried = self._start()
        return self.meta.meta_gradient(executor, initial, *self._prepare(batch, noise), self.step, carried)

    @torch.inference_mode(False)
    def draw_noise(self, batch: TaskBatch) -> Noise:
        """Draw the noise that the current meta-step uses for this batch by default; see `noise.Noise`."""
        checks.batch_and_noise(batch)
        self._bind()
        return self._draw_noise(batch, self.inner.steps, Stream.TRAINING)

    def _draw_noise(self, batch: TaskBatch, steps: int, stream: Stream) -> Noise:
        like = self._state.initial.generator
        return draw_noise(
            self._noise_shape(batch, steps),
            seed=self.seed,
            meta_step=self.step if stream is Stream.TRAINING else 0,
            first_task=batch.first_task,
            stream=stream,
            device=like.device,
            dtype=like.dtype,
        )

    def _noise_shape(self, batch: TaskBatch, steps: int) -> NoiseShape:
        return NoiseShape(
            tasks=batch.tasks,
            shots=batch.shots,
            latent_dim=self.latent_dim,
            steps=steps,
            critic_steps=self.inner.critic_steps,
            batch_size=self.inner.batch_size,
            query=batch.query_shots,
            evaluations=steps if self.meta.multi_step else 1,
            query_adaptation=self.meta.needs_query_adaptation,
        )

    def _prepare(self, batch: TaskBatch, noise: Noise | None) -> tuple[TaskBatch, Noise]:
        """Check a training batch and convert it and its noise for the networks."""
        checks.query(self.meta, batch)
        return self._fit(batch, noise, self.inner.steps, Stream.TRAINING)

    def _fit(self, batch: TaskBatch, noise: Noise | None, steps: int, stream: Stream) -> tuple[TaskBatch, Noise]:
        """Convert a batch and its noise, drawn if None, to the networks' dtype and device."""
        batch = self._fit_images(batch)
        like = self._state.initial.generator
        if noise is None:
            return batch, self._draw_noise(batch, steps, stream)
        noise.check(self._noise_shape(batch, steps))
        return batch, noise.to(device=like.device, dtype=like.dtype)

    def _fit_images(self, batch: TaskBatch) -> TaskBatch:
        like = self._state.initial.generator
        return batch.to(device=like.device, dtype=like.dtype)

    # Adaptation

    def inner_loop(self, batch: TaskBatch, noise: Noise | None = None, *, steps: int | None = None) -> InnerLoopResult:
        """Adapt the initialisation to each task of the batch, and change nothing.

        Args:
            batch: the tasks; query images are ignored.
            noise: all random numbers, which decide the number of steps; None: `draw_noise(batch)`.
            steps: inner steps, `InnerLoop.steps` by default, 0 for the initialisation as it is.

        Returns:
            `.generator` and `.discriminator` `[tasks, numel]`, one row a task; `.metrics` of the last step, name ->
            `[tasks]`; `.history`, `loss_discriminator` and `loss_generator` of every step, `[steps, tasks]`.
        """
        return self._adapt(batch, noise, steps, Stream.TRAINING)

    @torch.inference_mode(False)
    def adapt(self, images: Tensor | NDArray[Any], steps: int | None = None) -> AdaptedGAN:
        """Adapt the initialisation to one class of images, and change nothing.

        Args:
            images: `[shots, channels, height, width]` in [-1, 1], a tensor or a NumPy array.
            steps: inner steps, `InnerLoop.steps` by default, 0 for the initialisation as it is.

        Returns:
            An independent `AdaptedGAN`; equal images give equal networks.

        Raises:
            TypeError, ValueError: as `TaskBatch`; images of another shape than the generator makes.
            FloatingPointError: the networks diverged.
        """
        adapted = self._adapt(TaskBatch(one_task(images)), None, steps, Stream.ADAPTATION)
        checks.adapted_parameters(adapted)
        return AdaptedGAN(
            self.generator,
            self.discriminator,
            self.generator_layout,
            self.discriminator_layout,
            adapted,
            executor=self._executor,
            latent_dim=self.latent_dim,
            precision=self.precision,
            allow_random=self.allow_random,
        )

    @torch.inference_mode(False)
    def _adapt(self, batch: TaskBatch, noise: Noise | None, steps: int | None, stream: Stream) -> InnerLoopResult:
        checks.batch_and_noise(batch, noise)
        if steps is None:
            steps = self.inner.steps if noise is None else noise.steps
        steps = coerce.count("steps", steps)
        executor, initial, carried = self._start()
        if steps == 0:
            rows = (params.expand(batch.tasks, -1).clone() for params in initial)
            return InnerLoopResult(TrainStates(*(TrainState(row) for row in rows)))
        batch, noise = self._fit(batch, noise, steps, stream)
        return executor.inner_loop(initial, batch, noise, carried)

    @torch.inference_mode(False)
    def sample_tasks(self, adapted: InnerLoopResult, count: int, seed: int = 0, *, first_task: int = 0) -> Tensor:
        """Generate `count` images for each task of an inner loop's result.

        Args:
            adapted: the result of `inner_loop`.
            count: images a task.
            seed: decides the latents.
            first_task: index of the first task, as in `TaskBatch`: a slice of a batch keeps the batch's images.

        Returns:
            `[tasks, count, channels, height, width]`; a task's images do not depend on the other tasks.
        """
        checks.result(adapted, InnerLoopResult, "inner_loop")
        self._bind()
        params = adapted.generator
        latents = draw_sample_latents(
            params.shape[0],
            count,
            self.latent_dim,
            seed=seed,
            first_task=first_task,
            device=params.device,
            dtype=params.dtype,
        )
        images = self._executor.generate(params, latents)
        checks.warn_of_images(images)
        return images

    # Saving

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the complete training state: tensors by name, and JSON-able metadata.

        Raises:
            ValueError: a schedule is a custom function, which cannot be saved.
            RuntimeError: called during an update, when the state is partly new.
        """
        if self._rollback is not None:
            raise RuntimeError(
                "expected a complete meta-step, got one whose update is under way; save before meta_step or after it"
            )
        self._bind()
        settings = LearnerSettings.of(self)
        counters = {"updates": self._updates, "inner_updates": self._state.inner_updates}
        return self._state.tensors(), settings.to_config() | counters | {"step": coerce.count("step", self.step)}

    @torch.inference_mode(False)
    def load_state(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Load the result of `state`: networks, optimizers and counters; the settings stay this learner's.

        Raises:
            checkpoint.CheckpointError, a ValueError: the tensors belong to other networks or another meta-optimizer, or
                a counter is damaged; nothing is changed.
        """
        self._load_state("the saved state", tensors, metadata)

    def _load_state(
        self, source: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
    ) -> None:
        with self._training, self._lock:
            self._bind()
            with checkpoint.contents_of(source):
                step, updates = (coerce.count(name, metadata[name]) for name in ("step", "updates"))
                self._state.load(tensors, metadata["inner_updates"])
            self._rollback = None
            self.step, self._updates = step, updates

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the complete training state to one file, atomically.

        Raises:
            checkpoint.CheckpointError: the file cannot be written; a previous one stays.
            ValueError: as `state`.
        """
        with self._training:  # a whole meta-step or none of it
            checkpoint.write(path, *self.state())

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], generator: nn.Module, discriminator: nn.Module, **settings: Any
    ) -> MetaGAN:
        """Rebuild the learner that `save` wrote.

        Args:
            path: the file.
            generator, discriminator: modules with the parameters of the saved ones; their values are overwritten.
            settings: arguments of `MetaGAN` that replace the saved ones.

        Raises:
            checkpoint.CheckpointError, a ValueError: the file cannot be read, is damaged, or the networks do not fit.
            ValueError: as `MetaGAN`.
        """
        tensors, metadata = checkpoint.read(path)
        with checkpoint.contents_of(path):
            saved = LearnerSettings.from_config(metadata)
        learner = cls(generator, discriminator, **(vars(saved) | settings))
        learner._load_state(path, tensors, metadata)
        return learner
