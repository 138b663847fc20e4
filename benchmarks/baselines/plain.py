"""The plain PyTorch loop: one task after another on deep copies, autograd, `torch.optim`.

This is what people run today, so it is the baseline of the speed figures. It shares no code with the package,
so in float64 it is also the oracle of its algorithms. `noise` is any object with the attributes that
`MetaGAN.draw_noise` gives.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import relu, softplus

Module = Callable[[Tensor], Tensor]
Named = dict[str, Tensor]

OPTIMIZERS: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
}


@dataclass(frozen=True)
class Loss:
    """A GAN loss: functions of the scores; for some, a penalty on the discriminator's input gradient."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    penalty: Callable[[Tensor], Tensor] | None = None
    penalise_real: bool = False  # otherwise the penalty stands at interpolates of real and fake
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
    """Real and fake go through the discriminator as one batch, the penalty's points on their own."""
    real_scores, fake_scores = score(torch.cat([real, fake])).reshape(2, -1)
    value = loss.discriminator(real_scores, fake_scores)
    if loss.penalty is None:
        return value
    if not points.requires_grad:
        points = points.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(points).sum(), points, create_graph=True)
    return value + loss.penalty(gradient)


def penalty_points(loss: Loss, real: Tensor, fake: Tensor, weight: Tensor) -> Tensor:
    """Return the images at which the penalty looks."""
    if loss.penalty is None or loss.penalise_real:
        return real
    weight = weight.to(real).view(-1, 1, 1, 1)
    return weight * real + (1 - weight) * fake


def _real_images(images: Tensor, noise: Any, step: int, critic_step: int, task: int) -> Tensor:
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
    waste: bool,
) -> None:
    """Run the inner loop of one task in place."""
    generator_optimizer, discriminator_optimizer = optimizers
    for step in range(steps):
        for critic_step in range(critic_steps):
            real = _real_images(images, noise, step, critic_step, task)
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
        fake = generator(noise.generator_latents[step, task].to(images))
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
    first_order_waste: bool = True,
    **optimizer_options: Any,
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Adapt copies of both networks to each task of `support` [tasks, shots, C, H, W].

    With `first_order_waste`, as in most trainers, the discriminator step also computes the generator's
    gradients and the generator step the discriminator's; both are thrown away and change nothing.
    """
    generators, discriminators = [], []
    for task, images in enumerate(support):
        adapted = copy.deepcopy(generator), copy.deepcopy(discriminator)
        make = OPTIMIZERS[optimizer]
        optimizers = tuple(make(network.parameters(), lr=lr, **optimizer_options) for network in adapted)
        rule = LOSSES[loss]
        _adapt(*adapted, images, noise, task, rule, optimizers, steps, critic_steps, first_order_waste)
        generators.append(adapted[0])
        discriminators.append(adapted[1])
    return generators, discriminators


def mean(gradients: Sequence[Named]) -> Named:
    """Return the mean of several gradients, by name."""
    return {name: torch.stack([row[name] for row in gradients]).mean(0) for name in gradients[0]}


def gradient(value: Tensor, parameters: Named) -> Named:
    """Return the gradient by name; zero where `value` does not depend on a parameter."""
    gradients = torch.autograd.grad(
        value, list(parameters.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(parameters, gradients, strict=True))


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


def bind(module: nn.Module, parameters: Named) -> Module:
    """Return the module as a function of its inputs, with other parameters."""
    return lambda inputs: functional_call(module, parameters, (inputs,))


def alias(parameters: Named) -> Named:
    """Return new nodes of the graph, so that a gradient by them stops there.

    After a generator step the generator depends on the discriminator; a gradient by the discriminator's
    parameters themselves would run through the generator as well, which is not the step that is taken.
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
) -> list[tuple[Named, Named]]:
    """Return both networks' parameters before, and after each step of, one task's inner loop by SGD.

    They are differentiable functions of `initial`.
    """
    rule = LOSSES[loss]
    g, d = initial
    states = [(g, d)]
    for step in range(steps):
        for critic_step in range(critic_steps):
            real = _real_images(images, noise, step, critic_step, task)
            latents = noise.discriminator_latents[step, critic_step, task].to(images)
            fake = functional_call(generator, g, (latents,))
            weight = noise.interpolation[step, critic_step, task]
            d = _unrolled_discriminator_step(discriminator, d, real, fake, weight, rule, lr)
        g = alias(g)
        fake = functional_call(generator, g, (noise.generator_latents[step, task].to(images),))
        g = _unrolled_step(rule.generator(functional_call(discriminator, d, (fake,)).reshape(-1)), g, lr)
        states.append((g, d))
    return states


def named_parameters(module: nn.Module) -> Named:
    """Return the module's parameters by name."""
    return {name: parameter for name, parameter in module.named_parameters()}  # noqa: C416 (dict() keeps the type Parameter)


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
    """Return the discriminator `d` adapted to the query images, against a generator that stays as it is."""
    for step in range(inner["steps"]):
        for critic_step in range(inner.get("critic_steps", 1)):
            fake = generate(noise.query_adaptation_latents[step, critic_step, task].to(query))
            weight = noise.query_adaptation_interpolation[step, critic_step, task]
            d = _unrolled_discriminator_step(discriminator, d, query, fake, weight, rule, inner["lr"])
    return d


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
        step_weights: weight of the losses after each inner step; None: those after the last step alone.
        inner: `lr`, `steps` and `critic_steps` of the inner loop.
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

    Every inner step stays in the graph, as `create_graph=True` leaves it; the adapted opponent is not
    detached. Options as for `maml_losses`.
    """
    generator_rows, discriminator_rows = [], []
    for task in range(len(support)):
        initial = named_parameters(generator), named_parameters(discriminator)
        images = support[task], query[task]
        losses = maml_losses(generator, discriminator, initial, *images, noise, task, **options)
        generator_rows.append(gradient(losses[0], initial[0]))
        discriminator_rows.append(gradient(losses[1], initial[1]))
    return mean(generator_rows), mean(discriminator_rows)
