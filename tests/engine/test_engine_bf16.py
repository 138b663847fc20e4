"""precision="bf16" in the C++ engine: operands of matrix products rounded to bf16, everything else float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from metagan_fast.benchmarks.baselines import meta_gradients, plain
from torch import Tensor, nn

import metagan_fast as mgf
from engine_passes import Bf16Operands, autograd_passes, draw_passes, engine_passes
from layer_cases import Case
from metagan_fast import _native
from networks import tiny_batch, tiny_gan, with_norms_by_hand
from support import assert_close, relative_error
from tolerances import tolerance

if not _native.is_available()[0]:
    pytest.skip("the extension is not installed", allow_module_level=True)

IMAGES = 3


# Shapes that reach every branch of the kernels: runs of all lengths, odd channels, rows and columns that fill no tile,
# one channel, one pixel, more taps than a block holds, strides, dilation, images small enough to skip padding.
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv-3x3": (nn.Conv2d(3, 6, 3, padding=1), (3, 9, 11)),
    "conv-5x5": (nn.Conv2d(13, 15, 5, padding=2), (13, 16, 16)),
    "conv-small-image": (nn.Conv2d(7, 24, 5, padding=2), (7, 4, 4)),
    "conv-8x8": (nn.Conv2d(15, 14, 5, padding=2), (15, 8, 8)),
    "conv-wide": (nn.Conv2d(33, 29, 5, padding=2), (33, 8, 10)),
    "conv-32x32": (nn.Conv2d(2, 14, 5, padding=2), (2, 32, 32)),
    "conv-one-row": (nn.Conv2d(17, 1, 5, padding=2), (17, 16, 16)),
    "conv-one-channel": (nn.Conv2d(1, 16, 5, padding=2), (1, 16, 16)),
    "conv-1x1": (nn.Conv2d(19, 21, 1, bias=False), (19, 6, 6)),
    "conv-strided": (nn.Conv2d(5, 7, 4, stride=2, padding=1), (5, 12, 10)),
    "conv-dilated": (nn.Conv2d(3, 6, 3, stride=2, padding=2, dilation=2), (3, 9, 11)),
    "conv-many-taps": (nn.Conv2d(3, 4, 17, padding=8), (3, 9, 9)),
    "conv-transformed-32x32": (nn.Conv2d(9, 18, 5, padding=2), (9, 32, 32)),
    "conv-transformed-12x16": (nn.Conv2d(20, 24, 5, padding=2), (20, 12, 16)),
    "conv-transformed-3x3": (nn.Conv2d(17, 16, 3, padding=1), (17, 32, 32)),
    "conv-transposed": (nn.ConvTranspose2d(9, 5, 4, stride=2, padding=1), (9, 7, 8)),
    "conv-transposed-stride-3": (nn.ConvTranspose2d(4, 14, 3, stride=3), (4, 4, 4)),
    "linear": (nn.Linear(45, 37), (45,)),
    "linear-one": (nn.Linear(130, 1), (130,)),
    "linear-deep": (nn.Linear(1100, 30), (1100,)),
}


def layer(name: str, images: int = IMAGES) -> Case:
    module, shape = LAYERS[name]
    return Case(module, shape, images)


@pytest.mark.parametrize("images", [3, 12])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_rounds_its_operands_and_nothing_else(name: str, images: int, isa: str) -> None:
    """Forward, tangent, backward and weight gradients agree with float64 on rounded operands."""
    derivative = "bf16-transforms" if name.startswith("conv-transformed") else "bf16-operands"
    case = layer(name, images)
    given = draw_passes(case)
    found = engine_passes(case, given, threads=2, precision="bf16")
    with Bf16Operands():
        emulated = autograd_passes(case, given)
    for key, expected in emulated.items():
        assert_close(found[key], expected, "bf16-operands" if key == "outputs" else derivative)


def smooth_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, padding=2),
        nn.LayerNorm((8, 8, 8)),
        nn.SiLU(),
        nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(384, 20),
        nn.Softplus(),
        nn.Linear(20, 3),
    )


SMOOTH: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "smooth-generator": (lambda: tiny_gan()[0], (6,)),
    "smooth-discriminator": (lambda: nn.Sequential(tiny_gan()[1], nn.Flatten(0)), (1, 8, 8)),
    "smooth-network": (smooth_network, (3, 8, 8)),
}
NETWORKS = SMOOTH | {
    "mlp-generator": (lambda: mgf.models.workload("mlp-8").generator, (32,)),
    "mlp-discriminator": (lambda: mgf.models.workload("mlp-8").discriminator, (1, 8, 8)),
    "dcgan-generator": (lambda: mgf.models.workload("dcgan-16").generator, (100,)),
    "dcgan-discriminator": (lambda: mgf.models.workload("dcgan-16").discriminator, (1, 16, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_rounds_operands_and_nothing_else(name: str, isa: str) -> None:
    """Networks agree with float64 on rounded operands, which has the engine's kinks; smooth ones also without."""
    build, shape = NETWORKS[name]
    case = Case(build(), shape, IMAGES)
    given = draw_passes(case)
    found = engine_passes(case, given, threads=2, precision="bf16")
    with Bf16Operands():
        emulated = autograd_passes(case, given)
    transformed = name == "dcgan-discriminator"  # one layer's weight gradient is
    for key, expected in emulated.items():
        loose = transformed and key == "params_gradient"
        assert_close(found[key], expected, "bf16-transforms" if loose else "bf16-emulated")
    if name in SMOOTH:
        for key, expected in autograd_passes(case, given).items():
            assert_close(found[key], expected, "bf16-smooth")


@pytest.mark.parametrize("name", ["conv-5x5", "conv-small-image", "conv-transposed", "linear", "conv-one-row"])
def test_the_same_bytes_for_any_number_of_threads(name: str, isa: str) -> None:
    case = layer(name, 12)
    given = draw_passes(case)
    alone, *others = (engine_passes(case, given, threads=threads, precision="bf16") for threads in (1, 2, 4))
    for results in others:
        assert all(torch.equal(results[key], alone[key]) for key in results)


def test_unknown_precision_is_refused() -> None:
    case = layer("linear")
    with pytest.raises(ValueError, match="unknown precision 'float16'"):
        engine_passes(case, draw_passes(case), precision="float16")


def learner(precision: str, executor: str = "native", **settings: Any) -> mgf.MetaGAN:
    torch.manual_seed(0)
    generator, discriminator, latent_dim, _ = mgf.models.workload("dcgan-16")
    settings = {"executor": executor, "precision": precision, **settings}
    return mgf.MetaGAN(generator, discriminator, latent_dim=latent_dim, **settings)


def batch(tasks: int = 3) -> mgf.TaskBatch:
    random = torch.Generator().manual_seed(1)
    support, query = (torch.rand(tasks, 4, 1, 16, 16, generator=random) * 2 - 1 for _ in range(2))
    return mgf.TaskBatch(support, query)


def change(subject: mgf.MetaGAN) -> Tensor:
    adapted = subject.inner_loop(batch())
    return torch.cat(
        (adapted.generator - subject.generator_parameters, adapted.discriminator - subject.discriminator_parameters), 1
    )


def smooth_problem(**settings: Any) -> tuple[mgf.MetaGAN, mgf.TaskBatch, mgf.Noise, list[nn.Module]]:
    """Return a learner in bf16, tasks, their noise, and the networks in float64 with norms right to any derivative."""
    subject = mgf.MetaGAN(*tiny_gan(), latent_dim=6, executor="native", precision="bf16", **settings)
    tasks = tiny_batch()
    networks = [with_norms_by_hand(network).double() for network in (subject.generator, subject.discriminator)]
    return subject, tasks, subject.draw_noise(tasks), networks


@pytest.mark.parametrize("loss", ["wgan-gp", "non-saturating"])
def test_inner_steps_round_operands_and_nothing_else(loss: str, isa: str) -> None:
    """The learning rate is large enough for a step to exceed rounding of the parameters."""
    subject, tasks, noise, networks = smooth_problem(loss=loss, inner=mgf.InnerLoop(steps=2, lr=0.1))
    adapted = subject.inner_loop(tasks, noise)
    with Bf16Operands():
        emulated = plain.inner_loop(
            *networks, tasks.support.double(), noise.to(dtype=torch.float64), loss=loss, steps=2, lr=0.1
        )
    for name, modules in zip(("generator", "discriminator"), emulated, strict=True):
        layout, start = getattr(subject, f"{name}_layout"), getattr(subject, f"{name}_parameters").double()
        expected = torch.stack([layout.flatten(module) for module in modules]) - start
        assert_close(getattr(adapted, name) - start, expected, "bf16-emulated")


def test_maml_rounds_operands_and_nothing_else(isa: str) -> None:
    settings: dict[str, Any] = {"loss": "non-saturating", "inner": mgf.InnerLoop(steps=2, lr=0.1)}
    subject, tasks, noise, networks = smooth_problem(meta=mgf.MAML(), **settings)
    found = subject.meta_gradient(tasks, noise)
    with Bf16Operands():
        emulated = meta_gradients.maml_gradient(
            *networks,
            *(images.double() for images in (tasks.support, tasks.query)),
            noise.to(dtype=torch.float64),
            loss="non-saturating",
            steps=2,
            lr=0.1,
        )
    for name, expected in zip(("generator", "discriminator"), emulated, strict=True):
        assert_close(getattr(found, name), getattr(subject, f"{name}_layout").flatten(expected), "bf16-emulated")


def test_an_inner_loop_stays_near_that_of_float32(isa: str) -> None:
    inner = mgf.InnerLoop(steps=5)
    exact, subject = change(learner("float32", inner=inner)), change(learner("bf16", inner=inner))
    assert 1e-5 < relative_error(subject, exact) <= tolerance("bf16-loop")


def test_an_inner_loop_gives_the_same_bytes_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = []
    for threads in (1, 2, 4):
        monkeypatch.setenv("METAGAN_FAST_THREADS", str(threads))
        changes.append(change(learner("bf16", inner=mgf.InnerLoop(steps=2))))
    assert torch.equal(changes[0], changes[1])
    assert torch.equal(changes[0], changes[2])


@pytest.mark.parametrize("critic_steps", [1, 2])
def test_weights_are_converted_anew_after_each_update(critic_steps: int) -> None:
    """A loop of two steps ends with the same bytes as two loops of one step by separate learners."""
    inner = mgf.InnerLoop(steps=2, critic_steps=critic_steps, optimizer="sgd", lr=0.05)
    whole = learner("bf16", inner=inner)
    first, second = (learner("bf16", inner=replace(inner, steps=1)) for _ in range(2))
    noise = whole.draw_noise(batch(1))
    loops = ("discriminator_latents", "generator_latents", "interpolation")
    of_step = [replace(noise, **{key: getattr(noise, key)[i : i + 1] for key in loops}) for i in range(2)]
    adapted = first.inner_loop(batch(1), of_step[0])
    second.generator_parameters.copy_(adapted.generator[0])
    second.discriminator_parameters.copy_(adapted.discriminator[0])
    adapted, expected = second.inner_loop(batch(1), of_step[1]), whole.inner_loop(batch(1), noise)
    assert torch.equal(adapted.generator, expected.generator)
    assert torch.equal(adapted.discriminator, expected.discriminator)


def test_weights_are_converted_anew_for_each_task() -> None:
    subject, tasks = learner("bf16", inner=mgf.InnerLoop(steps=1, lr=0.05)), batch()
    noise = subject.draw_noise(tasks)
    together = subject.inner_loop(tasks, noise).discriminator
    for task in range(tasks.tasks):
        other = learner("bf16", inner=mgf.InnerLoop(steps=1, lr=0.05))
        alone = other.inner_loop(tasks.slice(task, task + 1), noise.slice(task, task + 1)).discriminator
        assert torch.equal(together[task], alone[0])


def test_explain_says_which_precision() -> None:
    assert learner("bf16").explain().startswith("executor: native, bf16")
    assert learner("float32").explain().startswith("executor: native, float32")


def test_parameters_stay_float32() -> None:
    subject = learner("bf16", inner=mgf.InnerLoop(steps=1))
    subject.meta_step(batch())
    assert subject.generator_parameters.dtype == torch.float32
    assert not torch.equal(subject.generator_parameters.bfloat16().float(), subject.generator_parameters)
