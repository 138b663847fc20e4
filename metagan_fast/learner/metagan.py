"""`MetaGAN`, a GAN with a meta-trained initialisation: the main API."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import checkpoint
from .._utils import coerce
from .._utils.pair import Pair
from ..distributed import Ranks
from ..executors import Executor, MetaGradient
from ..inner import InnerLoop
from ..losses import Loss
from ..noise import Noise, Stream, noise_counters
from ..schedules import rate_at
from ..tasks import TaskBatch
from . import checks
from .adaptable_gan import AdaptableGAN
from .algorithms import MetaAlgorithm, Reptile
from .settings import LearnerSettings
from .sharding import TaskGradient, check_agreement, check_equality, sharded
from .state import averaged

_WHOLE_WAY = Reptile(optimizer="sgd", lr=1.0)  # moves the initialisation to the mean of the adapted networks


class MetaGAN(AdaptableGAN):
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
        max_memory: bytes, or a text such as "2GB", that a meta-step may take above the learner at rest, as
            `plan_memory` predicts them: its tasks are adapted in micro-batches, with the same result. None: no bound.
        process_group: a `torch.distributed` group whose ranks share the tasks of every meta-step; each builds its
            learner, which starts from rank 0's parameters, and passes the same batches. None: this process alone.
        deterministic_reduce: add the ranks' gradients in the order of the tasks, which gives the same bytes for any
            number of ranks, the engine's those of a process without a group; else they agree to rounding.

    With a `process_group`, `meta_step`, `joint_step`, `meta_gradient` and `check_ranks` are collective: every rank
    calls them, with the whole batch, and gets the same result. All other methods work on the calling rank alone. A
    batch of one task and serial Reptile leave nothing to share: each rank then does all of it. Copies have no group.

    Batch norm always uses the statistics of the batch at hand, in `sample` too, and raises ValueError for a batch with
    a single value a channel. Other buffers are read and never written: a `forward` that writes one starts each call
    from the module's value, and the write is dropped, which is logged once. So spectral norm keeps its vectors and
    refines them anew in each call: `n_power_iterations` decides how exact the norm is.

    Several threads may use one learner. Meta-steps run one after another; `adapt`, `inner_loop` and `meta_gradient`
    read the initialisation between two updates. All methods work under `torch.inference_mode()` too.

    A copy (`copy.deepcopy`, `pickle`, `torch.save`, a worker's result) is an independent learner that continues to the
    same bytes.

    Raises:
        ValueError: an unknown name, contradictory settings, a parameter shared by both networks, networks that
            `executor="native"` cannot run, or modules wrapped for parallel training.
        RanksDiffer, a RuntimeError: ranks have other networks or settings than rank 0.

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
        max_memory: int | str | None = None,
        process_group: dist.ProcessGroup | None = None,
        deterministic_reduce: bool = False,
    ) -> None:
        settings: dict[str, Any] = {
            "latent_dim": latent_dim,
            "loss": loss,
            "inner": InnerLoop() if inner is None else inner,
            "meta": "reptile" if meta is None else meta,
            "executor": executor,
            "precision": precision,
            "seed": seed,
            "allow_random": allow_random,
            "max_memory": max_memory,
        }
        super().__init__(generator, discriminator, LearnerSettings(**settings))
        deterministic_reduce = coerce.flag("deterministic_reduce", deterministic_reduce)
        if process_group is not None or deterministic_reduce:
            self._join(Ranks(process_group, deterministic=deterministic_reduce))

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
            checks.query(self.meta, batch)
            if self._is_shared(batch) and not self.meta.serial:
                return self._shared_step(self._algorithm(self._executor), batch, noise)
            batch = self._fit(batch)
            if self._graphs is None or noise is not None:  # a graph draws its own
                noise = self._noise(batch, noise, self.inner.steps, Stream.TRAINING)
            parts = [(batch, noise)]
            if self.meta.serial:
                each = range(batch.tasks)
                parts = [(batch.slice(t, t + 1), None if noise is None else noise.slice(t, t + 1)) for t in each]
            with self._state.atomic():
                metrics = [self._train_on(*part) for part in parts]
                self.step += 1
            return {name: sum(m[name] for m in metrics) / len(metrics) for name in metrics[0]}

    @torch.inference_mode(False)
    def joint_step(
        self, batch: TaskBatch, noise: Noise | None = None, *, inner: InnerLoop | None = None
    ) -> dict[str, float]:
        """Train on the batch without meta-learning: move the initialisation to the mean of the adapted networks.

        On tasks of mixed classes (`TaskDistribution.sample(mixed=True)`) this trains one GAN of all classes, by local
        SGD (Stich 2019, arXiv:1805.09767, algorithm 1): a warm-up of meta-training. It counts as a meta-step; `meta`
        and the state of its optimizer have no part in it.

        Args:
            batch: the tasks; query images are ignored.
            noise: all random numbers of the step; None: they follow from the seed and the step.
            inner: settings of its inner loop; None: the learner's.

        Returns:
            As `meta_step`, without query losses; `gradient_norm` is the L2 norm of the way that both networks move.

        Raises:
            ValueError: the batch does not fit the networks.
            FloatingPointError: the networks diverged; nothing is changed.
        """
        checks.batch_and_noise(batch, noise)
        settings = self._settings if inner is None else dataclasses.replace(self._settings, inner=inner)
        checks.persistent_state(settings.inner, batch)
        with self._training:
            self._bind()
            batch = dataclasses.replace(batch, query=None)
            executor, state = self._executor_of(settings), self._state
            if self._is_shared(batch):
                return self._shared_step(executor.reptile_gradient, batch, noise, settings, joint=True)
            batch = self._fit(batch)
            noise = self._noise(batch, noise, settings.inner.steps, Stream.TRAINING, settings)
            with state.atomic():
                metrics = self._update(
                    executor.reptile_gradient(state.initial, batch, noise, state.carried), joint=True
                )
                self.step += 1
        return metrics

    def _is_shared(self, batch: TaskBatch) -> bool:
        """Return whether the ranks of a group share the batch's tasks."""
        return self._ranks is not None and batch.tasks > 1

    def _algorithm(self, executor: Executor) -> TaskGradient:
        """Return the algorithm's meta-gradient at this meta-step as a function of tasks that start afresh."""
        return lambda initial, batch, noise: self.meta.meta_gradient(executor, initial, batch, noise, self.step)

    def _shared_step(
        self,
        gradient_of: TaskGradient,
        batch: TaskBatch,
        noise: Noise | None,
        settings: LearnerSettings | None = None,
        *,
        joint: bool = False,
    ) -> dict[str, float]:
        """Take a step on a batch whose tasks the ranks share."""
        with self._state.atomic():
            metrics = self._update(
                self._shared_gradient(gradient_of, self._state.initial, batch, noise, settings), joint=joint
            )
            self.step += 1
        return metrics

    def _shared_gradient(
        self,
        gradient_of: TaskGradient,
        initial: Pair[Tensor],
        batch: TaskBatch,
        noise: Noise | None,
        settings: LearnerSettings | None = None,
    ) -> MetaGradient:
        """Return the batch's meta-gradient; each rank fits and draws noise for its own tasks alone."""
        assert self._ranks is not None
        settings = settings or self._settings
        steps = settings.inner.steps
        if noise is not None:
            noise.check(settings.noise_shape(batch, steps))

        def of_part(batch: TaskBatch, noise: Noise | None) -> MetaGradient:
            batch = self._fit(batch)
            return gradient_of(initial, batch, self._noise(batch, noise, steps, Stream.TRAINING, settings))

        return sharded(self._ranks, of_part, initial, batch, noise)

    def _join(self, ranks: Ranks) -> None:
        """Share meta-steps with other ranks from now on, from the first rank's parameters."""
        check_agreement(ranks, self._state, self._settings)
        self._ranks = ranks
        self._is_chosen = False  # no graphs
        self._bind()
        self._state.initial.map(ranks.copy_first)

    def check_ranks(self) -> None:
        """Raise RanksDiffer unless all ranks hold the same parameters and optimizer state; without a group do nothing.

        The message names the ranks that differ from rank 0. It costs a hash of the state and 8 bytes a rank.
        """
        if self._ranks is not None:
            with self._training:
                self._bind()
                check_equality(self._ranks, self._state)

    def check(self, batch: TaskBatch) -> None:
        """Raise the ValueError that `meta_step` would raise for this batch; change nothing."""
        checks.batch_and_noise(batch)
        checks.persistent_state(self.inner, batch)
        self._bind()
        checks.query(self.meta, batch)
        self._noise(batch, None, self.inner.steps, Stream.TRAINING)

    def _train_on(self, batch: TaskBatch, noise: Noise | None) -> dict[str, float]:
        """Adapt to the tasks and update once, by a graph if meta-steps are recorded; it draws the noise if None."""
        state = self._state
        if self._graphs is None:
            assert noise is not None
            return self._update(
                self.meta.meta_gradient(self._executor, state.initial, batch, noise, self.step, state.carried)
            )
        state.begin_update()
        with self._lock:
            metrics = self._graphs.update(
                self.meta,
                batch,
                self._settings.noise_shape(batch, self.inner.steps) if noise is None else noise,
                counters=noise_counters(seed=self.seed, meta_step=self.step, first_task=batch.first_task),
                meta_step=self.step,
                update=state.updates + 1,
            )
        checks.gradient_norm(metrics["gradient_norm"], self.step)
        state.updates += 1
        return metrics

    def _update(self, gradient: MetaGradient, *, joint: bool = False) -> dict[str, float]:
        """Update the initialisation once by a meta-gradient, and keep its inner state if that persists."""
        state = self._state
        check = partial(checks.gradient_norm, meta_step=self.step)
        state.begin_update()
        with self._lock:
            if joint:
                metrics = _WHOLE_WAY.update(state.initial, Pair((), ()), gradient, 1.0, 1, check=check)
            else:
                state.updates += 1
                lr = rate_at(self.meta.lr, self.step)
                metrics = self.meta.update(state.initial, state.buffers, gradient, lr, state.updates, check=check)
            if self.inner.inner_state == "persist":
                state.carried = gradient.networks
        return {name: value.item() for name, value in metrics.items()}

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
            with self._state.atomic():
                metrics = self._update(gradient)
                self.step += 1
        return metrics

    @torch.inference_mode(False)
    def meta_gradient(self, batch: TaskBatch, noise: Noise | None = None) -> MetaGradient:
        """Return the meta-gradient of a task batch, `.generator` and `.discriminator` `[numel]`, and change nothing.

        Raises:
            ValueError: as `meta_step`; serial Reptile, which has one meta-gradient a task.
        """
        checks.batch_and_noise(batch, noise)
        if self.meta.serial and batch.tasks > 1:
            raise ValueError(
                f"expected one task with serial Reptile, which updates after each, got {batch.tasks}; "
                "use Reptile(serial=False) for their mean"
            )
        executor, initial, carried = self._start()
        checks.query(self.meta, batch)
        if self._is_shared(batch):
            return self._shared_gradient(self._algorithm(executor), initial, batch, noise)
        batch = self._fit(batch)
        noise = self._noise(batch, noise, self.inner.steps, Stream.TRAINING)
        return self.meta.meta_gradient(executor, initial, batch, noise, self.step, carried)

    @torch.inference_mode(False)
    def draw_noise(self, batch: TaskBatch) -> Noise:
        """Draw the noise that the current meta-step uses for this batch by default; see `noise.Noise`."""
        checks.batch_and_noise(batch)
        self._bind()
        return self._noise(batch, None, self.inner.steps, Stream.TRAINING)

    # Saving

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the complete training state: tensors by name, and JSON-able metadata.

        Raises:
            ValueError: a schedule is a custom function, which cannot be saved.
            RuntimeError: called during an update, when the state is partly new.
        """
        self._bind()
        tensors, counters = self._state.save()
        return tensors, self._settings.to_config() | counters

    @torch.inference_mode(False)
    def load_state(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], *, average: bool = False) -> None:
        """Load the result of `state`: networks, optimizers and counters; the settings stay this learner's.

        Args:
            tensors, metadata: the state, or the contents of a run's checkpoint.
            average: take the moving average of the initialisation that a run with `ema` saves beside it, if there is
                one; False: the initialisation that training goes on from.

        Raises:
            checkpoint.CheckpointError, a ValueError: the tensors belong to other networks or another meta-optimizer, or
                a counter is damaged; nothing is changed.
        """
        with self._training, self._lock:
            self._bind()
            with checkpoint.contents_of("the saved state"):
                self._state.load(averaged(tensors) if average else tensors, metadata)

    @torch.inference_mode(False)
    def load_networks(self, tensors: Mapping[str, Tensor], *, average: bool = False) -> None:
        """Load both networks and nothing else: optimizers and counters stay.

        Args:
            tensors: values by name, `generator.` and `discriminator.` with the names of the modules' state dicts, such
                as those of a checkpoint; others are ignored.
            average: as for `load_state`.

        Raises:
            ValueError: the tensors belong to other networks; nothing is changed.
        """
        with self._training, self._lock:
            self._bind()
            self._state.load_networks(averaged(tensors) if average else tensors)

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
        cls,
        path: str | os.PathLike[str],
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        average: bool = True,
        **settings: Any,
    ) -> MetaGAN:
        """Rebuild the learner that `save` or a run wrote.

        Args:
            path: the file.
            generator, discriminator: modules with the parameters of the saved ones; their values are overwritten.
            average: start from the moving average of the initialisation that a run with `ema` saves beside it, if
                there is one; False: from the initialisation that the run itself goes on from.
            settings: arguments of `MetaGAN` that replace the saved ones.

        Raises:
            checkpoint.CheckpointError, a ValueError: the file cannot be read, is damaged, or the networks do not fit.
            ValueError: as `MetaGAN`.
        """
        tensors, metadata = checkpoint.read(path)
        with checkpoint.contents_of(path):
            saved = LearnerSettings.from_config(metadata)
        learner = cls(generator, discriminator, **(vars(saved) | settings))
        with checkpoint.contents_of(path):
            learner._state.load(averaged(tensors) if average else tensors, metadata)
        return learner
