"""MAML's meta-gradient with TorchOpt's functional SGD over named parameters."""

from __future__ import annotations

from typing import Any

import torch
import torchopt
from metagan_fast.benchmarks.baselines.losses import LOSSES, discriminator_loss, penalty_points, query_losses
from metagan_fast.benchmarks.baselines.meta_gradients import Named, alias, bind, gradient, mean, named_parameters
from torch import Tensor, nn
from torch.func import functional_call


def maml_gradient(
    generator: nn.Module,
    discriminator: nn.Module,
    support: Tensor,
    query: Tensor,
    noise: Any,
    *,
    loss: str,
    lr: float,
    steps: int,
    critic_steps: int = 1,
    library: Any = torchopt,
) -> tuple[Named, Named]:
    """Return both meta-gradients of `meta_gradients.maml_gradient` with the "support" objective.

    `library` is TorchOpt or its drop-in.
    """
    rule, optimizer = LOSSES[loss], library.sgd(lr=lr)

    def update(value: Tensor, parameters: Named, state: Any) -> tuple[Named, Any]:
        gradients = torch.autograd.grad(value, list(parameters.values()), create_graph=True)
        updates, state = optimizer.update(dict(zip(parameters, gradients, strict=True)), state, inplace=False)
        return library.apply_updates(parameters, updates, inplace=False), state

    generator_rows, discriminator_rows = [], []
    for task, images in enumerate(support):
        initial = named_parameters(generator), named_parameters(discriminator)
        (g, d), (g_state, d_state) = initial, map(optimizer.init, initial)
        for step in range(steps):
            for critic_step in range(critic_steps):
                d = alias(d)
                fake = functional_call(generator, g, (noise.discriminator_latents[step, critic_step, task],))
                points = penalty_points(rule, images, fake, noise.interpolation[step, critic_step, task])
                value = discriminator_loss(rule, bind(discriminator, d), images, fake, points)
                d, d_state = update(value, d, d_state)
            g = alias(g)
            fake = functional_call(generator, g, (noise.generator_latents[step, task],))
            g, g_state = update(rule.generator(functional_call(discriminator, d, (fake,)).reshape(-1)), g, g_state)
        networks = bind(generator, g), bind(discriminator, d), bind(discriminator, d)
        losses = query_losses(rule, *networks, query[task], noise, task, -1)
        generator_rows.append(gradient(losses[0], initial[0]))
        discriminator_rows.append(gradient(losses[1], initial[1]))
    return mean(generator_rows), mean(discriminator_rows)
