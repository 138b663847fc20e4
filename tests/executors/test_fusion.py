"""Fusion of layers with the activation that follows: which pairs fuse, and unchanged results for any module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import metagan_fast as mgf
from metagan_fast.executors.torch.batched import BatchedModule
from metagan_fast.executors.torch.layers import activated_layers
from support import assert_close

Body = Callable[["Network", Tensor], Tensor]


class Network(nn.Module):
    """A linear layer and a convolution, called by the given body."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.linear = nn.Linear(5, 16)
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.shared, self.of_channels, self.of_elements = nn.PReLU(), nn.PReLU(3), nn.PReLU(16)
        self.flag = False

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


class Doubling(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return 2 * dy


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the activations that ran fused with a layer."""
    names: list[str] = []
    run = activated_layers.run
    monkeypatch.setattr(
        activated_layers, "run", lambda layer, *x: names.append(layer.activation.name) or run(layer, *x)
    )
    monkeypatch.setenv("METAGAN_FAST_TASK_LAYERS", "on")
    return names


class Harness:
    """A network under vmap, beside the same one task by task."""

    def __init__(self, body: Body, prepare: Callable[[Network], Any] | None = None) -> None:
        network = Network(body).double()
        if prepare is not None:
            prepare(network)
        self.layout = mgf.FlatLayout.from_module(network)
        noise = 0.3 * torch.randn(3, self.layout.numel, dtype=torch.float64)
        self.params = (self.layout.flatten(network) + noise).detach().requires_grad_()
        self.x = torch.randn(3, 2, 5, dtype=torch.float64)
        self.batched = BatchedModule(network, self.layout, "network")

    @property
    def module(self) -> Any:
        return self.batched.module

    def check(self) -> None:
        """Compare the outputs and the derivatives of a penalty on their gradients."""
        actual = self.batched(self.params, self.x)
        assert self.batched.vectorized
        rows = [
            functional_call(self.module, self.layout.views(p), (v,)) for p, v in zip(self.params, self.x, strict=True)
        ]
        results = []
        for y in (actual, torch.stack(rows)):
            (g,) = torch.autograd.grad(y.tanh().sum(), self.params, create_graph=True)
            results.append((y, g, *torch.autograd.grad(g.pow(2).sum(), self.params)))
        for a, b in zip(*results, strict=True):
            assert_close(a, b, "float64-rounding")


def images(self: Network, x: Tensor) -> Tensor:
    return self.linear(x).view(-1, 1, 4, 4)


FORMS: dict[str, tuple[str, Body]] = {
    "prelu-elements": ("prelu", lambda self, x: self.of_elements(self.linear(x))),
    "prelu-shared": ("prelu", lambda self, x: self.shared(self.conv(images(self, x)))),
    "prelu-channels": ("prelu", lambda self, x: self.of_channels(self.conv(images(self, x)))),
    "prelu-of-rows-shared": ("prelu", lambda self, x: self.shared(self.linear(x.unsqueeze(1)))),
    "relu-module": ("relu", lambda self, x: nn.ReLU()(self.linear(x))),
    "relu-in-place": ("relu", lambda self, x: nn.ReLU(inplace=True)(self.linear(x))),
    "relu-method": ("relu", lambda self, x: self.linear(x).relu()),
    "relu-method-in-place": ("relu", lambda self, x: self.linear(x).relu_()),
    "leaky_relu": ("leaky_relu", lambda self, x: nn.LeakyReLU(0.2)(self.linear(x))),
    "leaky_relu-in-place": ("leaky_relu", lambda self, x: F.leaky_relu_(self.linear(x), 0.3)),
    "tanh-function": ("tanh", lambda self, x: torch.tanh(self.linear(x))),
    "tanh-functional": ("tanh", lambda self, x: F.tanh(self.conv(images(self, x)))),
    "sigmoid-module": ("sigmoid", lambda self, x: nn.Sigmoid()(self.linear(x))),
    "elu": ("elu", lambda self, x: nn.ELU(0.5)(self.linear(x))),
    "silu": ("silu", lambda self, x: nn.SiLU()(self.linear(x))),
    "gelu": ("gelu", lambda self, x: nn.GELU()(self.linear(x))),
    "softplus": ("softplus", lambda self, x: nn.Softplus(beta=2)(self.linear(x))),
}


@pytest.mark.parametrize(("name", "body"), FORMS.values(), ids=FORMS)
def test_pairs_run_as_one(name: str, body: Body, found: list[str]) -> None:
    harness = Harness(body)
    harness.check()
    assert found == [name] * 2  # the trial's second pass, and the real one
    harness.check()
    assert found == [name] * 3


def in_place_and_read_again(self: Network, x: Tensor) -> Tensor:
    y = self.linear(x)
    F.relu(y, inplace=True)
    return y * y


def test_a_layer_that_an_activation_overwrote_is_the_activation(found: list[str]) -> None:
    Harness(in_place_and_read_again).check()
    assert found == ["relu"] * 2


def swish(self: Network, x: Tensor) -> Tensor:
    y = self.linear(x)
    return y * torch.sigmoid(y)


def shape_between(self: Network, x: Tensor) -> Tensor:
    y = self.linear(x)
    return torch.tanh(y) if y.shape[1] == 16 else y


def statistics_without_gradients(self: Network, x: Tensor) -> Tensor:
    y = self.linear(x)
    with torch.no_grad():
        mean = y.mean()
    return torch.tanh(y) * mean


def kept_for_later(self: Network, x: Tensor) -> Tensor:
    self.features = self.linear(x)
    y = torch.tanh(self.features)
    return torch.cat([y, self.features], 1)


def input_overwritten(self: Network, x: Tensor) -> Tensor:
    x = x.clone()
    y = self.linear(x)
    if self.flag:
        x += 1
    return torch.tanh(y)


def own_function(self: Network, x: Tensor) -> Tensor:
    return Doubling.apply(self.linear(x))


APART: dict[str, Body] = {
    "two-users": swish,
    "a-shape-between": shape_between,
    "statistics-without-gradients": statistics_without_gradients,
    "kept-for-later": kept_for_later,
    "own-function": own_function,
    "prelu-of-the-second-dimension": lambda self, x: self.of_channels(self.linear(x.unsqueeze(1).expand(-1, 3, -1))),
    "rising-leaky-relu": lambda self, x: F.leaky_relu(self.linear(x), -0.2),
    "rising-elu": lambda self, x: F.elu(self.linear(x), -0.5),
    "gelu-by-tanh": lambda self, x: F.gelu(self.linear(x), approximate="tanh"),
    "softplus-with-a-threshold": lambda self, x: F.softplus(self.linear(x), 1.0, 0.1),
    "another-activation": lambda self, x: F.relu6(self.linear(x)),
    "the-output-itself": lambda self, x: self.linear(x),
}


@pytest.mark.parametrize("body", APART.values(), ids=APART)
def test_what_is_no_pair_runs_as_written(body: Body, found: list[str]) -> None:
    harness = Harness(body)
    harness.check()
    harness.check()
    assert not found


@torch.no_grad()
@pytest.mark.parametrize("watched", [False, True])
def test_an_input_overwritten_before_the_activation(watched: bool, found: list[str]) -> None:
    """Values are right whether the layer is known to be in a pair or not; PyTorch refuses derivatives of this."""
    harness = Harness(input_overwritten)
    for flag in (not watched, True):
        harness.module.flag = flag
        y = harness.batched(harness.params, harness.x)
    rows = [
        functional_call(harness.module, harness.layout.views(p), (v,))
        for p, v in zip(harness.params, harness.x, strict=True)
    ]
    assert_close(y, torch.stack(rows), "float64-rounding")
    assert bool(found) == watched


def look(module: nn.Module, args: Any, output: Tensor) -> None:
    output.sum()


def triple(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 3 * output


@pytest.mark.parametrize("hook", [look, triple])
def test_hooks_see_what_the_layer_returns(hook: Any, found: list[str]) -> None:
    body = lambda self, x: torch.tanh(self.linear(x))  # noqa: E731
    Harness(body, lambda network: network.linear.register_forward_hook(hook)).check()
    assert not found


def without_its_activation(self: Network, x: Tensor) -> Tensor:
    y = self.linear(x)
    return y if self.flag else torch.tanh(y)


def with_another_activation(self: Network, x: Tensor) -> Tensor:
    y = self.linear(x)
    return torch.sigmoid(y) if self.flag else torch.tanh(y)


def with_another_layer_first(self: Network, x: Tensor) -> Tensor:
    if self.flag:
        x = self.linear(x)[:, :5] + x
    return torch.tanh(self.linear(x))


def with_another_function_first(self: Network, x: Tensor) -> Tensor:
    y = self.linear(x)
    return torch.tanh(2 * y if self.flag else y)


def with_another_user(self: Network, x: Tensor) -> Tensor:
    y = self.linear(x)
    z = torch.tanh(y)
    if not self.flag:
        return z
    with torch.no_grad():
        mean = y.mean()  # runs the layer again; gradients still pass through it
    return z * y + mean


@pytest.mark.parametrize(
    "body",
    [
        without_its_activation,
        with_another_activation,
        with_another_layer_first,
        with_another_function_first,
        with_another_user,
    ],
)
def test_a_module_may_change_its_mind(body: Body, found: list[str]) -> None:
    harness = Harness(body)
    for flag in (False, True, True, False):
        harness.module.flag = flag
        harness.check()
    assert found[:2] == ["tanh"] * 2


def overwrites_and_reads_again(self: Network, x: Tensor) -> Tensor:
    x = x.clone()
    y = self.linear(x)
    z = torch.tanh(y)
    x += 1
    return z + y if self.flag else z


@torch.no_grad()
def test_a_layer_that_cannot_run_again_says_so() -> None:
    harness = Harness(overwrites_and_reads_again)
    harness.batched(harness.params, harness.x)
    harness.module.flag = True
    with pytest.raises(RuntimeError, match="METAGAN_FAST_TASK_LAYERS=off"):
        harness.batched(harness.params, harness.x)


def past_all_functions(self: Network, x: Tensor) -> Tensor:
    y = self.linear(x)
    with torch._C.DisableTorchFunction():
        doubled = 2 * y
    return torch.tanh(y) + doubled


@pytest.mark.slow
def test_what_gets_at_an_output_past_all_functions_ends_pairs(found: list[str]) -> None:
    harness = Harness(past_all_functions)
    harness.check()
    assert harness.batched._fusion.fused_layers == set()
    assert not found


def test_autocast(found: list[str]) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.PReLU(3))
    layout = mgf.FlatLayout.from_module(module)
    params, x = torch.randn(2, layout.numel), torch.randn(2, 5, 4)
    y = BatchedModule(module, layout, "network", autocast=True)(params, x)
    weight, bias, slope = (v.bfloat16() for v in layout.views(params).values())
    z = x.bfloat16() @ weight.mT + bias[:, None]
    assert found == ["prelu"] * 2
    assert torch.equal(y, torch.where(z > 0, z, slope[:, None] * z).float())


def test_slopes_in_another_dtype_are_an_error_as_in_pytorch() -> None:
    harness = Harness(lambda self, x: F.prelu(self.linear(x), torch.ones(1)))
    with pytest.raises(ValueError, match="failed on an input"):
        harness.batched(harness.params, harness.x)
