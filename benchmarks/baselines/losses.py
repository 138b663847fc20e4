"""GAN losses written by hand: a table by name, and their values for a pair of networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

Module = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """A GAN loss: functions of the scores and, optionally, a penalty on the discriminator's input gradient."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    penalty: Callable[[Tensor], Tensor] | None = None
    penalise_real: bool = False  # False: the penalty is taken at interpolates of real and fake
    clip: float | None = None


def _sample_penalty(gradient: Tensor) -> Tensor:
    return 10 * (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def _pixel_penalty(gradient: Tensor) -> Tensor:
    return 10 * (gradient.norm(dim=1) - 1).square().mean()


def _zero_centred_penalty(gradient: Tensor) -> Tensor:
    return 5 * gradient.square().flatten(1).sum(1).mean()


def _wasserstein(real: Tensor, fake: Tensor) -> Tensor:
    return fake.mean() - real.mean()


def _halved_wasserstein(real: Tensor, fake: Tensor) -> Tensor:
    return torch.cat([real, -fake]).mean()


def _logistic(real: Tensor, fake: Tensor) -> Tensor:
    return softplus(-real).mean() + softplus(fake).mean()


def _hinge(real: Tensor, fake: Tensor) -> Tensor:
    return relu(1 - real).mean() + relu(1 + fake).mean()


def _minus_mean(fake: Tensor) -> Tensor:
    return -fake.mean()


def _non_saturating(fake: Tensor) -> Tensor:
    return softplus(-fake).mean()


LOSSES = {
    "wgan": Loss(_wasserstein, _minus_mean, clip=0.01),
    "wgan-gp": Loss(_wasserstein, _minus_mean, _sample_penalty),
    "figr": Loss(_halved_wasserstein, torch.mean, _pixel_penalty),
    "non-saturating": Loss(_logistic, _non_saturating),
    "r1": Loss(_logistic, _non_saturating, _zero_centred_penalty, penalise_real=True),
    "hinge": Loss(_hinge, _minus_mean),
}


def discriminator_loss(loss: Loss, score: Module, real: Tensor, fake: Tensor, points: Tensor) -> Tensor:
    """Return the discriminator's loss: real and fake images as one batch, the penalty's points as another."""
    real_scores, fake_scores = score(torch.cat([real, fake])).reshape(-1).split([len(real), len(fake)])
    value = loss.discriminator(real_scores, fake_scores)
    if loss.penalty is None:
        return value
    if not points.requires_grad:
        points = points.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(points).sum(), points, create_graph=True)
    return value + loss.penalty(gradient)


def penalty_points(loss: Loss, real: Tensor, fake: Tensor, weight: Tensor) -> Tensor:
    """Return the images at which the penalty is taken."""
    if loss.penalty is None or loss.penalise_real:
        return real
    weight = weight.to(real).view(-1, 1, 1, 1)
    return weight * real + (1 - weight) * fake


def query_losses(
    loss: Loss,
    generate: Module,
    score: Module,
    opponent: Module,
    query: Tensor,
    noise: Any,
    task: int,
    evaluation: int,
) -> tuple[Tensor, Tensor]:
    """Return the generator's query loss (against `opponent`) and the discriminator's (`score`)."""
    generator_latents = noise.query_generator_latents[evaluation, task].to(query)
    generator_loss = loss.generator(opponent(generate(generator_latents)).reshape(-1))
    fake = generate(noise.query_discriminator_latents[evaluation, task].to(query))
    points = penalty_points(loss, query, fake, noise.query_interpolation[evaluation, task])
    return generator_loss, discriminator_loss(loss, score, query, fake, points)
