"""Gradients through inner loops and their loss weights, against plain autograd, `higher` and a closed form."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from metagan_fast.benchmarks.baselines import meta_gradients
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import softplus

import metagan_fast as mgf
from metagan_fast.learner.algorithms import MetaAlgorithm
from networks import BilinearDiscriminator, ConstantGenerator, tiny_batch, tiny_gan
from support import assert_close, join

Update = Callable[[Tensor, Tensor, list[Tensor], int], Tensor]
"""An inner optimizer in plain torch: (parameters, gradient, buffers to rebind, count) to new parameters."""


def unroll(
    learner: mgf.MetaGAN, batch: mgf.TaskBatch, noise: mgf.Noise, update: Update, objective: str, weights: list[float]
) -> tuple[Tensor, Tensor]:
    """Differentiate through whole non-saturating inner loops, one task after another, by plain autograd."""
    assert batch.query is not None
    start = [
        p.detach().clone().requires_grad_() for p in (learner.generator_parameters, learner.discriminator_parameters)
    ]

    def generate(g: Tensor, latents: Tensor) -> Tensor:
        return functional_call(learner.generator, learner.generator_layout.views(g), (latents,))

    def score(d: Tensor, images: Tensor) -> Tensor:
        return functional_call(learner.discriminator, learner.discriminator_layout.views(d), (images,))

    def discriminator_loss(d: Tensor, g: Tensor, real: Tensor, latents: Tensor) -> Tensor:
        return softplus(-score(d, real)).mean() + softplus(score(d, generate(g, latents))).mean()

    def generator_loss(d: Tensor, g: Tensor, latents: Tensor) -> Tensor:
        return softplus(-score(d, generate(g, latents))).mean()

    def step(params: Tensor, buffers: list[Tensor], count: int, loss: Callable[[Tensor], Tensor]) -> Tensor:
        alias = params.clone()
        (gradient,) = torch.autograd.grad(loss(alias), alias, create_graph=True)
        return update(params, gradient, buffers, count)

    generator_total, discriminator_total = torch.zeros(()), torch.zeros(())
    for t in range(batch.tasks):
        support, query = batch.support[t], batch.query[t]
        (g, d), g_buffers, d_buffers = start, [], []
        for k, weight in enumerate(weights):
            z = noise.discriminator_latents[k, 0, t]
            d = step(d, d_buffers, k + 1, partial(discriminator_loss, g=g, real=support, latents=z))
            z = noise.generator_latents[k, t]
            g = step(g, g_buffers, k + 1, partial(lambda p, d, z: generator_loss(d, p, z), d=d, z=z))
            if weight == 0:
                continue
            evaluation = k if len(noise.query_generator_latents) > 1 else 0
            opponent = d
            if objective == "query":
                opponent, buffers = start[1], []
                for j in range(len(weights)):
                    z = noise.query_adaptation_latents[j, 0, t]
                    opponent = step(opponent, buffers, j + 1, partial(discriminator_loss, g=g, real=query, latents=z))
            generator_total = generator_total + weight * generator_loss(
                opponent, g, noise.query_generator_latents[evaluation, t]
            )
            discriminator_total = discriminator_total + weight * discriminator_loss(
                d, g, query, noise.query_discriminator_latents[evaluation, t]
            )
    (of_generator,) = torch.autograd.grad(generator_total / batch.tasks, start[0], retain_graph=True)
    (of_discriminator,) = torch.autograd.grad(discriminator_total / batch.tasks, start[1])
    return of_generator, of_discriminator


def plain_sgd(params: Tensor, gradient: Tensor, buffers: list[Tensor], count: int) -> Tensor:
    return params - 0.05 * gradient


def plain_momentum(params: Tensor, gradient: Tensor, buffers: list[Tensor], count: int) -> Tensor:
    buffers[:] = [0.8 * buffers[0] + gradient if buffers else gradient]
    return params - 0.05 * buffers[0]


def plain_adam(params: Tensor, gradient: Tensor, buffers: list[Tensor], count: int) -> Tensor:
    m, v = buffers or (torch.zeros_like(params), torch.zeros_like(params))
    buffers[:] = [0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2]
    # sqrt is not differentiable in the zero padding of the flat buffer, where the derivative is defined as 0
    v = torch.where(gradient == 0, 1.0, buffers[1] / (1 - 0.999**count))
    return params - 0.05 * buffers[0] / (1 - 0.9**count) / (v.sqrt() + 1e-8)


def plain_rmsprop(params: Tensor, gradient: Tensor, buffers: list[Tensor], count: int) -> Tensor:
    v = buffers[0] if buffers else torch.zeros_like(params)
    buffers[:] = [0.9 * v + 0.1 * gradient**2]
    v = torch.where(gradient == 0, 1.0, buffers[0])
    return params - 0.05 * gradient / (v.sqrt() + 1e-8)


INNER_RULES: dict[str, tuple[Update, dict[str, Any]]] = {
    "sgd": (plain_sgd, {}),
    "momentum": (plain_momentum, {"momentum": 0.8}),
    "adam": (plain_adam, {}),
    "rmsprop": (plain_rmsprop, {"alpha": 0.9}),
}


@pytest.mark.parametrize("objective", ["support", "query"])
@pytest.mark.parametrize("optimizer", INNER_RULES)
def test_maml_differentiates_through_every_inner_optimizer(optimizer: str, objective: str) -> None:
    update, options = INNER_RULES[optimizer]
    generator, discriminator = (network.double() for network in tiny_gan())
    learner = mgf.MetaGAN(
        generator, discriminator, latent_dim=6, loss="non-saturating",
        inner=mgf.InnerLoop(optimizer, lr=0.05, steps=3, **options), meta=mgf.MAML(generator_objective=objective),
    )  # fmt: skip
    batch = tiny_batch().to(dtype=torch.float64)
    noise = learner.draw_noise(batch)
    actual = learner.meta_gradient(batch, noise)
    of_generator, of_discriminator = unroll(learner, batch, noise, update, objective, [0.0, 0.0, 1.0])
    assert_close(actual.generator, of_generator, "float64-parity")
    assert_close(actual.discriminator, of_discriminator, "float64-parity")


def test_multi_step_loss() -> None:
    generator, discriminator = (network.double() for network in tiny_gan())
    weights = [0.2, 0.0, 0.5]
    settings: dict[str, Any] = {"latent_dim": 6, "loss": "non-saturating", "inner": mgf.InnerLoop(lr=0.05, steps=3)}
    learner = mgf.MetaGAN(generator, discriminator, meta=mgf.MAML(step_weights=weights), **settings)
    batch = tiny_batch().to(dtype=torch.float64)
    noise = learner.draw_noise(batch)
    assert noise.query_generator_latents is not None and noise.query_generator_latents.shape[0] == 3
    actual = learner.meta_gradient(batch, noise)
    of_generator, of_discriminator = unroll(learner, batch, noise, plain_sgd, "support", weights)
    assert_close(actual.generator, of_generator, "float64-parity")
    assert_close(actual.discriminator, of_discriminator, "float64-parity")

    # First order: the weighted sum of FOMAML gradients of shorter inner loops.
    first_order = mgf.MetaGAN(generator, discriminator, meta=mgf.FOMAML(step_weights=weights), **settings)
    actual = first_order.meta_gradient(batch, noise)
    total = torch.zeros_like(join(first_order.generator_layout.views(actual.generator)))
    for steps in (1, 3):
        queries = {f: getattr(noise, f)[:steps] for f in QUERY_DRAWS}
        of_generator_named, _ = meta_gradients.fomaml_gradient(
            generator, discriminator, batch.support, batch.query, dataclasses.replace(noise, **queries),
            loss="non-saturating", lr=0.05, steps=steps,
        )  # fmt: skip
        total += weights[steps - 1] * join(of_generator_named)
    assert_close(join(first_order.generator_layout.views(actual.generator)), total, "float64-parity")


QUERY_DRAWS = ("query_discriminator_latents", "query_generator_latents", "query_interpolation")


def test_first_order_steps_anneal_maml_from_fomaml() -> None:
    batch = tiny_batch()

    def gradient(meta: MetaAlgorithm, step: int) -> Tensor:
        torch.manual_seed(0)
        learner = mgf.MetaGAN(*tiny_gan(), latent_dim=6, loss="hinge", inner=mgf.InnerLoop(lr=0.05, steps=2), meta=meta)
        learner.step = step
        return learner.meta_gradient(batch).generator

    annealed = mgf.MAML(first_order_steps=3)
    assert torch.equal(gradient(annealed, 2), gradient(mgf.FOMAML(), 2))
    assert torch.equal(gradient(annealed, 3), gradient(mgf.MAML(), 3))
    assert not torch.equal(gradient(annealed, 3), gradient(mgf.FOMAML(), 3))


def test_annealed_step_weights_go_from_uniform_to_the_last_step() -> None:
    weights = mgf.AnnealedStepWeights(steps=4, meta_steps=10)
    assert weights(0) == pytest.approx((0.25,) * 4)
    assert weights(5) == pytest.approx((0.125, 0.125, 0.125, 0.625))
    assert weights(10) == weights(99) == (0.0, 0.0, 0.0, 1.0)


def test_maml_matches_higher() -> None:
    """`higher` differentiates correctly when each update gets aliases of the functional parameters."""
    import higher

    steps, lr = 3, 0.05
    generator, discriminator = (network.double() for network in tiny_gan())
    learner = mgf.MetaGAN(
        *(copy.deepcopy(n) for n in (generator, discriminator)), latent_dim=6, loss="non-saturating",
        inner=mgf.InnerLoop(lr=lr, steps=steps), meta=mgf.MAML(),
    )  # fmt: skip
    batch = tiny_batch().to(dtype=torch.float64)
    noise = learner.draw_noise(batch)
    actual = learner.meta_gradient(batch, noise)
    optimizers = [torch.optim.SGD(network.parameters(), lr=lr) for network in (generator, discriminator)]
    totals = [torch.zeros(()), torch.zeros(())]
    assert batch.query is not None and noise.query_discriminator_latents is not None
    assert noise.query_generator_latents is not None
    for t in range(batch.tasks):
        with (
            higher.innerloop_ctx(generator, optimizers[0], copy_initial_weights=False) as (g, g_optimizer),
            higher.innerloop_ctx(discriminator, optimizers[1], copy_initial_weights=False) as (d, d_optimizer),
        ):

            def discriminator_loss(
                d_params: list[Tensor], images: Tensor, latents: Tensor, d: Any = d, g: Any = g
            ) -> Tensor:
                real, fake = d(images, params=d_params), d(g(latents), params=d_params)
                return softplus(-real).mean() + softplus(fake).mean()

            for k in range(steps):
                alias = [p.clone() for p in d.parameters()]
                d_optimizer.step(
                    discriminator_loss(alias, batch.support[t], noise.discriminator_latents[k, 0, t]), params=alias
                )
                alias = [p.clone() for p in g.parameters()]
                fake = g(noise.generator_latents[k, t], params=alias)
                g_optimizer.step(softplus(-d(fake)).mean(), params=alias)
            losses = (
                softplus(-d(g(noise.query_generator_latents[0, t]))).mean(),
                discriminator_loss(list(d.parameters()), batch.query[t], noise.query_discriminator_latents[0, t]),
            )
            for i, network in enumerate((generator, discriminator)):
                gradient = torch.autograd.grad(losses[i], list(network.parameters()), retain_graph=True)
                totals[i] = totals[i] + torch.cat([p.flatten() for p in gradient]) / batch.tasks
    ours = (learner.generator_layout.views(actual.generator), learner.discriminator_layout.views(actual.discriminator))
    for views, expected in zip(ours, totals, strict=True):
        assert_close(torch.cat([value.flatten() for value in views.values()]), expected, "float64-parity")


def test_bilinear_game_has_the_analytic_meta_gradient() -> None:
    """G(z) = w and D(x) = <v, x> under WGAN: each inner step is linear, so its Jacobian is a power of a 2x2 matrix.

    v' = v - a (w - r), w' = w + a v', with r the mean real image. The query losses are J_g = -<v, w> and
    J_d = <v, w - q>, so dJ_g/dw0 = -(P01 w + P11 v) and dJ_d/dv0 = P00 (w - q) + P10 v where (v, w)_K = P (v, w)_0 + c.
    """
    steps, a = 4, 0.3
    image_shape = (1, 2, 3)
    batch = tiny_batch(tasks=3, shots=2, query=5, image_shape=image_shape).to(dtype=torch.float64)
    generator, discriminator = ConstantGenerator(image_shape).double(), BilinearDiscriminator(6).double()
    learner = mgf.MetaGAN(
        generator, discriminator, latent_dim=2, loss=mgf.losses.WGAN(clip=None), inner=mgf.InnerLoop(lr=a, steps=steps),
        meta=mgf.MAML(),
    )  # fmt: skip
    gradient = learner.meta_gradient(batch)
    one_step = torch.tensor([[1.0, -a], [a, 1.0 - a * a]], dtype=torch.float64)
    power = torch.linalg.matrix_power(one_step, steps)
    assert batch.query is not None
    real, query = (images.mean(1).flatten(1) for images in (batch.support, batch.query))
    v = discriminator.weight.detach().expand(3, -1)
    w = generator.image.detach().flatten().expand(3, -1)
    for _ in range(steps):
        v = v - a * (w - real)
        w = w + a * v
    of_generator = -(power[0, 1] * w + power[1, 1] * v).mean(0)
    of_discriminator = (power[0, 0] * (w - query) + power[1, 0] * v).mean(0)
    assert_close(gradient.generator[:6], of_generator, "float64-rounding")
    assert_close(gradient.discriminator[:6], of_discriminator, "float64-rounding")
