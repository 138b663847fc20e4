"""Inner loop in plain `torch.func`: `grad` of one step of one task, `vmap` over tasks.

A network's state is its parameters by name, then the optimizer's buffers, each by the same names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from metagan_fast.benchmarks.baselines.losses import LOSSES
from metagan_fast.benchmarks.baselines.meta_gradients import Named
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

State = tuple[Named, ...]
Step = Callable[..., tuple[State, State]]

BUFFERS = {"sgd": 0, "adam": 2}
"""Buffers of the optimizers that the loop knows."""


def make_step(
    generator: nn.Module,
    discriminator: nn.Module,
    *,
    loss: str,
    lr: float,
    optimizer: str = "sgd",
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Step:
    """Return one inner step of one task: (g, d, number from 1, real, latents, weight, latents) -> (g, d)."""
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

    def sgd(state: State, gradients: Named, number: Tensor) -> State:
        (parameters,) = state
        return ({name: parameters[name] - lr * gradients[name] for name in parameters},)

    def adam(state: State, gradients: Named, number: Tensor) -> State:
        parameters, means, squares = state
        means = {name: betas[0] * means[name] + (1 - betas[0]) * g for name, g in gradients.items()}
        squares = {name: betas[1] * squares[name] + (1 - betas[1]) * g * g for name, g in gradients.items()}
        rate, scale = lr / (1 - betas[0] ** number), 1 / (1 - betas[1] ** number).sqrt()
        parameters = {
            name: p - rate * means[name] / (squares[name].sqrt() * scale + eps) for name, p in parameters.items()
        }
        return parameters, means, squares

    descend = {"sgd": sgd, "adam": adam}[optimizer]

    def step(
        g: State,
        d: State,
        number: Tensor,
        real: Tensor,
        discriminator_latents: Tensor,
        weight: Tensor,
        generator_latents: Tensor,
    ) -> tuple[State, State]:
        d = descend(d, grad(discriminator_loss)(d[0], g[0], real, discriminator_latents, weight), number)
        g = descend(g, grad(generator_loss)(g[0], d[0], generator_latents), number)
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
    optimizer: str = "sgd",
) -> tuple[Named, Named]:
    """Adapt to all tasks of `support` `[tasks, shots, C, H, W]` at once; `step` is a `vectorised_step`.

    Returns:
        The parameters of both networks by name, [tasks, *shape].
    """

    def start(network: nn.Module) -> State:
        parameters = {name: p.expand(len(support), *p.shape).clone() for name, p in network.named_parameters()}
        zeros = [{name: torch.zeros_like(p) for name, p in parameters.items()} for _ in range(BUFFERS[optimizer])]
        return parameters, *zeros

    g, d = start(generator), start(discriminator)
    tasks, index = torch.arange(len(support), device=support.device), getattr(noise, "support_index", None)
    for k in range(steps):
        real = support if index is None else support[tasks[:, None], index[k, 0]]
        latents = noise.discriminator_latents[k, 0], noise.interpolation[k, 0], noise.generator_latents[k]
        g, d = step(g, d, support.new_tensor(k + 1.0), real, *latents)
    return g[0], d[0]


def vectorised_step(generator: nn.Module, discriminator: nn.Module, **options: Any) -> Step:
    """Return one inner step of a batch of tasks; options as for `make_step`."""
    return vmap(make_step(generator, discriminator, **options), in_dims=(0, 0, None, 0, 0, 0, 0))
