"""A GAN adapted to one class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._modules import Snapshot, copy_module
from .executors import Adapted, Executor
from .executors.batched import BatchedModule
from .flat import FlatLayout
from .noise import draw_sample_latents


class AdaptedGAN:
    """Hold a generator and a discriminator adapted to one class; `MetaGAN.adapt` makes it.

    Attributes:
        generator, discriminator: modules of their own, in the structure of the learner's.
        metrics: losses of the last inner step, as in `MetaGAN.meta_step`; empty after 0 steps.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        generator_layout: FlatLayout,
        discriminator_layout: FlatLayout,
        adapted: Adapted,
        *,
        executor: Executor,
        latent_dim: int,
    ) -> None:
        self.generator = _with_parameters(generator, generator_layout, adapted.generator[0])
        self.discriminator = _with_parameters(discriminator, discriminator_layout, adapted.discriminator[0])
        self.metrics = {name: value.item() for name, value in adapted.metrics.items()}
        self._layout = generator_layout
        self._snapshot = Snapshot(self.generator)
        self._executor = executor
        self._latent_dim = latent_dim

    @torch.inference_mode(False)
    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Generate images.

        Batch norm uses the statistics of the batch that is generated.

        Args:
            count: how many, at least 1.
            seed: decides the latents; the same seed gives the same images.

        Returns:
            `[count, channels, height, width]` in the generator's range, [-1, 1].
        """
        if count < 1:
            raise ValueError(f"expected a count of at least 1, got {count}")
        params = self._layout.flatten(self.generator).unsqueeze(0)
        latents = draw_sample_latents(1, count, self._latent_dim, seed=seed, device=params.device, dtype=params.dtype)
        if self._snapshot.is_current():
            return self._executor.generate(params, latents)[0]
        with torch.no_grad():  # someone has changed the generator since
            return BatchedModule(self.generator, self._layout, "generator", allow_random=True)(params, latents)[0]


def _with_parameters(module: nn.Module, layout: FlatLayout, params: Tensor) -> nn.Module:
    """Return a copy of `module` that owns `params`."""
    module = copy_module(module)
    layout.bind(module, params.clone())
    return module
