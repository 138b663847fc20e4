"""Meta-gradients written by hand: Reptile and FOMAML after the plain loop, MAML through the unrolled loop.

The module shares no code with the package, so in float64 it is the oracle of the package's algorithms. `noise` is any
object with the attributes of `metagan_fast.Noise`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from metagan_fast.benchmarks.baselines.losses import (
    LOSSES,
    Loss,
    Module,
    discriminator_loss,
    penalty_points,
    query_losses,
)
from metagan_fast.benchmarks.baselines.plain import inner_loop, real_images
from torch import Tensor, nn
from torch.func import functional_call

Named = dict[str, Tensor]


def mean(gradients: Sequence[Named]) -> Named:
    """Return the mean of several gradients, by name."""
    return {name: torch.stack([row[name] for row in gradients]).mean(0) for name in gradients[0]}


def gradient(value: Tensor, parameters: Named) -> Named:
    """Return the gradient by name; zero where `value` does not depend on a parameter."""
    gradients = torch.autograd.grad(
        value, list(parameters.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(parameters, gradients, strict=True))


def named_parameters(module: nn.Module) -> Named:
    """Return the module's parameters by name."""
    return {name: parameter for name, parameter in module.named_parameters()}  # noqa: C416 (dict() keeps the type Parameter)


def bind(module: nn.Module, parameters: Named) -> Module:
    """Return the module as a function of its inputs, with the given parameters."""
    return lambda inputs: functional_call(module, parameters, (inputs,))


def alias(parameters: Named) -> Named:
    """Clone parameters, so that a gradient by the clones stops there.

    After a generator step the generator depends on the discriminator; a gradient by the discriminator's own parameters
    would also flow through the generator, unlike the step itself.
    """
    return {name: parameter.clone() for name, parameter in parameters.items()}


def _unrolled_step(value: Tensor, parameters: Named, lr: float) -> Named:
    gradients = torch.autograd.grad(value, list(parameters.values()), create_graph=True)
    return {name: p - lr * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}


def _unrolled_discriminator_step(
    discriminator: nn.Module, d: Named, real: Tensor, fake: Tensor, weight: Tensor, rule: Loss, lr: float
) -> Named:
    points = penalty_points(rule, real, fake, weight)
    d = alias(d)
    d = _unrolled_step(discriminator_loss(rule, bind(discriminator, d), real, fake, points), d, lr)
    if rule.clip is not None:
        d = {name: parameter.clamp(-rule.clip, rule.clip) for name, parameter in d.items()}
    return d


def unrolled_inner_loop(
    generator: nn.Module,
    discriminator: nn.Module,
    initial: tuple[Named, Named],
    images: Tensor,
    noise: Any,
    task: int,
    *,
    loss: str,
    lr: float,
    steps: int,
    critic_steps: int = 1,
    generator_steps: int = 1,
) -> list[tuple[Named, Named]]:
    """Return both networks' parameters before the first and after each SGD step of one task's inner loop.

    They are differentiable functions of `initial`.
    """
    rule = LOSSES[loss]
    g, d = initial
    states = [(g, d)]
    for step in range(steps):
        for critic_step in range(critic_steps):
            real = real_images(images, noise, step, critic_step, task)
            latents = noise.discriminator_latents[step, critic_step, task].to(images)
            fake = functional_call(generator, g, (latents,))
            weight = noise.interpolation[step, critic_step, task]
            d = _unrolled_discriminator_step(discriminator, d, real, fake, weight, rule, lr)
        for update in range(step * generator_steps, (step + 1) * generator_steps):
            g = alias(g)
            fake = functional_call(generator, g, (noise.generator_latents[update, task].to(images),))
            g = _unrolled_step(rule.generator(functional_call(discriminator, d, (fake,)).reshape(-1)), g, lr)
        states.append((g, d))
    return states


def _adapted_to_query(
    discriminator: nn.Module,
    d: Named,
    generate: Module,
    query: Tensor,
    noise: Any,
    task: int,
    rule: Loss,
    inner: Mapping[str, Any],
) -> Named:
    """Return the discriminator `d` adapted to the query images against a fixed generator."""
    for step in range(inner["steps"]):
        for critic_step in range(inner.get("critic_steps", 1)):
            fake = generate(noise.query_adaptation_latents[step, critic_step, task].to(query))
            weight = noise.query_adaptation_interpolation[step, critic_step, task]
            d = _unrolled_discriminator_step(discriminator, d, query, fake, weight, rule, inner["lr"])
    return d


def reptile_gradient(
    generator: nn.Module, discriminator: nn.Module, support: Tensor, noise: Any, **inner: Any
) -> tuple[Named, Named]:
    """Return `initial - mean(adapted)` of both networks, by parameter name."""

    def difference(initial: nn.Module, adapted: Sequence[nn.Module]) -> Named:
        rows = [dict(network.named_parameters()) for network in adapted]
        return {
            name: parameter.detach() - torch.stack([row[name].detach() for row in rows]).mean(0)
            for name, parameter in initial.named_parameters()
        }

    generators, discriminators = inner_loop(generator, discriminator, support, noise, **inner)
    return difference(generator, generators), difference(discriminator, discriminators)


def fomaml_gradient(
    generator: nn.Module,
    discriminator: nn.Module,
    support: Tensor,
    query: Tensor,
    noise: Any,
    *,
    loss: str = "wgan-gp",
    generator_objective: str = "support",
    **inner: Any,
) -> tuple[Named, Named]:
    """Return the gradients of both query losses at the adapted parameters, averaged over tasks.

    `generator_objective` as for `maml_losses`.
    """
    rule = LOSSES[loss]
    adapted = inner_loop(generator, discriminator, support, noise, loss=loss, **inner)
    initial = named_parameters(discriminator)
    generator_rows, discriminator_rows = [], []
    for task, (generate, score) in enumerate(zip(*adapted, strict=True)):
        opponent: Module = score
        if generator_objective != "support":
            opponent = discriminator
        if generator_objective == "query":
            on_query = _adapted_to_query(discriminator, initial, generate, query[task], noise, task, rule, inner)
            opponent = bind(discriminator, {name: value.detach() for name, value in on_query.items()})
        losses = query_losses(rule, generate, score, opponent, query[task], noise, task, -1)
        generator_rows.append(gradient(losses[0], named_parameters(generate)))
        discriminator_rows.append(gradient(losses[1], named_parameters(score)))
    return mean(generator_rows), mean(discriminator_rows)


def maml_losses(
    generator: nn.Module,
    discriminator: nn.Module,
    initial: tuple[Named, Named],
    support: Tensor,
    query: Tensor,
    noise: Any,
    task: int,
    *,
    loss: str = "wgan-gp",
    generator_objective: str = "support",
    step_weights: Sequence[float] | None = None,
    **inner: Any,
) -> tuple[Tensor, Tensor]:
    """Return one task's query losses (generator's, discriminator's), differentiable by `initial`.

    Args:
        generator_objective: which discriminator judges the generator: the one adapted on the "support"
            images, the "initial" one, or the initial one adapted on the "query" images.
        step_weights: weight of the losses after each inner step; None: only the last step counts.
        inner: `lr`, `steps`, `critic_steps` and `generator_steps` of the inner loop.
    """
    rule = LOSSES[loss]
    states = unrolled_inner_loop(generator, discriminator, initial, support, noise, task, loss=loss, **inner)
    evaluated = [(1.0, states[-1])] if step_weights is None else list(zip(step_weights, states[1:], strict=True))
    totals = [torch.zeros_like(support[0, 0, 0, 0]) for _ in range(2)]
    for evaluation, (weight, (g, d)) in enumerate(evaluated):
        opponent = d if generator_objective == "support" else initial[1]
        generate = bind(generator, g)
        if generator_objective == "query":
            opponent = _adapted_to_query(discriminator, opponent, generate, query, noise, task, rule, inner)
        networks = generate, bind(discriminator, d), bind(discriminator, opponent)
        values = query_losses(rule, *networks, query, noise, task, evaluation)
        totals = [total + weight * value for total, value in zip(totals, values, strict=True)]
    return totals[0], totals[1]


def maml_gradient(
    generator: nn.Module, discriminator: nn.Module, support: Tensor, query: Tensor, noise: Any, **options: Any
) -> tuple[Named, Named]:
    """Return the total derivative of each network's query loss by its initialisation, averaged over tasks.

    Every inner step stays in the graph (`create_graph=True`), and the adapted opponent is not detached. Options as for
    `maml_losses`.
    """
    generator_rows, discriminator_rows = [], []
    for task in range(len(support)):
        initial = named_parameters(generator), named_parameters(discriminator)
        images = support[task], query[task]
        losses = maml_losses(generator, discriminator, initial, *images, noise, task, **options)
        generator_rows.append(gradient(losses[0], initial[0]))
        discriminator_rows.append(gradient(losses[1], initial[1]))
    return mean(generator_rows), mean(discriminator_rows)
