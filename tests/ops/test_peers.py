"""Second-order gradients through unrolled optimizers, against the common libraries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metagan_fast import FlatLayout, functional
from support import assert_close

STEPS, RATE = 5, 0.05
TINY = 1e-30  # higher adds eps before the bias correction, torch and the ops after it: small enough not to matter


class Regression(nn.Module):
    """A small problem with curvature."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        self.inputs, self.targets = torch.randn(8, 3).double(), torch.randn(8, 1).double()

    def forward(self) -> Tensor:
        return ((self.layers(self.inputs) - self.targets) ** 2).mean()


def unroll(module: nn.Module, op: str, lr: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Return the meta-gradient by the initial parameters, flat, and by the learning rate."""
    layout = FlatLayout.from_module(module)
    initial = layout.flatten(module).requires_grad_()

    def loss(flat: Tensor) -> Tensor:
        return torch.func.functional_call(module, layout.views(flat))

    params, state = initial, {"m": torch.zeros_like(initial), "v": torch.zeros_like(initial)}
    for step in range(1, STEPS + 1):
        (grads,) = torch.autograd.grad(loss(params), params, create_graph=True)
        if op == "adam_step":
            params, state["m"], state["v"] = functional.adam_step(
                params, grads, state["m"], state["v"], lr, step=step, **options
            )
        elif options.get("momentum"):
            params, state["m"] = functional.sgd_step(params, grads, lr, momentum_buffer=state["m"], **options)
        else:
            params = functional.sgd_step(params, grads, lr, **options)
    by_initial, by_rate = torch.autograd.grad(loss(params), (initial, lr))
    return by_initial, by_rate


@pytest.mark.parametrize(
    "op, optimizer, options",
    [
        ("sgd_step", torch.optim.SGD, {}),
        ("sgd_step", torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
        ("adam_step", torch.optim.Adam, {"eps": TINY}),
        ("adam_step", torch.optim.Adam, {"weight_decay": 0.01, "betas": (0.5, 0.9), "eps": TINY}),
    ],
)
def test_higher(op: str, optimizer: type[torch.optim.Optimizer], options: dict[str, Any]) -> None:
    higher = pytest.importorskip("higher")
    module = Regression()
    lr = torch.tensor(RATE, dtype=torch.float64, requires_grad=True)
    by_initial, by_rate = unroll(module, op, lr, **options)

    rate = torch.tensor(RATE, dtype=torch.float64, requires_grad=True)
    stepper = optimizer(module.parameters(), lr=RATE, **options)
    with higher.innerloop_ctx(module, stepper, override={"lr": [rate]}) as (
        functional_module,
        differentiable,
    ):
        for _ in range(STEPS):
            differentiable.step(functional_module())
        start = list(functional_module.parameters(time=0))
        *initial, expected_rate = torch.autograd.grad(functional_module(), (*start, rate))
    assert_close(by_initial, flatten(module, initial), "float64-parity")
    assert_close(by_rate, expected_rate, "float64-parity")


@pytest.fixture
def default_float64() -> Iterator[None]:
    """TorchOpt computes its bias corrections in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("default_float64")
@pytest.mark.parametrize("eps_root", [0.0, 1e-8])
def test_torchopt(eps_root: float) -> None:
    torchopt = pytest.importorskip("torchopt")
    module = Regression()
    lr = torch.tensor(RATE, dtype=torch.float64, requires_grad=True)
    by_initial, _ = unroll(module, "adam_step", lr, eps_root=eps_root)

    start = [parameter.detach().clone().requires_grad_() for parameter in module.parameters()]
    names = [name for name, _ in module.named_parameters()]
    optimizer = torchopt.adam(RATE, eps=1e-8, eps_root=eps_root)
    params = tuple(start)
    state = optimizer.init(params)

    def loss(values: tuple[Tensor, ...]) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)))

    for _ in range(STEPS):
        grads = torch.autograd.grad(loss(params), params, create_graph=True)
        updates, state = optimizer.update(grads, state, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
    expected = torch.autograd.grad(loss(params), start)
    assert_close(by_initial, flatten(module, expected), "float64-parity")


def flatten(module: nn.Module, values: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    names = [name for name, _ in module.named_parameters()]
    return FlatLayout.from_module(module).flatten(dict(zip(names, values, strict=True)))
