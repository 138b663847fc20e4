"""The torch executor: any module, vmap or loop, buffers, randomness, batch composition."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import metagan_fast as mgf
from metagan_fast._utils import log
from metagan_fast.executors.torch.batched import BatchedModule, stateless_copy
from networks import Gan, batch_norm_dcgan, tiny_batch, tiny_gan
from support import assert_close

INNER = mgf.InnerLoop(lr=0.05, steps=2)


def make_learner(networks: Gan, **settings: Any) -> mgf.MetaGAN:
    settings = {"latent_dim": 6, "inner": INNER, "executor": "torch"} | settings
    return mgf.MetaGAN(*networks, **settings)


class Branching(nn.Module):
    """A discriminator with data-dependent control flow, which vmap cannot carry."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 1)

    def forward(self, images: Tensor) -> Tensor:
        scores = self.linear(images.flatten(1))
        return scores * 2 if scores.sum() > 0 else scores


@pytest.fixture
def fresh_log() -> None:
    """Reset `log_once`, so that messages of earlier tests are logged again."""
    log._said.clear()


@pytest.mark.usefixtures("fresh_log")
def test_a_module_that_vmap_cannot_carry_runs_task_by_task(caplog: pytest.LogCaptureFixture) -> None:
    generator = tiny_gan()[0]
    discriminator = Branching()
    batch = tiny_batch(query=0)
    learner = make_learner((generator, discriminator))
    with caplog.at_level(logging.WARNING):
        together = learner.inner_loop(batch)
        learner.inner_loop(batch)
    lines = [record.message for record in caplog.records if "task by task" in record.message]
    assert len(lines) == 1 and "discriminator" in lines[0]
    for t in range(batch.tasks):
        alone = learner.inner_loop(batch.slice(t, t + 1))
        assert_close(together.discriminator[t], alone.discriminator[0], "float32-rounding")


@pytest.mark.parametrize("networks", [tiny_gan, batch_norm_dcgan], ids=["tiny", "batch-norm"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_task_does_not_depend_on_its_neighbours(networks: Any, batch_size: int | None) -> None:
    generator, discriminator = (network.double() for network in networks())
    size, latent_dim = (8, 6) if networks is tiny_gan else (16, 8)
    batch = tiny_batch(tasks=4, query=0, image_shape=(1, size, size))
    inner = dataclasses.replace(INNER, batch_size=batch_size)
    learner = make_learner((generator, discriminator), latent_dim=latent_dim, inner=inner)
    together = learner.inner_loop(batch)
    for start, stop in ((0, 1), (1, 3), (3, 4)):
        part = learner.inner_loop(batch.slice(start, stop))
        assert_close(part.generator, together.generator[start:stop], "float64-parity")
        assert_close(part.discriminator, together.discriminator[start:stop], "float64-parity")


def test_the_loop_and_vmap_agree() -> None:
    generator = tiny_gan()[0].double()
    layout = mgf.FlatLayout.from_module(generator)
    params = layout.flatten(generator) + 0.1 * torch.randn(3, layout.numel, dtype=torch.float64)
    latents = torch.randn(3, 5, 6, dtype=torch.float64)
    batched = BatchedModule(generator, layout, "generator")
    expected = torch.stack(
        [functional_call(generator, layout.views(p), (z,)) for p, z in zip(params, latents, strict=True)]
    )
    assert_close(batched(params, latents), expected, "float64-rounding")
    assert batched.vectorized
    batched.vectorized = False
    assert_close(batched(params, latents), expected, "float64-rounding")


def test_batch_norm_uses_batch_statistics_and_leaves_buffers_alone() -> None:
    generator = nn.Sequential(nn.Linear(6, 64), nn.BatchNorm1d(64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))
    before = {name: buffer.clone() for name, buffer in generator.named_buffers()}
    learner = make_learner((generator, tiny_gan()[1]))
    batch = tiny_batch(query=0)
    learner.meta_step(batch)
    samples = learner.adapt(batch.support[0], steps=0).sample(5)
    for name, buffer in generator.named_buffers():
        assert torch.equal(buffer, before[name])
    latents = mgf.noise.draw_sample_latents(1, 5, 6, seed=0)[0]
    assert_close(samples, generator.train()(latents).detach(), "float32-rounding")


def test_other_buffers_are_read() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 64)
            self.register_buffer("shift", torch.full((64,), 0.25))

        def forward(self, latents: Tensor) -> Tensor:
            return torch.tanh(self.linear(latents) + self.shift).view(-1, 1, 8, 8)

    generator = Shifted()
    learner = make_learner((generator, tiny_gan()[1]))
    latents = mgf.noise.draw_sample_latents(1, 2, 6, seed=3)[0]
    sampled = learner.adapt(tiny_batch(query=0).support[0], steps=0).sample(2, seed=3)
    assert_close(sampled, generator(latents).detach(), "float32-rounding")


def test_tied_parameters_stay_tied() -> None:
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Softplus(), nn.Linear(64, 64), nn.Linear(64, 1))
    discriminator[3].weight = discriminator[1].weight
    learner = make_learner((tiny_gan()[0], discriminator))
    learner.meta_step(tiny_batch(query=0))
    assert discriminator[3].weight is discriminator[1].weight
    before = discriminator[1].weight.clone()
    learner.meta_step(tiny_batch(query=0))
    assert not torch.equal(discriminator[1].weight, before)


def test_random_modules_are_refused_unless_allowed() -> None:
    generator, discriminator = tiny_gan()
    random = nn.Sequential(discriminator, nn.Unflatten(1, (1, 1)), nn.Dropout(0.5), nn.Flatten())
    batch = tiny_batch(query=0)
    with pytest.raises(ValueError, match=r"discriminator draws random numbers.*allow_random=True"):
        make_learner((generator, random)).meta_step(batch)
    assert make_learner((generator, random), allow_random=True).meta_step(batch)["gradient_norm"] > 0
    assert make_learner((generator, random.eval())).meta_step(batch)["gradient_norm"] > 0


def test_a_stateless_copy_holds_no_parameters() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    copy = stateless_copy(module)
    assert all(parameter.is_meta for parameter in copy.parameters())
    assert copy[1].running_mean is None and module[1].running_mean is not None


def test_wrong_sizes_name_the_network() -> None:
    generator, discriminator = tiny_gan()
    with pytest.raises(ValueError, match=r"generator failed on an input of shape \[3, 5\].*latent_dim"):
        make_learner((generator, discriminator), latent_dim=5).meta_step(tiny_batch(query=0))
    with pytest.raises(ValueError, match="generator makes images"):
        make_learner((generator, discriminator)).meta_step(tiny_batch(query=0, image_shape=(1, 16, 16)))
    image_to_image = nn.Conv2d(1, 1, 3, padding=1)
    with pytest.raises(ValueError, match=r"scores \[n\] or \[n, 1\], got"):
        make_learner((generator, image_to_image)).meta_step(tiny_batch(query=0))
    with pytest.raises(ValueError, match="one row an input"):
        make_learner((generator, nn.Flatten(0))).meta_step(tiny_batch(query=0))


def test_flat_scores_are_taken_too() -> None:
    generator, discriminator = (network.double() for network in tiny_gan())
    flat = nn.Sequential(discriminator, nn.Flatten(0))
    batch = tiny_batch(query=0)
    a = make_learner((generator, discriminator)).meta_gradient(batch)
    b = make_learner((generator, flat)).meta_gradient(batch)
    assert_close(a.discriminator, b.discriminator, "float64-rounding")


def test_separate_batches_change_batch_norm_networks_only() -> None:
    batch = tiny_batch(query=0, image_shape=(1, 16, 16))

    def gradient(networks: Gan, latent_dim: int, batch: mgf.TaskBatch, separate: bool) -> Tensor:
        loss = mgf.losses.WGANGP(separate_batches=separate)
        return make_learner(networks, latent_dim=latent_dim, loss=loss).meta_gradient(batch).discriminator

    networks = tuple(network.double() for network in batch_norm_dcgan())
    assert not torch.allclose(gradient(networks, 8, batch, True), gradient(networks, 8, batch, False))  # type: ignore[arg-type]
    networks = tuple(network.double() for network in tiny_gan())
    small = tiny_batch(query=0)
    assert_close(gradient(networks, 6, small, True), gradient(networks, 6, small, False), "float64-parity")  # type: ignore[arg-type]


def test_bf16_autocast_keeps_float32_parameters_and_stays_close() -> None:
    networks = tiny_gan()
    batch = tiny_batch(query=0)
    exact = make_learner(networks).meta_gradient(batch)
    rounded = make_learner(networks, precision="bf16").meta_gradient(batch)
    assert rounded.generator.dtype == torch.float32
    assert not torch.equal(rounded.discriminator, exact.discriminator)
    assert_close(rounded.discriminator, exact.discriminator, "bf16-inner-loop")


def test_first_order_steps_leave_out_what_they_do_not_need() -> None:
    """Each update treats the other network's weights as constants."""
    counts = {"generator": 0, "discriminator": 0}

    class Spy(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, role: str) -> Tensor:
            ctx.role = role
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            counts[ctx.role] += 1
            return grad, None

    generator, discriminator = tiny_gan()
    learner = make_learner((generator, discriminator), loss="hinge", inner=mgf.InnerLoop(steps=1, critic_steps=3))
    batch = tiny_batch(query=0)
    learner.inner_loop(batch)  # lets the executor choose vmap before it is spied on
    for role in ("generator", "discriminator"):
        batched = getattr(learner._executor, f"_{role}")
        original = batched._vectorized
        batched._vectorized = lambda p, x, original=original, role=role: original(Spy.apply(p, role), x)
    learner.inner_loop(batch)
    assert counts == {"generator": 1, "discriminator": 3}
