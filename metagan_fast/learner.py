"""MetaGAN: a GAN whose initialisation is meta-trained; the API most people call."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint, losses, meta
from ._lock import Lock
from ._tensors import ordinary
from .adapted import AdaptedGAN
from .executors import Adapted, Executor, MetaGradient, NativeExecutor, Networks, Parameters
from .executors.choice import EXECUTORS, PRECISIONS, choose
from .inner import InnerLoop, Network
from .learner_state import Before, LearnerState
from .losses import Loss
from .meta import FOMAML, MAML, MetaOptimizer, Reptile
from .meta_graph import MetaStepGraphs, why_not
from .noise import Noise, NoiseShape, Stream, draw_noise, draw_sample_latents, noise_counters
from .tasks import TaskBatch


class MetaGAN:
    """Meta-train a generator and a discriminator so that a few gradient steps adapt them to a new class.

    The modules' parameters become views of two flat buffers, `generator_parameters` and `discriminator_parameters`: the
    initialisation. They are updated in place, so the modules are always the current initialisation, and loading a
    state dict into them changes it. After `.to()` or `.double()` the next call binds them again. It follows changed
    attributes and replaced layers too, as long as parameters keep their names and shapes; it does not see changes
    inside objects of one's own that a module holds.

    Args:
        generator: maps latents `[n, latent_dim]` to images `[n, channels, height, width]` in [-1, 1].
        discriminator: maps images to scores `[n]` or `[n, 1]`.
        latent_dim: size of a latent, standard normal.
        loss: a name of `losses.NAMES` or a `losses` object.
        inner: how a task adapts the networks.
        meta: the algorithm and its meta-optimizer: `Reptile`, `FOMAML` or `MAML`.
        executor: "native", the compiled engine for float32 modules on a CPU; "torch", any module on any device; "auto",
            "native" where it can run these networks and settings, else "torch". See `explain`.
        precision: "float32", or "bf16": parameters and updates stay float32; the torch executor runs the networks in
            bf16, the native one rounds the operands of matrix products to bf16.
            The modules' own dtype rules otherwise: float64 modules compute in float64.
        seed: 0 to 2**64 - 1; with the meta-step it decides every latent, interpolation weight and mini-batch.
        allow_random: accept modules that draw random numbers, such as dropout; results are then not reproducible.

    Batch norm always uses the statistics of the batch at hand, in `sample` too, and raises ValueError for a batch with
    a single value a channel. Other buffers are read and never written: a `forward` that writes one starts each call
    from the module's own value, and what it writes is dropped, as one log line says. So the vectors of spectral norm
    stay, and each call refines them anew: `n_power_iterations` decides how exact the norm is.

    Several threads may use one learner. Meta-steps run one after another; `adapt`, `inner_loop` and `meta_gradient`
    take the initialisation as it is between two updates. All methods work under `torch.inference_mode()` too.

    Raises:
        ValueError: an unknown name, settings that make no sense together, a parameter that both networks have, or
            something that the native executor cannot run where it is asked for by name.
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
        meta: MetaOptimizer | None = None,
        executor: str = "auto",
        precision: str = "float32",
        seed: int = 0,
        allow_random: bool = False,
    ) -> None:
        if latent_dim < 1:
            raise ValueError(f"expected latent_dim of at least 1, got {latent_dim}")
        if executor not in EXECUTORS:
            raise ValueError(f"expected an executor of {', '.join(EXECUTORS)}; got {executor!r}")
        if precision not in PRECISIONS:
            raise ValueError(f"expected a precision of {', '.join(PRECISIONS)}; got {precision!r}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"expected a seed from 0 to 2**64 - 1, got {seed}")
        if generator is discriminator:
            raise ValueError("expected two modules, got the same one as generator and discriminator")
        self.generator = generator
        self.discriminator = discriminator
        self.latent_dim = latent_dim
        self.loss = losses.get(loss)
        self.inner = inner or InnerLoop()
        self.meta = meta or Reptile()
        self.meta.check(self.inner)
        self.executor_name = executor
        self.precision = precision
        self.seed = seed
        self.allow_random = allow_random
        self.step = 0
        self._updates = 0
        self._training = Lock()  # held for a whole meta-step
        self._lock = Lock()  # held while the initialisation changes or is copied
        self._is_chosen = False
        self._before: Before | None = None  # of an update that is not complete
        self._state = LearnerState(generator, discriminator, self.meta)
        self.generator_layout, self.discriminator_layout = self._state.layouts
        self._bind()

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

    def _start(self) -> tuple[Executor, Parameters, Networks | None]:
        """Return the executor, a copy of the initialisation, and the inner loop that is carried on."""
        with self._lock:
            self._bind()
            initial = Parameters(*(params.clone() for params in self._state.initial))
            return self._executor, initial, self._state.carried

    def _choose_executor(self) -> None:
        """Set the executor that the settings ask for, or the best one that can run them, and what records it."""
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
        """Describe what runs the inner loops.

        Args:
            shots: support images of a task, for the figures of an inner step.

        Returns:
            With the native executor its plan of both networks: layers, shapes, parameters, multiply-adds, memory of a
            task; otherwise why the torch executor runs them, and whether meta-steps are replayed as CUDA graphs.
        """
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

        Whatever ends it early, Ctrl-C too, leaves networks, optimizer state and counters as they were.

        Args:
            batch: the tasks; FOMAML and MAML need query images.
            noise: what `draw_noise` returns, the default.

        Returns:
            Means over tasks: `loss_discriminator`, `loss_generator` and `penalty` of the last inner step,
            `query_loss_discriminator` and `query_loss_generator` after it where there are query images, and
            `gradient_norm`, the L2 norm of the meta-gradient of both networks before clipping.

        Raises:
            ValueError: the batch does not fit the networks or the algorithm.
            FloatingPointError: the meta-gradient is not finite; the initialisation is left as it was.
        """
        self._check_tasks(batch)
        with self._training:
            self._bind()
            if self._graphs is not None and noise is None:  # a graph draws its own
                self._check_query(batch)
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
        """Raise ValueError where `meta_step` would, without a meta-step."""
        self._check_tasks(batch)
        self._bind()
        self._prepare(batch, None)

    def _check_tasks(self, batch: TaskBatch) -> None:
        if self.inner.inner_state == "persist" and batch.tasks != 1:
            raise ValueError(
                f'expected one task a meta-step with inner_state="persist", got {batch.tasks}; sample(tasks=1, ...) '
                'or use inner_state="reset"'
            )

    @property
    def _serial(self) -> bool:
        return isinstance(self.meta, Reptile) and self.meta.serial

    @contextlib.contextmanager
    def _atomic(self) -> Iterator[None]:
        """Undo the updates of a meta-step that does not come to its end."""
        self._roll_back()
        try:
            yield
            self._before = None
        except BaseException:
            while self._before is not None:
                with contextlib.suppress(KeyboardInterrupt):  # the first one is raised below
                    self._roll_back()
            raise

    def _begin_update(self) -> None:
        """Keep the state from before the meta-step's first update."""
        if self._before is None:
            self._before = self._state.before(self.step, self._updates)

    def _roll_back(self) -> None:
        if self._before is not None:
            self._state.roll_back(self._before)
            self.step, self._updates = self._before.step, self._before.updates
            self._before = None

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
            self._check_norm(metrics["gradient_norm"])
            self._updates += 1
            return metrics
        assert noise is not None
        state = self._state
        return self._apply(
            self.meta.meta_gradient(self._executor, state.initial, batch, noise, self.step, state.carried)
        )

    @torch.inference_mode(False)
    def apply(self, gradient: MetaGradient) -> dict[str, float]:
        """Hand a meta-gradient to the meta-optimizer and count a meta-step, for inner loops run apart from it.

        Whole or not at all, as `meta_step`.

        Args:
            gradient: as `meta_gradient` returns it; `clip_value` clamps it in place.

        Returns:
            Means over tasks of its metrics, and `gradient_norm`, as `meta_step`.

        Raises:
            FloatingPointError: as `meta_step`.
        """
        with self._training:
            self._bind()
            with self._atomic():
                metrics = self._apply(gradient)
                self.step += 1
        return metrics

    def _apply(self, gradient: MetaGradient) -> dict[str, float]:
        directions = (ordinary(gradient.generator), ordinary(gradient.discriminator))
        norm = torch.stack([self.meta.clamp(direction) for direction in directions]).norm().item()
        self._check_norm(norm)
        self._begin_update()
        with self._lock:
            self._updates += 1
            for params, direction, state in zip(self._state.initial, directions, self._state.buffers, strict=True):
                self.meta.apply(params, direction, state, self.step, self._updates)
            if self.inner.inner_state == "persist":
                self._state.carried = gradient.networks
        return {name: value.mean().item() for name, value in gradient.metrics.items()} | {"gradient_norm": norm}

    def _check_norm(self, norm: float) -> None:
        if not norm < float("inf"):
            raise FloatingPointError(
                f"the meta-gradient of meta-step {self.step} is not finite; the initialisation is unchanged: lower the "
                "inner learning rate, or check the images and the loss"
            )

    @torch.inference_mode(False)
    def meta_gradient(self, batch: TaskBatch, noise: Noise | None = None) -> MetaGradient:
        """Return the meta-gradient of a task batch, `.generator` and `.discriminator` `[numel]`, and change nothing.

        Raises:
            ValueError: as `meta_step`; serial Reptile, which has one after each task.
        """
        if self._serial and batch.tasks > 1:
            raise ValueError(
                f"expected one task with serial Reptile, which updates after each, got {batch.tasks}; "
                "use Reptile(serial=False) for their mean"
            )
        executor, initial, carried = self._start()
        return self.meta.meta_gradient(executor, initial, *self._prepare(batch, noise), self.step, carried)

    @torch.inference_mode(False)
    def draw_noise(self, batch: TaskBatch) -> Noise:
        """Draw what the current meta-step uses for this batch when it is given no noise; see `noise.Noise`."""
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
        """Check a training batch, and fit it and its noise to the networks."""
        self._check_query(batch)
        return self._fit(batch, noise, self.inner.steps, Stream.TRAINING)

    def _check_query(self, batch: TaskBatch) -> None:
        if self.meta.needs_query and batch.query is None:
            raise ValueError(
                f"{self.meta.algorithm.upper()} needs query images, got none; sample with query=n or pass "
                "TaskBatch(support, query)"
            )

    def _fit(self, batch: TaskBatch, noise: Noise | None, steps: int, stream: Stream) -> tuple[TaskBatch, Noise]:
        """Bring a batch and its noise, drawn if there is none, to the networks' dtype and device."""
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

    def inner_loop(self, batch: TaskBatch, noise: Noise | None = None, *, steps: int | None = None) -> Adapted:
        """Adapt the initialisation to each task of the batch, and change nothing.

        Args:
            batch: the tasks; query images are not looked at.
            noise: what `draw_noise` returns, the default; it decides the number of steps.
            steps: inner steps, `InnerLoop.steps` by default, 0 for the initialisation as it is.

        Returns:
            `.generator` and `.discriminator` `[tasks, numel]`, one row a task; `.metrics` of the last step, name ->
            `[tasks]`; `.history`, `loss_discriminator` and `loss_generator` of every step, `[steps, tasks]`.
        """
        return self._adapt(batch, noise, steps, Stream.TRAINING)

    @torch.inference_mode(False)
    def adapt(self, images: Tensor, steps: int | None = None) -> AdaptedGAN:
        """Adapt the initialisation to one class of images, and change nothing.

        Args:
            images: `[shots, channels, height, width]` in [-1, 1].
            steps: inner steps, `InnerLoop.steps` by default, 0 for the initialisation as it is.

        Returns:
            An `AdaptedGAN` with networks of its own; the same images give the same one.
        """
        if images.ndim != 4:
            raise ValueError(f"expected images [shots, channels, height, width], got {list(images.shape)}")
        adapted = self._adapt(TaskBatch(images.unsqueeze(0)), None, steps, Stream.ADAPTATION)
        return AdaptedGAN(
            self.generator,
            self.discriminator,
            self.generator_layout,
            self.discriminator_layout,
            adapted,
            executor=self._executor,
            latent_dim=self.latent_dim,
        )

    @torch.inference_mode(False)
    def _adapt(self, batch: TaskBatch, noise: Noise | None, steps: int | None, stream: Stream) -> Adapted:
        steps = steps if steps is not None else noise.steps if noise is not None else self.inner.steps
        if steps < 0:
            raise ValueError(f"expected steps of at least 0, got {steps}")
        executor, initial, carried = self._start()
        if steps == 0:
            rows = (params.expand(batch.tasks, -1).clone() for params in initial)
            return Adapted(Networks(*(Network(row) for row in rows)))
        batch, noise = self._fit(batch, noise, steps, stream)
        return executor.inner_loop(initial, batch, noise, carried)

    @torch.inference_mode(False)
    def sample_tasks(self, adapted: Adapted, count: int, seed: int = 0, *, first_task: int = 0) -> Tensor:
        """Generate `count` images for each task of an inner loop's result.

        Args:
            adapted: what `inner_loop` returned.
            count: images a task.
            seed: decides the latents.
            first_task: index of the first task, as in `TaskBatch`: a slice of a batch gets the batch's images.

        Returns:
            `[tasks, count, channels, height, width]`; a task's images do not depend on the other tasks.
        """
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
        return self._executor.generate(params, latents)

    # Saving

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything needed to go on exactly: tensors by name, and metadata that JSON can hold.

        Raises:
            ValueError: a schedule that is a function of one's own, which cannot be written down.
            RuntimeError: called from within an update, when only a part of the state is new.
        """
        if self._before is not None:
            raise RuntimeError(
                "expected a complete meta-step, got one whose update is under way; save before meta_step or after it"
            )
        self._bind()
        metadata = {
            "latent_dim": self.latent_dim,
            "loss": self.loss.to_config(),
            "inner": self.inner.to_config(),
            "meta": self.meta.to_config(),
            "executor": self.executor_name,
            "precision": self.precision,
            "seed": self.seed,
            "allow_random": self.allow_random,
            "step": self.step,
            "updates": self._updates,
            "inner_updates": self._state.inner_updates,
        }
        return self._state.tensors(), metadata

    @torch.inference_mode(False)
    def load_state(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Take up what `state` returned: networks, optimizers and counters; the settings stay this learner's.

        Raises:
            ValueError: the tensors belong to other networks or another meta-optimizer; nothing is changed.
        """
        with self._training, self._lock:
            self._bind()
            self._state.load(tensors, metadata["inner_updates"])
            self._before = None
            self.step, self._updates = metadata["step"], metadata["updates"]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything needed to go on exactly to one file, atomically.

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
        """Build the learner that `save` wrote.

        Args:
            path: the file.
            generator, discriminator: modules with the saved ones' parameters; their values are overwritten.
            settings: arguments of `MetaGAN` that replace the saved ones.

        Raises:
            checkpoint.CheckpointError: the file cannot be read.
            ValueError: the networks do not fit.
        """
        tensors, metadata = checkpoint.read(path)
        saved = {
            "latent_dim": metadata["latent_dim"],
            "loss": losses.from_config(metadata["loss"]),
            "inner": InnerLoop.from_config(metadata["inner"]),
            "meta": meta.from_config(metadata["meta"]),
        } | {name: metadata[name] for name in ("executor", "precision", "seed", "allow_random")}
        learner = cls(generator, discriminator, **(saved | settings))
        learner.load_state(tensors, metadata)
        return learner
