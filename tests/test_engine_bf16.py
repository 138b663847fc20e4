"""precision="bf16" in the C++ engine: operands of matrix products rounded to bf16, everything else float32."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import metagan_fast as mgf
from metagan_fast import _native
from metagan_fast.executors.plan import make_plan
from metagan_fast.flat import FlatLayout
from support import assert_close, relative_error
from tolerances import tolerance

if not _native.is_available()[0]:
    pytest.skip("the extension is not installed", allow_module_level=True)

from metagan_fast import _core

IMAGES = 3


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().double()


# Shapes that take every way through the kernels: runs of all lengths, odd channels, rows and columns that fill no tile,
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


def passes(
    module: nn.Module, shape: tuple[int, ...], precision: str, images: int = IMAGES, threads: int = 2, scale: float = 0
) -> tuple[FlatLayout, dict[str, Tensor], dict[str, Tensor]]:
    """Run the four passes; return the layout, what they were given and what they wrote."""
    layout = FlatLayout.from_module(module)

    def random_params(scale: float) -> Tensor:
        return layout.flatten({slot.name: scale * torch.randn(slot.shape) for slot in layout.slots})

    given = {
        "params": layout.flatten(module) + random_params(scale),
        "params_tangent": random_params(0.1),
        "inputs": torch.randn(images, *shape),
        "inputs_tangent": torch.randn(images, *shape),
    }
    like = module(given["inputs"])
    given |= {key: torch.randn(like.shape) for key in ("output_cotangent", "tangent_cotangent")}
    results = {key: torch.empty(like.shape) for key in ("outputs", "outputs_tangent")}
    results |= {key: torch.empty(images, *shape) for key in ("inputs_cotangent", "inputs_tangent_cotangent")}
    results["params_gradient"] = torch.zeros_like(given["params"])
    addresses = {key: tensor.data_ptr() for key, tensor in (given | results).items()}
    plan = make_plan(module, layout, shape).to_core()
    _core.network_passes(plan, {"images": images, "paired": 1, "threads": threads, **addresses}, precision)
    return layout, given, results


@pytest.mark.parametrize("images", [3, 12])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_rounds_its_operands_and_nothing_else(name: str, images: int, isa: str) -> None:
    """Against plain torch in float64 with each operand rounded: forward, tangent, backward and weight gradients."""
    derivative = "bf16-transforms" if name.startswith("conv-transformed") else "bf16-operands"
    torch.manual_seed(0)
    module, shape = LAYERS[name]
    layout, given, results = passes(module, shape, "bf16", images)
    module = copy.deepcopy(module).double()
    views = {key: layout.views(given[key].double()) for key in ("params", "params_tangent")}

    def linear(x: Tensor, weights: Tensor) -> Tensor:
        bias = {"bias": torch.zeros_like(module.bias)} if module.bias is not None else {}
        return functional_call(module, {"weight": weights, **bias}, (x,))

    def adjoint(x: Tensor, weights: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        x, weights = rounded(x).requires_grad_(), rounded(weights).requires_grad_()
        return torch.autograd.grad(linear(x, weights), (x, weights), rounded(cotangent))

    def with_bias(y: Tensor, key: str) -> Tensor:
        if module.bias is None:
            return y
        return y + views[key]["bias"].reshape(-1, *[1] * (y.ndim - 2))

    weight, weight_tangent = views["params"]["weight"], views["params_tangent"]["weight"]
    primal, direction = rounded(given["inputs"]), rounded(given["inputs_tangent"])
    outputs = with_bias(linear(primal, rounded(weight)), "params")
    tangent = with_bias(linear(primal, rounded(weight_tangent)), "params_tangent") + linear(direction, rounded(weight))
    back, by_weight = adjoint(given["inputs"], weight, given["output_cotangent"])
    tangent_back, by_weight_tangent = adjoint(given["inputs_tangent"], weight, given["tangent_cotangent"])
    back = back + adjoint(given["inputs"], weight_tangent, given["tangent_cotangent"])[0]
    assert_close(results["outputs"], outputs, "bf16-operands")
    assert_close(results["outputs_tangent"], tangent, derivative)
    assert_close(results["inputs_cotangent"], back, derivative)
    assert_close(results["inputs_tangent_cotangent"], tangent_back, derivative)
    gradient = layout.views(results["params_gradient"])["weight"]
    assert_close(gradient, by_weight + by_weight_tangent, derivative)


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp-generator": (lambda: mgf.models.workload("mlp-8").generator, (32,)),
    "mlp-discriminator": (lambda: mgf.models.workload("mlp-8").discriminator, (1, 8, 8)),
    "dcgan-generator": (lambda: mgf.models.workload("dcgan-16").generator, (100,)),
    "dcgan-discriminator": (lambda: mgf.models.workload("dcgan-16").discriminator, (1, 16, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_four_passes_are_those_of_float32_to_bf16(name: str, isa: str) -> None:
    """Against double backward in float64."""
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    module = build()
    layout, given, results = passes(module, shape, "bf16", scale=0.05)
    exact = {key: tensor.double().requires_grad_() for key, tensor in given.items()}
    params, inputs = exact["params"], exact["inputs"]
    outputs = functional_call(module.double(), layout.views(params), (inputs,))

    def paired(cotangent: Tensor) -> Tensor:
        by_params, by_inputs = torch.autograd.grad(outputs, (params, inputs), cotangent, create_graph=True)
        return (by_params * exact["params_tangent"]).sum() + (by_inputs * exact["inputs_tangent"]).sum()

    direction = torch.zeros_like(outputs, requires_grad=True)
    (outputs_tangent,) = torch.autograd.grad(paired(direction), direction)
    total = (outputs * exact["output_cotangent"]).sum() + paired(exact["tangent_cotangent"])
    names = {
        "params_gradient": params,
        "inputs_cotangent": inputs,
        "inputs_tangent_cotangent": exact["inputs_tangent"],
    }
    wanted = dict(zip(names, torch.autograd.grad(total, tuple(names.values())), strict=True))
    for key, expected in {"outputs": outputs, "outputs_tangent": outputs_tangent, **wanted}.items():
        assert_close(results[key], expected, "bf16-pass")


@pytest.mark.parametrize("name", ["conv-5x5", "conv-small-image", "conv-transposed", "linear", "conv-one-row"])
def test_the_same_bytes_for_any_number_of_threads(name: str, isa: str) -> None:
    module, shape = LAYERS[name]
    every = []
    for threads in (1, 2, 4):
        torch.manual_seed(0)
        every.append(passes(module, shape, "bf16", 12, threads)[2])
    for results in every[1:]:
        assert all(torch.equal(results[key], every[0][key]) for key in results)


def test_unknown_precision_is_refused() -> None:
    module, shape = LAYERS["linear"]
    with pytest.raises(ValueError, match="unknown precision 'float16'"):
        passes(module, shape, "float16")


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
    """A loop of two steps ends with the bytes of two loops of a step, each by a learner of its own."""
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


def test_maml_stays_near_that_of_float32() -> None:
    settings = {"loss": "non-saturating", "meta": mgf.MAML(), "inner": mgf.InnerLoop(steps=2, lr=1e-2)}
    exact, subject = (learner(precision, **settings).meta_gradient(batch()) for precision in ("float32", "bf16"))
    assert_close(subject.generator, exact.generator, "bf16-inner-loop")
    assert_close(subject.discriminator, exact.discriminator, "bf16-inner-loop")


def test_explain_says_which_precision() -> None:
    assert learner("bf16").explain().startswith("executor: native, bf16")
    assert learner("float32").explain().startswith("executor: native, float32")


def test_parameters_stay_float32() -> None:
    subject = learner("bf16", inner=mgf.InnerLoop(steps=1))
    subject.meta_step(batch())
    assert subject.generator_parameters.dtype == torch.float32
    assert not torch.equal(subject.generator_parameters.bfloat16().float(), subject.generator_parameters)
