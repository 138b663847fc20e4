"""FIGR's episode in plain PyTorch, as its trainer runs it (Clouâtre & Demers 2019, arXiv:1901.02199).

SGD adapts one pair of networks, Adam updates the other along the difference. The module shares no code with the
package, so in float64 it is also the oracle of the drop-in.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class PlainFIGR:
    """The initialisation, the adapted networks, and the four optimizers of both."""

    def __init__(
        self, generator: nn.Module, discriminator: nn.Module, *, inner_lr: float = 1e-3, outer_lr: float = 1e-4
    ) -> None:
        self.g, self.d = copy.deepcopy(generator), copy.deepcopy(discriminator)
        self.meta_g, self.meta_d = copy.deepcopy(generator), copy.deepcopy(discriminator)
        self.outer = [torch.optim.Adam(network.parameters(), lr=outer_lr) for network in (self.g, self.d)]
        self.inner = [torch.optim.SGD(network.parameters(), lr=inner_lr) for network in (self.meta_g, self.meta_d)]

    def episode(self, real: Tensor, noise: Any) -> tuple[float, float]:
        """Adapt to one task and update the initialisation.

        Args:
            real: the task's images, `[images, C, H, W]` in [-1, 1].
            noise: an object with the attributes of `metagan_fast.Noise`, for one task.

        Returns:
            The discriminator's and the generator's loss, each summed over the inner steps.
        """
        self.meta_g.load_state_dict(self.g.state_dict())
        self.meta_d.load_state_dict(self.d.state_dict())
        losses = [self._step(real, noise, step) for step in range(len(noise.generator_latents))]
        for optimizer, initial, adapted in zip(self.outer, (self.g, self.d), (self.meta_g, self.meta_d), strict=True):
            for theta, phi in zip(initial.parameters(), adapted.parameters(), strict=True):
                theta.grad = theta.detach() - phi.detach()
            optimizer.step()
        return sum(d for d, _ in losses), sum(g for _, g in losses)

    def _step(self, real: Tensor, noise: Any, step: int) -> tuple[float, float]:
        generator_optimizer, discriminator_optimizer = self.inner
        fake = self.meta_g(noise.discriminator_latents[step, 0, 0].to(real))
        weight = noise.interpolation[step, 0, 0].to(real).view(-1, 1, 1, 1)
        points = (weight * real + (1 - weight) * fake).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.meta_d(points).sum(), points, create_graph=True)
        penalty = 10 * ((gradient.norm(dim=1) - 1) ** 2).mean()
        scores = self.meta_d(torch.cat([real, fake]))
        signs = torch.ones_like(scores)
        signs[len(real) :] = -1
        of_discriminator = (scores * signs).mean() + penalty
        discriminator_optimizer.zero_grad()
        of_discriminator.backward()
        discriminator_optimizer.step()

        of_generator = self.meta_d(self.meta_g(noise.generator_latents[step, 0].to(real))).mean()
        generator_optimizer.zero_grad()
        of_generator.backward()
        generator_optimizer.step()
        return of_discriminator.item(), of_generator.item()
