"""Plain PyTorch loop: one task after another on deep copies, with autograd and `torch.optim`.

It is the baseline of the speed figures, since it is the form of today's trainers. The module shares no code with the
package, so in float64 it is also the oracle of the package's inner loops. `noise` is any object with the attributes of
`metagan_fast.Noise`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from metagan_fast.benchmarks.baselines.losses import LOSSES, Loss, discriminator_loss, penalty_points
from torch import Tensor, nn

OPTIMIZERS: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
}


def real_images(images: Tensor, noise: Any, step: int, critic_step: int, task: int) -> Tensor:
    """Return the task's images for one discriminator update: all of them, or a mini-batch."""
    index = getattr(noise, "support_index", None)
    return images if index is None else images[index[step, critic_step, task]]


def _adapt(
    generator: nn.Module,
    discriminator: nn.Module,
    images: Tensor,
    noise: Any,
    task: int,
    loss: Loss,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    steps: int,
    critic_steps: int,
    generator_steps: int,
    waste: bool,
) -> None:
    """Run the inner loop of one task in place."""
    generator_optimizer, discriminator_optimizer = optimizers
    for step in range(steps):
        for critic_step in range(critic_steps):
            real = real_images(images, noise, step, critic_step, task)
            latents = noise.discriminator_latents[step, critic_step, task].to(images)
            with torch.set_grad_enabled(waste):
                fake = generator(latents)
            weight = noise.interpolation[step, critic_step, task]
            points = penalty_points(loss, real, fake.detach(), weight)
            value = discriminator_loss(loss, discriminator, real, fake, points)
            discriminator_optimizer.zero_grad()
            value.backward()
            discriminator_optimizer.step()
            if loss.clip is not None:
                with torch.no_grad():
                    for parameter in discriminator.parameters():
                        parameter.clamp_(-loss.clip, loss.clip)

        discriminator.requires_grad_(waste)
        for update in range(step * generator_steps, (step + 1) * generator_steps):
            fake = generator(noise.generator_latents[update, task].to(images))
            value = loss.generator(discriminator(fake).reshape(-1))
            generator_optimizer.zero_grad()
            value.backward()
            generator_optimizer.step()
        discriminator.requires_grad_(True)


def inner_loop(
    generator: nn.Module,
    discriminator: nn.Module,
    support: Tensor,
    noise: Any,
    *,
    loss: str = "wgan-gp",
    lr: float = 1e-3,
    optimizer: str = "sgd",
    steps: int,
    critic_steps: int = 1,
    generator_steps: int = 1,
    first_order_waste: bool = True,
    **optimizer_options: Any,
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Adapt copies of both networks to each task of `support` [tasks, shots, C, H, W].

    With `first_order_waste`, as in most trainers, the discriminator step also computes the generator's gradients and
    the generator step the discriminator's; both are discarded and change nothing.
    """
    generators, discriminators = [], []
    for task, images in enumerate(support):
        adapted = copy.deepcopy(generator), copy.deepcopy(discriminator)
        make = OPTIMIZERS[optimizer]
        optimizers = tuple(make(network.parameters(), lr=lr, **optimizer_options) for network in adapted)
        rule = LOSSES[loss]
        updates = steps, critic_steps, generator_steps
        _adapt(*adapted, images, noise, task, rule, optimizers, *updates, first_order_waste)
        generators.append(adapted[0])
        discriminators.append(adapted[1])
    return generators, discriminators
