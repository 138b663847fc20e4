"""Per-task layers: derivatives of any order, vmap, and whole inner loops with and without them, on the CPU."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vjp, vmap

import metagan_fast as mgf
from metagan_fast.executors.torch.batched import BatchedModule
from metagan_fast.executors.torch.layers import activated_layers, dispatch
from metagan_fast.executors.torch.layers import task_layers as ops
from metagan_fast.executors.torch.layers.layer_mode import task_layers
from networks import batch_norm_dcgan, tiny_batch, tiny_gan
from support import assert_close
from task_layer_cases import ACTIVATED, ACTIVATIONS, CASES, Case, operands, oracle, slopes

SMALL: dict[str, Case] = {
    "linear": (ops.Linear(), (2, 3, 4), 2),
    "convolution": (ops.Convolution((4, 3), (3, 2), (2, 1), (1, 2), (1, 2)), (2, 1, 2, 4, 3), 2),
    "transposed": (ops.TransposedConvolution((3, 3), (3, 2), (2, 1), (1, 0), (1, 2)), (2, 1, 2, 2, 1), 2),
}
SMALL_ACTIVATED: dict[str, Case] = {
    f"{name}-{activation.name}": (replace(SMALL[name][0], activation=activation), *SMALL[name][1:])
    for name in SMALL
    for activation in ACTIVATIONS
    if name == "linear" or activation.name in ("prelu", "tanh", "gelu")
}
SWITCH = "METAGAN_FAST_TASK_LAYERS"


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "on")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[ops.Layer]:
    """Collect the layers that are run by `ops.run`."""
    found: list[ops.Layer] = []

    def collect(run: Any) -> Any:
        return lambda layer, *x: found.append(layer) or run(layer, *x)

    monkeypatch.setattr(ops, "run", collect(ops.run))
    monkeypatch.setattr(activated_layers, "run", collect(activated_layers.run))
    return found


def run_layer(layer: ops.Layer, *inputs: Tensor) -> Tensor:
    return (ops if layer.activation is None else activated_layers).run(layer, *inputs)


def leaves(case: Case) -> list[Tensor]:
    """Return all operands of a layer, with slopes if it has any."""
    given = (*operands(case, torch.float64), slopes(case, torch.float64))
    return [x.clone().requires_grad_() for x in given if x is not None]


@pytest.mark.parametrize("case", [*CASES.values(), *ACTIVATED.values()], ids=[*CASES, *ACTIVATED])
def test_output_and_gradients(case: Case) -> None:
    inputs = leaves(case)
    actual, expected = run_layer(case[0], *inputs), oracle(case[0], *inputs)
    assert_close(actual, expected, "float64-rounding")
    dy = torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad(actual, inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True):
        assert_close(a, b, "float64-rounding")


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_finite_differences(case: Case, with_bias: bool) -> None:
    inputs = leaves(case)[: 3 if with_bias else 2]

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return ops.run(case[0], x, weight, bias)

    assert gradcheck(run, inputs, check_forward_ad=True, check_batched_grad=with_bias)
    assert gradgradcheck(run, inputs, fast_mode=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("case", SMALL_ACTIVATED.values(), ids=SMALL_ACTIVATED)
def test_finite_differences_through_activations(case: Case) -> None:
    """Without a bias the saved output alone connects the two passes."""

    def run(*inputs: Tensor) -> Tensor:
        return activated_layers.run(case[0], *inputs)

    inputs = leaves(case)
    assert gradcheck(run, inputs, check_forward_ad=True)
    assert gradgradcheck(run, inputs, fast_mode=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("case", [*SMALL.values(), *SMALL_ACTIVATED.values()], ids=[*SMALL, *SMALL_ACTIVATED])
def test_transforms_of_every_order(case: Case) -> None:
    """vmap(grad), a gradient's derivative along a direction, and the same of a penalty, against PyTorch's own."""
    inputs = [x.detach() for x in leaves(case)]
    directions = [torch.randn_like(x) for x in inputs]
    every = tuple(range(len(inputs)))

    def objective(run: Any) -> Any:
        def loss(*inputs: Tensor) -> Tensor:
            return run(*(x[None] for x in inputs)).tanh().pow(2).sum()

        def penalty(*inputs: Tensor) -> Tensor:
            return grad(loss)(*inputs).pow(2).sum()

        return loss, penalty

    for actual, expected in zip(
        objective(lambda *x: run_layer(case[0], *x)), objective(lambda *x: oracle(case[0], *x)), strict=True
    ):
        of = [grad(f, argnums=every) for f in (actual, expected)]
        for a, b in zip(*(vmap(g)(*inputs) for g in of), strict=True):
            assert_close(a, b, "float64-rounding")
        shared = inputs[0], *(x[0] for x in inputs[1:])
        for a, b in zip(*(vmap(g, in_dims=(0, *(None for _ in every[1:])))(*shared) for g in of), strict=True):
            assert_close(a, b, "float64-rounding")
        one, along = (tuple(v[0] for v in given) for given in (inputs, directions))
        if case[0].activation is None:
            products = [jvp(g, one, along)[1] for g in of]
        else:  # PyTorch's SiLU has no such derivative, and others take minutes
            products = [vjp(g, *one)[1](along) for g in of]
        for a, b in zip(*products, strict=True):
            assert_close(a, b, "float64-rounding")


class Layers(nn.Module):
    """Layers that the mode replaces, and layers that it leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2))
        self.reflect = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.same = nn.Conv2d(4, 6, 3, padding="same")
        self.up = nn.ConvTranspose2d(6, 4, (4, 2), stride=(2, 1), padding=1, output_padding=(1, 0), groups=2)
        self.linear = nn.Linear(4 * 5 * 5, 3)
        self.register_buffer("shared", torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.same(self.grouped(self.reflect(self.conv(x)))))
        x = self.linear(x.flatten(1))
        return F.linear(x.unsqueeze(1), self.shared).squeeze(1)


def test_what_is_replaced(on: None, calls: list[ops.Layer]) -> None:
    module = Layers().double()
    layout = mgf.FlatLayout.from_module(module)
    params = (layout.flatten(module) + 0.1 * torch.randn(3, layout.numel, dtype=torch.float64)).requires_grad_()
    x = torch.randn(3, 2, 2, 8, 8, dtype=torch.float64)
    batched = BatchedModule(module, layout, "network")
    y = batched(params, x)
    assert batched.vectorized
    kinds = [type(layer).__name__ for layer in calls]
    assert kinds[-5:] == ["Convolution", "Convolution", "Convolution", "TransposedConvolution", "Linear"]
    rows = [functional_call(module, layout.views(p), (v,)) for p, v in zip(params, x, strict=True)]
    assert_close(y, torch.stack(rows), "float64-rounding")
    dy = torch.randn_like(y)
    (actual,) = torch.autograd.grad(y, params, dy)
    (expected,) = torch.autograd.grad(torch.stack(rows), params, dy)
    assert_close(actual, expected, "float64-rounding")


@pytest.mark.parametrize("networks", [tiny_gan, batch_norm_dcgan], ids=["tiny", "batch-norm"])
@pytest.mark.parametrize("meta", [mgf.Reptile(), mgf.FOMAML(), mgf.MAML()], ids=lambda meta: type(meta).__name__)
def test_meta_gradients_are_the_same(
    networks: Any, meta: Any, monkeypatch: pytest.MonkeyPatch, calls: list[ops.Layer]
) -> None:
    gan = [network.double() for network in networks()]
    size, latent_dim = (8, 6) if networks is tiny_gan else (16, 8)
    batch = tiny_batch(tasks=3, query=2, image_shape=(1, size, size))
    gradients = {}
    for setting in ("off", "on"):
        monkeypatch.setenv(SWITCH, setting)
        inner = mgf.InnerLoop(lr=0.05, steps=2)
        learner = mgf.MetaGAN(*gan, latent_dim=latent_dim, inner=inner, meta=meta, executor="torch", loss="wgan-gp")
        noise = learner.draw_noise(batch)
        gradients[setting] = learner.meta_gradient(batch, noise=noise)
        assert bool(calls) == (setting == "on")
    assert_close(gradients["on"].generator, gradients["off"].generator, "float64-parity")
    assert_close(gradients["on"].discriminator, gradients["off"].discriminator, "float64-parity")


def test_autocast_reaches_the_layers(on: None, calls: list[ops.Layer]) -> None:
    module = nn.Linear(4, 3)
    layout = mgf.FlatLayout.from_module(module)
    params = torch.randn(2, layout.numel)
    x = torch.randn(2, 5, 4)
    y = BatchedModule(module, layout, "network", autocast=True)(params, x)
    views = layout.views(params)
    expected = ops.run(ops.Linear(), *(v.bfloat16() for v in (x, views["weight"], views["bias"]))).float()
    assert calls and torch.equal(y, expected)


def test_compiled_code_has_pytorch_layers(on: None, calls: list[ops.Layer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with task_layers(torch.device("cpu")):
        vmap(F.linear)(torch.randn(2, 3, 4), torch.randn(2, 5, 4))
    assert not calls


@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_passes_run_on_the_first_backend_that_fits(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = case[0]
    monkeypatch.setattr(dispatch, "kernel", lambda *pass_and_precision: pass_and_precision)

    def selected(device: str, dtype: torch.dtype = torch.float32, numel: int = 6, available: bool = True) -> Any:
        monkeypatch.setattr(dispatch, "is_available", lambda: (available, ""))
        operand: Any = SimpleNamespace(device=torch.device(device), dtype=dtype, numel=lambda: numel)
        return dispatch.select(layer, "backward_data", operand)

    plain = dispatch.PLAIN[layer.op, "backward_data"]
    assert selected("cuda") == selected("cuda", torch.bfloat16) == (layer, "backward_data", "ieee")
    for other in (selected("cpu"), selected("cuda", torch.float64), selected("cuda", numel=0)):
        assert other.func is plain and other.args == (layer,)
    assert selected("cuda", available=False).func is plain
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert selected("cuda") == (layer, "backward_data", "tf32")


@pytest.mark.parametrize("setting", ["auto", "off", ""])
def test_nothing_changes_on_a_cpu_unless_asked_for(
    setting: str, monkeypatch: pytest.MonkeyPatch, calls: list[ops.Layer]
) -> None:
    monkeypatch.setenv(SWITCH, setting)
    with task_layers(torch.device("cpu")):
        vmap(F.linear)(torch.randn(2, 3, 4), torch.randn(2, 5, 4))
    assert not calls


def test_other_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "yes")
    with pytest.raises(ValueError, match="auto, on or off, got 'yes'"):
        task_layers(torch.device("cpu"))
