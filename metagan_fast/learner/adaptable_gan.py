"""`AdaptableGAN`: adaptation of an initialisation, and the images of the adapted generators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from .._utils import coerce
from ..executors import InnerLoopResult
from ..inner import TrainState
from ..noise import Noise, Stream, draw_sample_latents
from ..tasks import TaskBatch
from ..tasks.batch import one_task
from . import checks
from .adapted import AdaptedGAN, most_real
from .bound_gan import BoundGAN


class AdaptableGAN(BoundGAN):
    """Bound GAN that adapts to tasks and generates images, and changes nothing; `MetaGAN` trains it."""

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
            self._state.networks,
            adapted,
            executor=self._executor,
            latent_dim=self.latent_dim,
            precision=self.precision,
            allow_random=self.allow_random,
            loss=self.loss,
        )

    def adaptation(self, images: Tensor | NDArray[Any], steps: int | None = None) -> Iterator[InnerLoopResult]:
        """Adapt the initialisation to one class of images, one inner step at a time, and change nothing.

        Args:
            images, steps: as for `adapt`.

        Yields:
            After each inner step what `inner_loop` would return after as many, the last those of `adapt`; without
            `history`. The generator goes on from them, so change none in place.

        Raises:
            TypeError, ValueError, FloatingPointError: as `adapt`.

        Example:
            >>> import torch
            >>> import metagan_fast as mgf
            >>> learner = mgf.pretrained("glyphs")
            >>> for adapted in learner.adaptation(torch.rand(4, 1, 32, 32) * 2 - 1, steps=2):
            ...     new_images = learner.sample_tasks(adapted, 16)
            >>> new_images.shape
            torch.Size([1, 16, 1, 32, 32])
        """
        batch = TaskBatch(one_task(images))
        steps = self.inner.steps if steps is None else coerce.count("steps", steps)
        executor, initial, carried = self._start()
        if steps == 0:
            return
        batch = self._fit(batch)
        noise = self._noise(batch, None, steps, Stream.ADAPTATION)
        params = initial
        state = initial.map(lambda row: self.inner.start(row.unsqueeze(0))) if carried is None else carried
        for step in range(steps):
            with torch.inference_mode(False):
                adapted = executor.inner_loop(params, batch, noise.at_step(step), state)
            checks.adapted_parameters(adapted)
            params, state = adapted.params.map(lambda rows: rows[0]), adapted.networks
            yield InnerLoopResult(adapted.networks, adapted.metrics)

    @torch.inference_mode(False)
    def _adapt(self, batch: TaskBatch, noise: Noise | None, steps: int | None, stream: Stream) -> InnerLoopResult:
        checks.batch_and_noise(batch, noise)
        if steps is None:
            steps = self.inner.steps if noise is None else noise.steps
        steps = coerce.count("steps", steps)
        executor, initial, carried = self._start()
        if steps == 0:
            return InnerLoopResult(initial.map(lambda params: TrainState(params.expand(batch.tasks, -1).clone())))
        batch = self._fit(batch)
        noise = self._noise(batch, noise, steps, stream)
        return executor.inner_loop(initial, batch, noise, carried)

    @torch.inference_mode(False)
    def sample_tasks(
        self, adapted: InnerLoopResult, count: int, seed: int = 0, *, first_task: int = 0, best_of: int = 1
    ) -> Tensor:
        """Generate `count` images for each task of an inner loop's result.

        Args:
            adapted: the result of `inner_loop`.
            count: images a task.
            seed: decides the latents.
            first_task: index of the first task, as in `TaskBatch`: a slice of a batch keeps the batch's images.
            best_of: as for `AdaptedGAN.sample`.

        Returns:
            `[tasks, count, channels, height, width]`; a task's images do not depend on the other tasks.
        """
        checks.result(adapted, InnerLoopResult, "inner_loop")
        count, best_of = coerce.count("count", count, least=1), coerce.count("best_of", best_of, least=1)
        params = adapted.generator
        latents = draw_sample_latents(
            params.shape[0],
            count * best_of,
            self.latent_dim,
            seed=seed,
            first_task=first_task,
            device=params.device,
            dtype=params.dtype,
        )
        images = self.generate(params, latents)
        if best_of == 1:
            return images
        scores = self._executor.score(adapted.discriminator, images)
        return most_real(images, self.loss.realness(scores), count)

    @torch.inference_mode(False)
    def generate(self, generator: Tensor, latents: Tensor) -> Tensor:
        """Generate an image of each latent.

        Args:
            generator: adapted parameters `[tasks, numel]`, such as `InnerLoopResult.generator`.
            latents: `[tasks, n, latent_dim]`.

        Returns:
            `[tasks, n, channels, height, width]`.
        """
        self._bind()
        images = self._executor.generate(generator, latents)
        checks.warn_of_images(images)
        return images
