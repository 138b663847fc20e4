"""Inner loop in plain `torch.func`: `grad` of one step of one task, `vmap` over tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from metagan_fast.benchmarks.baselines.losses import LOSSES
from metagan_fast.benchmarks.baselines.meta_gradients import Named
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

Step = Callable[..., tuple[Named, Named]]


def make_step(generator: nn.Module, discriminator: nn.Module, *, loss: str, lr: float) -> Step:
    """Return one inner step of one task: (g, d, real, latents, weight, latents) -> (g, d)."""
    rule = LOSSES[loss]

    def discriminator_loss(d: Named, g: Named, real: Tensor, latents: Tensor, weight: Tensor) -> Tensor:
        fake = functional_call(generator, g, (latents,))
        real_scores, fake_scores = functional_call(discriminator, d, (torch.cat([real, fake]),)).reshape(2, -1)
        value = rule.discriminator(real_scores, fake_scores)
        if rule.penalty is None:
            return value
        weight = weight.view(-1, 1, 1, 1)
        points = real if rule.penalise_real else weight * real + (1 - weight) * fake
        return value + rule.penalty(grad(lambda x: functional_call(discriminator, d, (x,)).sum())(points))

    def generator_loss(g: Named, d: Named, latents: Tensor) -> Tensor:
        fake = functional_call(generator, g, (latents,))
        return rule.generator(functional_call(discriminator, d, (fake,)).reshape(-1))

    def descend(parameters: Named, gradients: Named) -> Named:
        return {name: parameters[name] - lr * gradients[name] for name in parameters}

    def step(
        g: Named,
        d: Named,
        real: Tensor,
        discriminator_latents: Tensor,
        weight: Tensor,
        generator_latents: Tensor,
    ) -> tuple[Named, Named]:
        d = descend(d, grad(discriminator_loss)(d, g, real, discriminator_latents, weight))
        g = descend(g, grad(generator_loss)(g, d, generator_latents))
        return g, d

    return step


@torch.no_grad()
def inner_loop(
    generator: nn.Module,
    discriminator: nn.Module,
    support: Tensor,
    noise: Any,
    *,
    step: Step,
    steps: int,
) -> tuple[Named, Named]:
    """Adapt to all tasks of `support` `[tasks, shots, C, H, W]` at once; `step` is `vmap(make_step(...))`.

    Returns:
        The parameters of both networks by name, [tasks, *shape].
    """
    g, d = (
        {name: p.expand(len(support), *p.shape).clone() for name, p in network.named_parameters()}
        for network in (generator, discriminator)
    )
    for k in range(steps):
        latents = noise.discriminator_latents[k, 0]
        g, d = step(g, d, support, latents, noise.interpolation[k, 0], noise.generator_latents[k])
    return g, d


def vectorised_step(generator: nn.Module, discriminator: nn.Module, *, loss: str, lr: float) -> Step:
    """Return one inner step of a batch of tasks."""
    return vmap(make_step(generator, discriminator, loss=loss, lr=lr))
