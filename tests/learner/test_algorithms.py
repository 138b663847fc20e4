"""Meta-gradients of every algorithm, loss and inner optimizer against a plain PyTorch loop; Reptile of one step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from metagan_fast.benchmarks.baselines import losses, meta_gradients
from torch import Tensor, nn
from torch.nn.functional import softplus

import metagan_fast as mgf
from metagan_fast.learner.algorithms import MetaAlgorithm
from networks import batch_norm_dcgan, tiny_batch, tiny_gan, with_norms_by_hand
from support import assert_close, join, relative_error
from tolerances import tolerance

ALGORITHMS: dict[str, type[MetaAlgorithm]] = {"reptile": mgf.Reptile, "fomaml": mgf.FOMAML, "maml": mgf.MAML}


def compare_with_plain_loop(
    networks: tuple[nn.Module, nn.Module],
    batch: mgf.TaskBatch,
    latent_dim: int,
    algorithm: str,
    inner: mgf.InnerLoop,
    loss: str = "wgan-gp",
    meta_options: dict[str, Any] | None = None,
    **plain_options: Any,
) -> None:
    """Assert that both networks' meta-gradients equal the plain loop's in float64."""
    generator, discriminator = (copy.deepcopy(network).double() for network in networks)
    learner = mgf.MetaGAN(
        *(copy.deepcopy(network) for network in (generator, discriminator)),
        latent_dim=latent_dim,
        loss=loss,
        inner=inner,
        meta=ALGORITHMS[algorithm](**(meta_options or {})),
    )
    if algorithm == "reptile":
        batch = mgf.TaskBatch(batch.support)
    noise = learner.draw_noise(batch)
    gradient = learner.meta_gradient(batch, noise)
    images = [batch.support.double()] if batch.query is None else [batch.support.double(), batch.query.double()]
    oracle = getattr(meta_gradients, f"{algorithm}_gradient")
    generator, discriminator = with_norms_by_hand(generator), with_norms_by_hand(discriminator)
    of_generator, of_discriminator = oracle(
        generator, discriminator, *images, noise, loss=loss, lr=inner.lr, steps=inner.steps,
        critic_steps=inner.critic_steps, generator_steps=inner.generator_steps, **plain_options
    )  # fmt: skip
    assert_close(join(learner.generator_layout.views(gradient.generator)), join(of_generator), "float64-parity")
    actual = join(learner.discriminator_layout.views(gradient.discriminator))
    assert_close(actual, join(of_discriminator), "float64-parity")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("workload", ["mlp-8", "dcgan-16"])
def test_workloads_match_the_plain_loop(workload: str, algorithm: str) -> None:
    generator, discriminator, latent_dim, image_shape = mgf.models.workload(workload)
    batch = tiny_batch(tasks=2, shots=3, query=2, image_shape=image_shape)
    inner = mgf.InnerLoop(lr=0.01, steps=2)
    compare_with_plain_loop((generator, discriminator), batch, latent_dim, algorithm, inner)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_batch_norm_matches_the_plain_loop(algorithm: str) -> None:
    """The plain loop runs batch norm in training mode: both sides use the statistics of each forward's batch."""
    batch = tiny_batch(tasks=2, shots=3, query=2, image_shape=(1, 16, 16))
    compare_with_plain_loop(batch_norm_dcgan(), batch, 8, algorithm, mgf.InnerLoop(lr=0.01, steps=2))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("loss", losses.LOSSES)
def test_losses_match_the_plain_loop(loss: str, algorithm: str) -> None:
    inner = mgf.InnerLoop(lr=0.05, steps=3, critic_steps=2)
    compare_with_plain_loop(tiny_gan(), tiny_batch(), 6, algorithm, inner, loss)


@pytest.mark.parametrize("algorithm", ["reptile", "fomaml"])
@pytest.mark.parametrize(
    ("inner", "options"),
    [
        (mgf.InnerLoop("momentum", lr=0.02, steps=3, momentum=0.7), {"optimizer": "sgd", "momentum": 0.7}),
        (mgf.InnerLoop("sgd", lr=0.02, steps=3, weight_decay=0.3), {"optimizer": "sgd", "weight_decay": 0.3}),
        (mgf.InnerLoop("adam", lr=0.02, steps=3, critic_steps=2), {"optimizer": "adam"}),
        (mgf.InnerLoop("adam", lr=0.02, steps=3, betas=(0.0, 0.9)), {"optimizer": "adam", "betas": (0.0, 0.9)}),
        (mgf.InnerLoop("rmsprop", lr=0.01, steps=3, alpha=0.9), {"optimizer": "rmsprop", "alpha": 0.9}),
        (mgf.InnerLoop("rmsprop", lr=0.01, steps=3, momentum=0.5), {"optimizer": "rmsprop", "momentum": 0.5}),
        (mgf.InnerLoop("sgd", lr=0.05, steps=4, batch_size=2), {}),
        (mgf.InnerLoop("sgd", lr=0.05, steps=4, batch_size=8), {}),
    ],
    ids=[
        "momentum",
        "weight_decay",
        "adam",
        "adam-beta1-0",
        "rmsprop",
        "rmsprop-momentum",
        "mini-batches",
        "batches-above-shots",
    ],
)
def test_inner_optimizers_match_the_plain_loop(inner: mgf.InnerLoop, options: dict[str, Any], algorithm: str) -> None:
    compare_with_plain_loop(tiny_gan(), tiny_batch(shots=3), 6, algorithm, inner, **options)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("loss", "inner"),
    [
        ("r1", mgf.InnerLoop(lr=0.05, steps=2, generated=5)),
        ("non-saturating", mgf.InnerLoop(lr=0.05, steps=2, generated=1, batch_size=2)),
        ("wgan-gp", mgf.InnerLoop(lr=0.05, steps=2, generator_steps=3)),
        ("r1", mgf.InnerLoop(lr=0.05, steps=2, generated=2, critic_steps=2, generator_steps=2)),
    ],
    ids=["more-generated", "fewer-generated", "generator-steps", "both"],
)
def test_images_and_updates_of_the_generator_match_the_plain_loop(
    loss: str, inner: mgf.InnerLoop, algorithm: str
) -> None:
    compare_with_plain_loop(tiny_gan(), tiny_batch(), 6, algorithm, inner, loss)


@pytest.mark.parametrize("loss", ["wgan-gp", "non-saturating"])
def test_generator_judged_by_the_initial_discriminator(loss: str) -> None:
    options = {"generator_objective": "initial"}
    inner = mgf.InnerLoop(lr=0.05, steps=3)
    compare_with_plain_loop(tiny_gan(), tiny_batch(), 6, "maml", inner, loss, options, generator_objective="initial")


def test_one_step_reptile_is_joint_training() -> None:
    """With k = 1 the difference is the learning rate times the mean loss's gradient (Nichol et al. 2018, section 5)."""
    batch = tiny_batch(query=0).to(dtype=torch.float64)
    generator, discriminator = (network.double() for network in tiny_gan())
    # The discriminator is frozen, so that the generator's update is against the shared one too.
    for rates in ({"lr": 0.3, "discriminator_lr": 0.0}, {"lr": 0.0, "discriminator_lr": 0.3}):
        learner = mgf.MetaGAN(
            generator, discriminator, latent_dim=6, loss="non-saturating", inner=mgf.InnerLoop(steps=1, **rates)
        )
        noise = learner.draw_noise(batch)
        actual = learner.meta_gradient(batch, noise)
        latents = noise.generator_latents[0] if rates["lr"] else noise.discriminator_latents[0, 0]
        fake = discriminator(generator(latents.flatten(0, 1)))
        if rates["lr"]:
            network, layout, flat = generator, learner.generator_layout, actual.generator
            loss = softplus(-fake).mean()
        else:
            network, layout, flat = discriminator, learner.discriminator_layout, actual.discriminator
            loss = softplus(fake).mean() + softplus(-discriminator(batch.support.flatten(0, 1))).mean()
        expected = torch.autograd.grad(loss, list(network.parameters()))
        views = layout.views(flat)
        assert_close(
            torch.cat([v.flatten() for v in views.values()]),
            0.3 * torch.cat([e.flatten() for e in expected]),
            "float64-rounding",
        )


@pytest.mark.parametrize("loss", ["wgan-gp", "non-saturating"])
def test_one_float32_step_is_as_close_to_float64_as_the_plain_loop(loss: str) -> None:
    """One inner step, per network in L2: at most 3 times the float32 plain loop's own distance, floor 1e-5."""
    generator, discriminator, latent_dim, image_shape = mgf.models.workload("dcgan-16")
    batch = tiny_batch(tasks=2, shots=4, query=0, image_shape=image_shape)
    learner = mgf.MetaGAN(generator, discriminator, latent_dim=latent_dim, loss=loss, inner=mgf.InnerLoop(steps=1))
    noise = learner.draw_noise(batch)

    def plain_gradient(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        networks = (copy.deepcopy(network).to(dtype) for network in (generator, discriminator))
        of_both = meta_gradients.reptile_gradient(
            *networks, batch.support.to(dtype), noise, loss=loss, lr=1e-3, steps=1
        )
        return join(of_both[0]), join(of_both[1])

    gradient = learner.meta_gradient(batch, noise)
    ours = (
        join(learner.generator_layout.views(gradient.generator)),
        join(learner.discriminator_layout.views(gradient.discriminator)),
    )
    for mine, single, double in zip(ours, plain_gradient(torch.float32), plain_gradient(torch.float64), strict=True):
        # theta - phi is 1e-3 of theta: its rounding is relative to theta, the same for both loops
        allowed = max(3 * relative_error(single, double), tolerance("float32-inner-step"))
        assert relative_error(mine, double) <= allowed
