"""The plain PyTorch loop, oracle of the algorithms, and the other baselines."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from metagan_fast.benchmarks.baselines import compile, losses, meta_gradients, plain, vmap
from torch import Tensor, nn

from metagan_fast import models
from support import assert_close, join

TASKS, SHOTS, LATENT, STEPS = 2, 3, 4, 3
LOSSES = ["wgan-gp", "figr", "non-saturating", "r1"]
"""Losses with smooth inner loops, whose gradients equal finite differences."""
KINKED = ["wgan", "hinge"]
"""Losses with kinks: clipped parameters, or the hinge."""
UNCLIPPED = [name for name in (*LOSSES, *KINKED) if losses.LOSSES[name].clip is None]
"""Losses that the vectorised loop runs."""


class Generator(nn.Sequential):
    """Map latents to 1x2x2 images."""

    def __init__(self) -> None:
        layers = nn.Linear(LATENT, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Unflatten(1, (1, 2, 2))
        super().__init__(*layers)


class Discriminator(nn.Sequential):
    """Map 1x2x2 images to scores."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(4, 5), nn.Softplus(), nn.Linear(5, 1))


def _noise(steps: int = STEPS, critic_steps: int = 1, evaluations: int = 1) -> SimpleNamespace:
    kind = {"dtype": torch.float64}
    return SimpleNamespace(
        discriminator_latents=torch.randn(steps, critic_steps, TASKS, SHOTS, LATENT, **kind),
        generator_latents=torch.randn(steps, TASKS, SHOTS, LATENT, **kind),
        interpolation=torch.rand(steps, critic_steps, TASKS, SHOTS, **kind),
        query_discriminator_latents=torch.randn(evaluations, TASKS, SHOTS, LATENT, **kind),
        query_generator_latents=torch.randn(evaluations, TASKS, SHOTS, LATENT, **kind),
        query_interpolation=torch.rand(evaluations, TASKS, SHOTS, **kind),
        query_adaptation_latents=torch.randn(steps, critic_steps, TASKS, SHOTS, LATENT, **kind),
        query_adaptation_interpolation=torch.rand(steps, critic_steps, TASKS, SHOTS, **kind),
    )


def _problem() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    images = torch.rand(2, TASKS, SHOTS, 1, 2, 2, dtype=torch.float64) * 2 - 1
    return Generator().double(), Discriminator().double(), images[0], images[1]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("loss", [*LOSSES, *KINKED])
def test_discarded_gradients_do_not_change_the_plain_loop(loss: str, optimizer: str) -> None:
    generator, discriminator, support, _ = _problem()
    noise = _noise(critic_steps=2)
    options = {"loss": loss, "optimizer": optimizer, "lr": 0.05, "steps": STEPS, "critic_steps": 2}
    arguments = (generator, discriminator, support, noise)
    wasteful = meta_gradients.reptile_gradient(*arguments, **options)
    frugal = meta_gradients.reptile_gradient(*arguments, **options, first_order_waste=False)
    for actual, expected in zip(frugal, wasteful, strict=True):
        assert join(expected).norm() > 0
        assert_close(join(actual), join(expected), "float64-rounding")


@pytest.mark.parametrize("loss", LOSSES)
def test_unrolled_steps_equal_the_optimizer(loss: str) -> None:
    """MAML differentiates a graph whose steps equal those of `torch.optim.SGD`, beyond the first step too."""
    generator, discriminator, support, _ = _problem()
    noise = _noise(critic_steps=2)
    options = {"loss": loss, "lr": 0.2, "steps": STEPS, "critic_steps": 2}
    adapted = plain.inner_loop(generator, discriminator, support, noise, **options)
    initial = dict(generator.named_parameters()), dict(discriminator.named_parameters())
    unrolled = meta_gradients.unrolled_inner_loop(generator, discriminator, initial, support[1], noise, 1, **options)
    for networks, named in zip(adapted, unrolled[-1], strict=True):
        assert_close(join(named), join(dict(networks[1].named_parameters())), "float64-rounding")


def _adapted_on_query(
    generator: nn.Module,
    discriminator: nn.Module,
    query: Tensor,
    noise: SimpleNamespace,
    task: int,
    inner: dict,
) -> nn.Module:
    """Adapt the initial discriminator to a task's query images, with the generator frozen."""

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, latents: Tensor) -> Tensor:
            with torch.no_grad():
                images = generator(latents)
            return images + 0 * self.unused

    on_query = SimpleNamespace(
        discriminator_latents=noise.query_adaptation_latents[:, :, task : task + 1],
        generator_latents=noise.generator_latents[:, task : task + 1],
        interpolation=noise.query_adaptation_interpolation[:, :, task : task + 1],
    )
    return plain.inner_loop(Frozen(), discriminator, query[task : task + 1], on_query, **inner)[1][0]


@pytest.mark.parametrize("objective", ["support", "initial", "query"])
@pytest.mark.parametrize("loss", LOSSES)
def test_maml_gradient_equals_finite_differences(loss: str, objective: str) -> None:
    generator, discriminator, support, query = _problem()
    noise = _noise()
    options = {"loss": loss, "lr": 0.2, "steps": STEPS, "generator_objective": objective}
    gradients = meta_gradients.maml_gradient(generator, discriminator, support, query, noise, **options)

    def query_losses() -> Tensor:
        """Both query losses equal those after ordinary training with `torch.optim.SGD`, averaged over tasks."""
        inner = {key: options[key] for key in ("loss", "lr", "steps")}
        adapted = plain.inner_loop(generator, discriminator, support, noise, **inner)
        total = torch.zeros(2, dtype=torch.float64)
        for task, (g, d) in enumerate(zip(*adapted, strict=True)):
            opponent = {"support": d, "initial": discriminator, "query": None}[objective]
            if opponent is None:
                opponent = _adapted_on_query(g, discriminator, query, noise, task, inner)
            values = losses.query_losses(losses.LOSSES[loss], g, d, opponent, query[task], noise, task, -1)
            total += torch.stack(values).detach() / TASKS
        return total

    _assert_derivatives(query_losses, generator, discriminator, gradients)


@pytest.mark.parametrize("loss", ["wgan-gp", "non-saturating"])
def test_multi_step_gradient_equals_finite_differences(loss: str) -> None:
    """Each step's query losses equal those after an inner loop of that many steps, on separate noise."""
    generator, discriminator, support, query = _problem()
    noise = _noise(evaluations=STEPS)
    weights = [0.5, 0.2, 0.3]
    inner: dict[str, Any] = {"loss": loss, "lr": 0.2}
    problem = generator, discriminator, support, query, noise
    gradients = meta_gradients.maml_gradient(*problem, steps=STEPS, step_weights=weights, **inner)

    def query_losses() -> Tensor:
        total = torch.zeros(2, dtype=torch.float64)
        for evaluation, weight in enumerate(weights):
            adapted = plain.inner_loop(generator, discriminator, support, noise, steps=evaluation + 1, **inner)
            for task, (g, d) in enumerate(zip(*adapted, strict=True)):
                values = losses.query_losses(losses.LOSSES[loss], g, d, d, query[task], noise, task, evaluation)
                total += weight * torch.stack(values).detach() / TASKS
        return total

    _assert_derivatives(query_losses, generator, discriminator, gradients)


def _assert_derivatives(
    evaluate: Callable[[], Tensor],
    generator: nn.Module,
    discriminator: nn.Module,
    gradients: tuple[meta_gradients.Named, meta_gradients.Named],
) -> None:
    """Compare each network's gradient, along a random direction, with central differences of its loss."""
    step = 1e-5
    for which, (network, gradient) in enumerate(zip((generator, discriminator), gradients, strict=True)):
        direction = {name: torch.randn_like(p) for name, p in network.named_parameters()}
        values = []
        for sign in (1, -2):
            with torch.no_grad():
                for name, parameter in network.named_parameters():
                    parameter += sign * step * direction[name]
            values.append(evaluate()[which])
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter += step * direction[name]
        measured = (values[0] - values[1]) / (2 * step)
        assert_close(join(gradient) @ join(direction), measured, "finite-difference")


@pytest.mark.parametrize("loss", LOSSES)
def test_fomaml_gradient_is_maml_without_steps(loss: str) -> None:
    generator, discriminator, support, query = _problem()
    arguments = (generator, discriminator, support, query, _noise())
    first = meta_gradients.fomaml_gradient(*arguments, loss=loss, lr=0.2, steps=0)
    full = meta_gradients.maml_gradient(*arguments, loss=loss, lr=0.2, steps=0)
    after = meta_gradients.fomaml_gradient(*arguments, loss=loss, lr=0.2, steps=2)
    for actual, expected, other in zip(first, full, after, strict=True):
        assert_close(join(actual), join(expected), "float64-rounding")
        assert not torch.allclose(join(other), join(expected), rtol=1e-3)


def _compiled_step(*networks: nn.Module, **options: Any) -> vmap.Step:
    torch._dynamo.reset()
    return compile.compiled_step(*networks, **options, backend="eager")  # traced whole, then run as it is


@pytest.mark.parametrize(
    ("loss", "make_step"),
    [*((loss, vmap.vectorised_step) for loss in UNCLIPPED), ("wgan-gp", _compiled_step)],
)
def test_vectorised_loop_equals_the_plain_loop(loss: str, make_step: Callable[..., vmap.Step]) -> None:
    generator, discriminator, support, _ = _problem()
    noise = _noise()
    adapted = plain.inner_loop(generator, discriminator, support, noise, loss=loss, lr=0.2, steps=STEPS)
    step = make_step(generator, discriminator, loss=loss, lr=0.2)
    vectorised = vmap.inner_loop(generator, discriminator, support, noise, step=step, steps=STEPS)
    for networks, named in zip(adapted, vectorised, strict=True):
        for task, network in enumerate(networks):
            row = {name: value[task] for name, value in named.items()}
            assert_close(join(row), join(dict(network.named_parameters())), "float64-rounding")


@pytest.mark.parametrize("make_step", [vmap.vectorised_step, _compiled_step])
def test_vectorised_adam_on_mini_batches_equals_the_plain_loop(make_step: Callable[..., vmap.Step]) -> None:
    generator, discriminator, support, _ = _problem()
    noise = _noise()
    noise.support_index = torch.randint(SHOTS, (STEPS, 1, TASKS, SHOTS))
    options: dict[str, Any] = {"loss": "r1", "lr": 0.02, "optimizer": "adam", "betas": (0.3, 0.9), "eps": 1e-3}
    adapted = plain.inner_loop(generator, discriminator, support, noise, steps=STEPS, **options)
    step = make_step(generator, discriminator, **options)
    vectorised = vmap.inner_loop(generator, discriminator, support, noise, step=step, steps=STEPS, optimizer="adam")
    for networks, named in zip(adapted, vectorised, strict=True):
        for task, network in enumerate(networks):
            row = {name: value[task] for name, value in named.items()}
            assert_close(join(row), join(dict(network.named_parameters())), "float64-rounding")


@pytest.mark.parametrize("library", ["higher", "torchopt"])
@pytest.mark.parametrize("loss", ["wgan-gp", "non-saturating"])
def test_library_maml_gradient_equals_the_plain_one(loss: str, library: str) -> None:
    pytest.importorskip(library)
    baseline = importlib.import_module(f"metagan_fast.benchmarks.baselines.{library}_maml")
    problem, noise = _problem(), _noise(critic_steps=2)
    options = {"loss": loss, "lr": 0.2, "steps": STEPS, "critic_steps": 2}
    expected = meta_gradients.maml_gradient(*problem, noise, **options)
    actual = baseline.maml_gradient(*problem, noise, **options)
    for a, e in zip(actual, expected, strict=True):
        assert_close(join(a), join(e), "float64-rounding")


@pytest.mark.slow
def test_jax_loop_equals_the_plain_loop() -> None:
    pytest.importorskip("jax")
    from metagan_fast.benchmarks.baselines import jax_dcgan

    generator, discriminator = models.dcgan(image_size=4, width=2, blocks=1, latent_dim=LATENT)
    support = torch.rand(TASKS, SHOTS, 1, 4, 4) * 2 - 1
    noise = _noise()
    adapted = plain.inner_loop(generator, discriminator, support, noise, lr=1e-3, steps=2)
    arrays = {name: jax_dcgan.to_jax(value.float()) for name, value in vars(noise).items()}
    step = jax_dcgan.compiled_step(generator, discriminator, lr=1e-3)
    images = jax_dcgan.to_jax(support)
    result = jax_dcgan.inner_loop(generator, discriminator, images, arrays, step=step, steps=2)
    for initial, networks, named in zip((generator, discriminator), adapted, result, strict=True):
        start = join(dict(initial.named_parameters()))
        for task, network in enumerate(networks):
            row = {name: torch.tensor(jax_dcgan.to_numpy(value[task])) for name, value in named.items()}
            change = join(dict(network.named_parameters())) - start
            assert_close(join(row) - start, change, "float32-other-library")
