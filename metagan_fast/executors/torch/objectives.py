"""Losses of both networks for every task of a batch, as functions of their flat parameters."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ...losses import Loss
from .batched import BatchedModule
from .exact_norms import ExactNorms


@dataclass(frozen=True)
class Objectives:
    """A GAN loss on parameters `[tasks, numel]` and images `[tasks, n, C, H, W]`.

    Every result is `[tasks]` and differentiable to any order.
    """

    generator: BatchedModule
    discriminator: BatchedModule
    loss: Loss

    def discriminator_loss(
        self, params: Tensor, real: Tensor, fake: Tensor, interpolation: Tensor, *, differentiated_twice: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the discriminator's loss, penalty included, and the penalty alone (None if there is none).

        The penalty is differentiated by double backward: reverse mode over forward mode is silently wrong for
        normalisation layers in torch 2.13, and so are third derivatives (`exact_norms.py`). Pass
        `differentiated_twice` to take second derivatives of the loss, which are third derivatives of the scores.
        """
        real_scores, fake_scores = self._both_scores(params, real, fake)
        loss = self.loss.discriminator_loss(real_scores, fake_scores)
        if self.loss.penalty is None:
            return loss, None
        location = self.loss.penalty.location
        penalties = []
        for where in ("real", "fake") if location == "both" else (location,):
            points = self._penalty_points(where, real, fake, interpolation)
            with ExactNorms() if differentiated_twice else nullcontext():
                scores = self.scores(params, points)
            (gradient,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
            penalties.append(self.loss.penalty.value(gradient))
        penalty = sum(penalties[1:], penalties[0])
        return loss + penalty, penalty

    def generator_loss(self, discriminator: Tensor, generator: Tensor, latents: Tensor, real: Tensor) -> Tensor:
        """Return the generator's loss against `discriminator`."""
        fake = self.generator(generator, latents)
        if self.loss.generator_needs_real:
            real_scores, fake_scores = self._both_scores(discriminator, real, fake)
            return self.loss.generator_loss(fake_scores, real_scores)
        return self.loss.generator_loss(self.scores(discriminator, fake))

    @staticmethod
    def _penalty_points(location: str, real: Tensor, fake: Tensor, interpolation: Tensor) -> Tensor:
        if location == "interpolate":
            weight = interpolation[..., None, None, None]
            points = weight * real + (1 - weight) * fake
        else:
            points = real if location == "real" else fake
        # A new leaf, unless the graph must reach the generator through the points.
        return points if points.requires_grad else points.detach().requires_grad_()

    def _both_scores(self, params: Tensor, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        if self.loss.separate_batches:
            return self.scores(params, real), self.scores(params, fake)
        scores = self.scores(params, torch.cat((real, fake), dim=1))
        real_scores, fake_scores = scores.split((real.shape[1], fake.shape[1]), dim=1)
        return real_scores, fake_scores

    def scores(self, params: Tensor, images: Tensor) -> Tensor:
        """Return the discriminator's scores `[tasks, n]`.

        Raises:
            ValueError: it returns more than one number an image.
        """
        scores = self.discriminator(params, images)
        if scores.shape[2:] not in ((), (1,)):
            raise ValueError(
                f"expected the discriminator to return scores [n] or [n, 1], got {list(scores.shape[1:])}; "
                "reduce its output to one number an image"
            )
        return scores.flatten(1)
