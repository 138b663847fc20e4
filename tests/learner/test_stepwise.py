"""`MetaGAN.adaptation` takes the inner steps of `adapt` one at a time; `generate` takes latents of one's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import metagan_fast as mgf
from metagan_fast import schedules
from metagan_fast.noise import draw_sample_latents
from support import assert_close

STEPS = 4
INNER: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "lr": 0.01},
    "adam with a schedule": {"optimizer": "adam", "lr": schedules.Linear(1e-2, 1e-3, steps=3)},
    "momentum and mini-batches": {"optimizer": "momentum", "lr": 0.01, "batch_size": 2, "critic_steps": 2},
    "several generator updates": {"optimizer": "sgd", "lr": 0.01, "generator_steps": 2},
    "rates of their own": {"optimizer": "rmsprop", "lr": 1e-3, "discriminator_lr": schedules.Cosine(1e-2, 0, steps=4)},
}


def learner(executor: str, **inner: Any) -> mgf.MetaGAN:
    generator, discriminator = mgf.models.mlp((1, 8, 8), latent_dim=4, hidden=(16,))
    return mgf.MetaGAN(
        generator, discriminator, latent_dim=4, inner=mgf.InnerLoop(**inner, steps=STEPS), executor=executor
    )


def images(shots: int = 3) -> Tensor:
    return torch.rand(shots, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("executor", ["native", "torch"])
@pytest.mark.parametrize("inner", INNER.values(), ids=INNER.keys())
def test_each_step_is_an_inner_loop_of_as_many(executor: str, inner: dict[str, Any]) -> None:
    gan = learner(executor, **inner)
    whole = mgf.TaskBatch(support=images()[None])
    taken = list(gan.adaptation(images()))
    assert len(taken) == STEPS
    noise = gan.draw_noise(whole)  # the meta-step's; adaptation draws another
    for count, adapted in enumerate(taken, 1):
        expected = gan.adapt(images(), steps=count)
        for role in ("generator", "discriminator"):
            module, layout = getattr(expected, role), getattr(gan, f"{role}_layout")
            assert torch.equal(getattr(adapted, role)[0], layout.flatten(module)), (count, role)
        assert {name: value.item() for name, value in adapted.metrics.items()} == expected.metrics
    last = gan.inner_loop(whole, noise)
    assert not torch.equal(last.generator, taken[-1].generator)


def test_optimizer_state_that_persists_is_carried_on() -> None:
    gan = learner("native", optimizer="adam", lr=1e-2, inner_state="persist")
    gan.meta_step(mgf.TaskBatch(support=images()[None]))
    *_, last = gan.adaptation(images())
    assert torch.equal(last.generator[0], gan.generator_layout.flatten(gan.adapt(images()).generator))


def test_nothing_is_changed_and_no_steps_are_none() -> None:
    gan = learner("native", **INNER["sgd"])
    before = gan.generator_parameters.clone()
    assert list(gan.adaptation(images(), steps=0)) == []
    assert len(list(gan.adaptation(images(), steps=2))) == 2
    assert torch.equal(gan.generator_parameters, before)


def test_divergence_ends_the_steps() -> None:
    steps = learner("native", optimizer="sgd", lr=1e30).adaptation(images())
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        list(steps)


@pytest.mark.parametrize("executor", ["native", "torch"])
def test_generate_takes_the_latents_that_it_is_given(executor: str) -> None:
    gan = learner(executor, **INNER["sgd"])
    *_, adapted = gan.adaptation(images())
    latents = draw_sample_latents(1, 5, gan.latent_dim, seed=3)
    made = gan.generate(adapted.generator, latents)
    assert torch.equal(made, gan.sample_tasks(adapted, 5, seed=3))
    module = gan.adapt(images()).generator
    with torch.no_grad():
        assert_close(made[0], module(latents[0]), "engine-pass")
