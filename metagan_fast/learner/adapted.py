"""A GAN adapted to one class."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from .._utils import coerce
from .._utils.modules import Snapshot
from .._utils.pair import Pair
from ..executors import Executor, InnerLoopResult, Network
from ..executors.select import choose
from ..inner import InnerLoop
from ..losses import Loss
from ..noise import draw_sample_latents


def most_real(images: Tensor, realness: Tensor, count: int) -> Tensor:
    """Return, in their order, the `count` images of each task `[tasks, n, C, H, W]` with the highest realness."""
    chosen = realness.topk(count, 1).indices.sort(1).values
    return images[torch.arange(len(images), device=images.device).unsqueeze(1), chosen]


class AdaptedGAN:
    """Generator and discriminator adapted to one class, as `MetaGAN.adapt` returns them.

    Attributes:
        generator, discriminator: independent modules with the learner's structure.
        metrics: losses of the last inner step, as in `MetaGAN.meta_step`; empty after 0 steps.

    Each parameter owns its memory. Copies, pickled ones included, generate the same images.
    """

    def __init__(
        self,
        networks: Pair[Network],
        adapted: InnerLoopResult,
        *,
        executor: Executor,
        latent_dim: int,
        precision: str,
        allow_random: bool,
        loss: Loss,
    ) -> None:
        made = networks.map(lambda network, params: network.instantiate(params[0]), adapted.params)
        self.generator, self.discriminator = (network.module for network in made)
        self.metrics = {name: value.item() for name, value in adapted.metrics.items()}
        self._layouts = networks.map(lambda network: network.layout)
        self._snapshots = self._take_snapshots()
        self._latent_dim, self._loss = latent_dim, loss
        self._executor: Executor | None = executor
        self._kind = adapted.generator.dtype, adapted.generator.device
        self._executor_settings: dict[str, Any] = {
            "name": "auto" if executor.name == "native" else executor.name,
            "precision": precision,
            "allow_random": allow_random,
        }

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the executor; a copy chooses its own."""
        return self.__dict__ | {"_executor": None}

    def __repr__(self) -> str:
        sizes = [sum(x.numel() for x in module.parameters()) for module in (self.generator, self.discriminator)]
        facts = [f"generator={sizes[0]:,} parameters", f"discriminator={sizes[1]:,} parameters"]
        return f"AdaptedGAN({', '.join(facts + [f'{name}={value:.4g}' for name, value in self.metrics.items()])})"

    def _repr_html_(self) -> str:
        """Show a few images, the same each time, and the metrics in a notebook."""
        from .showing import adapted_html  # slow to import

        return adapted_html(self)

    def _repr_png_(self) -> bytes | None:
        from .showing import adapted_png

        return adapted_png(self)

    @torch.inference_mode(False)
    def sample(self, count: int, seed: int = 0, *, best_of: int = 1) -> Tensor:
        """Generate images.

        Batch norm uses the statistics of the generated batch.

        Args:
            count: number of images, at least 1.
            seed: decides the latents; the same seed gives the same images.
            best_of: generate so many times `count` images and return, in their order, those that the adapted
                discriminator finds most real (`Loss.realness`); 1: all. Cleaner images of less variety, as in
                discriminator rejection sampling (Azadi et al. 2019, arXiv:1810.06758), but by rank; of little use
                after a relativistic loss, which compares pairs.

        Returns:
            `[count, channels, height, width]` in the generator's range, [-1, 1].

        Raises:
            ValueError: a count or a seed out of range.
            FloatingPointError: the images are not finite.
        """
        count, best_of = coerce.count("count", count, least=1), coerce.count("best_of", best_of, least=1)
        params = self._layouts[0].flatten(self.generator).unsqueeze(0)
        latents = draw_sample_latents(
            1, count * best_of, self._latent_dim, seed=seed, device=params.device, dtype=params.dtype
        )
        executor = self._choose_executor(params)
        images = executor.generate(params, latents)
        if not images.isfinite().all():
            raise FloatingPointError(
                "the adapted generator makes images that are NaN or infinite: lower the inner learning rate, take "
                "fewer steps, or check its parameters"
            )
        if best_of > 1:
            scores = executor.score(self._layouts[1].flatten(self.discriminator).unsqueeze(0), images)
            images = most_real(images, self._loss.realness(scores), count)
        return images[0]

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the generator to a file that runs without this package: latents `[n, latent_dim]` to images.

        The number of latents is free, and the program runs on the CPU. The file also holds `latent_dim`,
        `image_shape` and `range`, as JSON: in `.pt2` as the extra file `metadata.json`, in ONNX as metadata
        properties.

        Args:
            path: ends in `.pt2` (`torch.export`) or `.onnx`, which needs the extra `onnx`; its folder must exist.

        Raises:
            ValueError: another ending, a missing library, or a generator that the format cannot express.
            checkpoint.CheckpointError: the file cannot be written.
        """
        from .export import export  # slow to import

        export(self.generator, self._latent_dim, path)

    def _take_snapshots(self) -> Pair[Snapshot]:
        return Pair(Snapshot(self.generator), Snapshot(self.discriminator))

    def _choose_executor(self, generator: Tensor) -> Executor:
        """Return the networks' executor; a copy, `.to()`, `.double()` or a changed module choose again."""
        kind = generator.dtype, generator.device
        if self._executor is None or kind != self._kind or not all(taken.is_current() for taken in self._snapshots):
            self._kind = kind
            self._snapshots = self._take_snapshots()
            self._executor = choose(
                networks=Pair(self.generator, self.discriminator).map(Network, self._layouts),
                like=generator,
                latent_dim=self._latent_dim,
                loss=self._loss,
                inner=InnerLoop(),  # unused: sampling trains nothing
                second_order=False,
                **self._executor_settings,
            )
        return self._executor
