"""Layer norms with weights of each task's own: derivatives of any order, vmap, and the mode that selects them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, vmap

import metagan_fast as mgf
from metagan_fast.executors.torch.batched import BatchedModule
from metagan_fast.executors.torch.layers import task_layer_norm as ops
from metagan_fast.executors.torch.layers.dispatch import PLAIN
from metagan_fast.executors.torch.layers.layer_mode import task_layers
from metagan_fast.models import figr
from networks import tiny_batch, with_norms_by_hand
from support import assert_close
from task_layer_norm_cases import CASES, EPS, Case, by_hand, expected, operands, oracle, statistics

LAYER = ops.LayerNorm(EPS)
SWITCH = "METAGAN_FAST_TASK_LAYERS"
Norm = Callable[..., Tensor]


def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return ops.run(LAYER, x, weight, bias)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "on")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[ops.LayerNorm]:
    """Collect the layers that are run by `ops.run`."""
    found: list[ops.LayerNorm] = []
    original = ops.run
    monkeypatch.setattr(ops, "run", lambda layer, *x: found.append(layer) or original(layer, *x))
    return found


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_plain_passes(case: Case) -> None:
    given = operands(case, torch.float64)
    u, dy, x, weight, bias = given
    wanted = expected(given)
    stats = statistics(x)

    def plain(name: str, *values: Tensor | None) -> tuple[Tensor, ...]:
        result = PLAIN[LAYER.op, name](LAYER, *values)
        return result if isinstance(result, tuple) else (result,)

    y, found = plain("forward", x, weight, bias)
    actual = (
        *(y, *plain("backward_data", dy, x, weight, stats)),
        *plain("backward_weights", dy, x, stats),
        *plain("backward_twice", u, dy, x, weight, stats),
    )
    assert_close(found, stats, "float64-rounding")
    for a, b in zip(actual, wanted, strict=True):
        assert_close(a, b, "float64-rounding")


@pytest.mark.parametrize("with_bias", [True, False])
def test_finite_differences(with_bias: bool) -> None:
    _, _, *drawn = operands(Case(2, 3, 4), torch.float64)
    leaves = [v.clone().requires_grad_() for v in drawn[: 3 if with_bias else 2]]
    assert gradcheck(run, leaves, check_batched_grad=with_bias)
    assert gradgradcheck(run, leaves, check_batched_grad=with_bias)


def third(norm: Norm, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Return derivatives of first, second and third order, as a gradient penalty inside MAML takes them."""
    leaves = [v.detach().clone().requires_grad_() for v in (x, weight, bias)]
    loss = norm(*leaves).tanh().pow(2).sum()
    found: list[Tensor] = []
    for order in range(3):
        gradients = torch.autograd.grad(loss, leaves, create_graph=order < 2)
        found += gradients
        loss = sum((g.sin().sum() for g in gradients), torch.zeros((), dtype=x.dtype))
    return tuple(found)


@pytest.mark.parametrize("case", [CASES["short"], CASES["one-input"]], ids=["short", "one-input"])
def test_third_derivatives(case: Case) -> None:
    """The oracle is not PyTorch's layer norm: its third derivatives contradict finite differences in torch 2.13."""
    *_, x, weight, bias = operands(case, torch.float64)
    for a, b in zip(third(run, x, weight, bias), third(by_hand, x, weight, bias), strict=True):
        assert_close(a, b, "float64-parity")


def test_transforms() -> None:
    """First and second gradients under vmap, weights batched and shared."""
    *_, x, weight, bias = operands(CASES["short"], torch.float64)

    def penalty(norm: Norm) -> Callable[..., Tensor]:
        def loss(*one: Tensor) -> Tensor:
            return norm(*(v[None] for v in one)).tanh().pow(2).sum()

        return lambda *one: sum(g.pow(2).sum() for g in grad(loss, argnums=(0, 1, 2))(*one))

    first, second = (grad(penalty(norm), argnums=(0, 1, 2)) for norm in (run, oracle))
    for a, b in zip(*(vmap(f)(x, weight, bias) for f in (first, second)), strict=True):
        assert_close(a, b, "float64-rounding")
    shared = (0, None, None)
    for a, b in zip(*(vmap(f, in_dims=shared)(x, weight[0], bias[0]) for f in (first, second)), strict=True):
        assert_close(a, b, "float64-rounding")


def test_bf16_is_summed_in_float32() -> None:
    given = operands(Case(2, 3, 4096), torch.bfloat16)
    for a, b in zip((run(*given[2:]),), expected(given), strict=False):
        assert a.dtype == torch.bfloat16
        assert_close(a, b, "task-layer-reduced")
    assert PLAIN[LAYER.op, "forward"](LAYER, *given[2:])[1].dtype == torch.float32


class Norms(nn.Module):
    """Layer norms that the mode replaces, and two that it leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.planes = nn.LayerNorm((3, 4, 5), eps=EPS)
        self.rows = nn.LayerNorm(5, bias=False)
        self.plain = nn.LayerNorm((4, 5), elementwise_affine=False)
        self.register_buffer("shared", torch.randn(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(self.plain(self.rows(self.planes(x))), (4, 5), self.shared)


def test_what_is_replaced(on: None, calls: list[ops.LayerNorm]) -> None:
    module = Norms().double()
    layout = mgf.FlatLayout.from_module(module)
    params = (layout.flatten(module) + 0.1 * torch.randn(3, layout.numel, dtype=torch.float64)).requires_grad_()
    x = torch.randn(3, 2, 3, 4, 5, dtype=torch.float64)
    batched = BatchedModule(module, layout, "network")
    y = batched(params, x)
    assert batched.vectorized
    assert calls[-2:] == [ops.LayerNorm(EPS), ops.LayerNorm(1e-5)]
    assert len(calls) == 4  # once in the trial of vmap
    rows = torch.stack([functional_call(module, layout.views(p), (v,)) for p, v in zip(params, x, strict=True)])
    assert_close(y, rows, "float64-rounding")
    dy = torch.randn_like(y)
    for a, b in zip(*(torch.autograd.grad(z, params, dy) for z in (y, rows)), strict=True):
        assert_close(a, b, "float64-rounding")


def test_autocast_normalises_in_float32(on: None, calls: list[ops.LayerNorm]) -> None:
    """CUDA's autocast does so."""
    x, weight, bias = torch.randn(2, 3, 8, dtype=torch.bfloat16), torch.randn(2, 8), torch.randn(2, 8)
    with torch.autocast("cpu", torch.bfloat16), task_layers(x.device):
        y = vmap(lambda *v: F.layer_norm(v[0], (8,), *v[1:], EPS))(x, weight, bias)
    assert calls and y.dtype == torch.float32
    assert_close(y, oracle(x.double(), weight.double(), bias.double()), "task-layer")


def test_wrong_shapes_are_pytorchs_to_report(on: None, calls: list[ops.LayerNorm]) -> None:
    with task_layers(torch.device("cpu")), pytest.raises(RuntimeError, match="normalized_shape"):
        vmap(lambda x, w: F.layer_norm(x, (4,), w))(torch.randn(2, 3, 5), torch.randn(2, 4))
    assert not calls


@pytest.mark.parametrize("meta", [mgf.Reptile(), mgf.MAML()], ids=["Reptile", "MAML"])
def test_meta_gradients_through_a_penalty(
    meta: mgf.Reptile | mgf.MAML, monkeypatch: pytest.MonkeyPatch, calls: list[ops.LayerNorm]
) -> None:
    """MAML takes third derivatives here."""
    gan = [network.double() for network in figr.dcgan(8, width=2, blocks=1, latent_dim=4)]
    batch = tiny_batch(tasks=3, query=2, image_shape=(1, 8, 8))
    monkeypatch.setenv(SWITCH, "on")
    gradients = []
    for networks in (gan, [with_norms_by_hand(network) for network in gan]):
        inner = mgf.InnerLoop(lr=0.05, steps=2)
        learner = mgf.MetaGAN(*networks, latent_dim=4, inner=inner, meta=meta, executor="torch", loss="wgan-gp")
        calls.clear()
        gradients.append(learner.meta_gradient(batch, noise=learner.draw_noise(batch)))
        assert bool(calls) == (networks is gan)
    actual, wanted = gradients
    assert_close(actual.generator, wanted.generator, "float64-parity")
    assert_close(actual.discriminator, wanted.discriminator, "float64-parity")
