"""MAML's meta-gradient with `higher`: patched modules and differentiable SGD.

Gradients are taken by aliases (`p.clone()`) of the fast weights. The library's usual loop takes them by the fast
weights themselves, on which the generator depends after its first step, and so differentiates a different loop.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # higher imports deprecated parts of torch
    import higher

from metagan_fast.benchmarks.baselines.losses import LOSSES, Module, discriminator_loss, penalty_points, query_losses
from metagan_fast.benchmarks.baselines.meta_gradients import Named, gradient, mean, named_parameters


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
    library: Any = higher,
) -> tuple[Named, Named]:
    """Return both meta-gradients of `meta_gradients.maml_gradient` with the "support" objective.

    `library` is `higher` or its drop-in.
    """
    rule = LOSSES[loss]
    generator_rows, discriminator_rows = [], []
    for task, images in enumerate(support):
        optimizers = (torch.optim.SGD(network.parameters(), lr=lr) for network in (generator, discriminator))
        with (
            library.innerloop_ctx(generator, next(optimizers), copy_initial_weights=False) as (g, g_optimizer),
            library.innerloop_ctx(discriminator, next(optimizers), copy_initial_weights=False) as (
                d,
                d_optimizer,
            ),
        ):
            for step in range(steps):
                for critic_step in range(critic_steps):
                    fake = g(noise.discriminator_latents[step, critic_step, task])
                    points = penalty_points(rule, images, fake, noise.interpolation[step, critic_step, task])
                    alias = [p.clone() for p in d.fast_params]
                    d_optimizer.step(discriminator_loss(rule, _bind(d, alias), images, fake, points), params=alias)
                alias = [p.clone() for p in g.fast_params]
                fake = g(noise.generator_latents[step, task], params=alias)
                g_optimizer.step(rule.generator(d(fake).reshape(-1)), params=alias)
            losses = query_losses(rule, g, d, d, query[task], noise, task, -1)
            generator_rows.append(gradient(losses[0], named_parameters(generator)))
            discriminator_rows.append(gradient(losses[1], named_parameters(discriminator)))
    return mean(generator_rows), mean(discriminator_rows)


def _bind(network: Any, parameters: list[Tensor]) -> Module:
    return lambda inputs: network(inputs, params=parameters)
