"""Differentiable Adadelta, Adagrad, Adamax, ASGD and Rprop against `torch.optim`, `higher` and finite differences."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from higher_cases import batches, flat, mse, network, original
from metagan_fast.dropin import _updates
from metagan_fast.dropin import higher as ours
from support import assert_close

ADADELTA, ADAGRAD, ADAMAX = torch.optim.Adadelta, torch.optim.Adagrad, torch.optim.Adamax
ASGD, RPROP = torch.optim.ASGD, torch.optim.Rprop
OPTIMIZERS = [
    (ADADELTA, {"lr": 0.5, "eps": 1e-3}),
    (ADADELTA, {"lr": 0.5, "eps": 1e-3, "rho": 0.6, "weight_decay": 0.1}),
    (ADAGRAD, {"lr": 0.1}),
    (ADAGRAD, {"lr": 0.1, "lr_decay": 0.3, "weight_decay": 0.1, "initial_accumulator_value": 0.2, "eps": 1e-3}),
    (ADAMAX, {"lr": 0.1}),
    (ADAMAX, {"lr": 0.1, "betas": (0.6, 0.7), "weight_decay": 0.1, "eps": 1e-3}),
    (ASGD, {"lr": 0.1}),
    (ASGD, {"lr": 0.1, "lambd": 0.3, "alpha": 0.6, "t0": 1.0, "weight_decay": 0.1}),
    (RPROP, {"lr": 0.01}),
    (RPROP, {"lr": 0.01, "etas": (0.4, 1.5), "step_sizes": (0.005, 0.02)}),
]
NAMES = [f"{kind.__name__}-{'-'.join(options)}" for kind, options in OPTIMIZERS]
STATES = {ADADELTA: "acc_delta", ADAGRAD: "sum", ADAMAX: "exp_inf", ASGD: "ax", RPROP: "step_size"}
pytestmark = pytest.mark.usefixtures("float64_default")  # torch.optim.ASGD rounds its rate to the default dtype


def train(module: nn.Module, opt: torch.optim.Optimizer, data: list[tuple[Tensor, Tensor]]) -> None:
    for batch in data:
        opt.zero_grad()
        mse(module, batch).backward()
        opt.step()


@pytest.mark.parametrize("maximize", [False, True], ids=["down", "up"])
@pytest.mark.parametrize("taken", [0, 2], ids=["new", "goes-on"])
@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=NAMES)
def test_steps_are_torchs(kind: Any, options: dict, taken: int, maximize: bool) -> None:
    """Parameters and state agree, starting from an optimizer that has taken some steps, or none."""
    module = network()
    opt = kind(module.parameters(), **options, maximize=maximize)
    data = batches(5)
    train(module, opt, data[:taken])
    with ours.innerloop_ctx(module, opt) as (fmodule, diffopt):
        for batch in data[taken:]:
            diffopt.step(mse(fmodule, batch))
    train(module, opt, data[taken:])
    assert_close(flat(fmodule.parameters()), flat(module.parameters()), "float64-parity")
    name, count = STATES[kind], len(list(module.parameters()))
    states = [diffopt.state[0][i][name] for i in range(count)]
    assert_close(flat(states), flat(opt.state[p][name] for p in module.parameters()), "float64-parity")
    assert {diffopt.state[0][i]["step"] for i in range(count)} == {5}


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=NAMES)
def test_meta_gradients_are_the_originals(kind: Any, options: dict) -> None:
    """The start is the state after one step: from none, the original's Adagrad fails on newer PyTorch."""
    theirs, module = original(), network()
    opt = kind(module.parameters(), **options)
    data = batches(5)
    train(module, opt, data[:1])
    seen = {}
    for library in (theirs, ours):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the original warns of its own Rprop
            with library.innerloop_ctx(module, opt) as (fmodule, diffopt):
                for batch in data[1:4]:
                    diffopt.step(mse(fmodule, batch))
                gradients = torch.autograd.grad(mse(fmodule, data[4]), fmodule.init_fast_params)
        seen[library] = flat(fmodule.fast_params), flat(gradients)
    for actual, expected in zip(seen[ours], seen[theirs], strict=True):
        assert expected.norm() > 0
        assert_close(actual, expected, "float64-parity")


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [
        (_updates.flat_adadelta, {"lr": 0.5, "rho": 0.6, "eps": 0.1, "weight_decay": 0.3}),
        (_updates.flat_adagrad, {"lr": 0.5, "lr_decay": 0.2, "eps": 0.1, "weight_decay": 0.3}),
        (_updates.flat_adamax, {"lr": 0.5, "beta1": 0.6, "beta2": 0.7, "eps": 0.1, "weight_decay": 0.3}),
        (_updates.flat_asgd, {"lr": 0.5, "lambd": 0.2, "alpha": 0.75, "t0": 0.5, "weight_decay": 0.3}),
        (_updates.flat_rprop, {"lr": 0.5, "etaminus": 0.4, "etaplus": 1.5, "smallest": 0.1, "largest": 0.6}),
    ],
    ids=["adadelta", "adagrad", "adamax", "asgd", "rprop"],
)
def test_derivatives_are_finite_differences(rule: Any, numbers: dict[str, float]) -> None:
    """First and second derivatives by parameters, the gradients of three steps and every hyper-parameter."""

    def steps(params: Tensor, grads: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        options: dict[str, Any] = dict(zip(numbers, values, strict=True))
        if "beta1" in options:
            options["betas"] = options["beta1"], options["beta2"]
        if "etaplus" in options:
            options["etas"] = options["etaminus"], options["etaplus"]
            options["step_sizes"] = options["smallest"], options["largest"]
        state: dict[str, Tensor] = {}
        for step, gradient in enumerate(grads, 1):
            params, state = rule(params, gradient, state, step, options)
        return params, *(x for x in state.values() if x.requires_grad)

    inputs = [torch.randn(4), torch.randn(3, 4), *(torch.tensor(value) for value in numbers.values())]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(steps, inputs)
    assert torch.autograd.gradgradcheck(steps, inputs)


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=NAMES)
def test_gradients_that_are_zero_leave_meta_gradients_finite(kind: Any, options: dict) -> None:
    """A root has an infinite slope at 0: dead units must not turn a meta-gradient into NaN."""
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        module[0].bias[:3] = -100.0
    with ours.innerloop_ctx(module, kind(module.parameters(), **options)) as (fmodule, diffopt):
        for batch in batches(3):
            diffopt.step(mse(fmodule, batch))
        gradients = torch.autograd.grad(mse(fmodule, batch), fmodule.init_fast_params)
    assert flat(gradients).isfinite().all()
    assert flat(gradients).norm() > 0


def test_a_new_learning_rate_of_asgd_counts_from_the_step_after() -> None:
    """The rate is set by the previous step, as in `torch.optim.ASGD` and the original."""
    module = network()
    opt = ASGD(module.parameters(), lr=0.1)
    rates = [torch.tensor(lr, requires_grad=True) for lr in (0.1, 0.2, 0.3)]
    data = batches(3)
    with ours.innerloop_ctx(module, opt) as (fmodule, diffopt):
        for lr, batch in zip(rates, data, strict=True):
            diffopt.step(mse(fmodule, batch), override={"lr": [lr]})
        by_rates = torch.autograd.grad(mse(fmodule, data[0]), rates, allow_unused=True)
    for lr, batch in zip(rates, data, strict=True):
        opt.param_groups[0]["lr"] = lr.item()
        train(module, opt, [batch])
    assert_close(flat(fmodule.parameters()), flat(module.parameters()), "float64-parity")
    assert [g is None for g in by_rates] == [False, False, True]
