"""Differentiable steps of the stand-in for `higher` against `higher` itself, closed forms and finite differences."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from higher_cases import batches, flat, mse, network, original
from metagan_fast import optim as native
from metagan_fast.dropin import higher as ours
from support import assert_close

SGD, ADAM, ADAMW, RMSPROP = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop
OPTIMIZERS = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.02}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (ADAM, {"lr": 0.05, "eps": 1e-3}),
    (ADAM, {"lr": 0.05, "eps": 1e-3, "betas": (0.5, 0.9), "weight_decay": 0.1}),
    (ADAM, {"lr": 0.05, "eps": 1e-3, "amsgrad": True, "betas": (0.5, 0.3)}),
    (RMSPROP, {"lr": 0.02, "eps": 1e-3}),
    (RMSPROP, {"lr": 0.02, "eps": 1e-3, "momentum": 0.5, "weight_decay": 0.1}),
    (RMSPROP, {"lr": 0.02, "eps": 1e-3, "centered": True, "momentum": 0.5}),
]
NAMES = [f"{kind.__name__}-{'-'.join(options)}" for kind, options in OPTIMIZERS]


@pytest.fixture(scope="module")
def theirs() -> Any:
    return original()


class Partial(nn.Module):
    """A network that uses `late` from the second call on and `never` never; `frozen` requires no grad."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.never = nn.Parameter(torch.randn(3))
        self.late = nn.Linear(5, 2)
        self.frozen = nn.Parameter(torch.randn(5), requires_grad=False)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        hidden = torch.tanh(self.first(x)) * self.frozen
        return self.late(hidden) if self.calls > 1 else hidden[:, :2]


def eps_of(theirs: Any, kind: Any, options: dict, step: int) -> dict[str, Any]:
    """Return an override of eps with which releases of `higher` up to 0.2.1 follow the Adam of today's PyTorch."""
    if kind is not ADAM or hasattr(theirs.optim, "DifferentiableAdamW"):
        return {}
    beta2 = options.get("betas", (0.9, 0.999))[1]
    return {"override": {"eps": [options["eps"] * math.sqrt(1 - beta2**step)]}}


def inner_loop(library: Any, theirs: Any, module: nn.Module, opt: Any, kind: Any, options: dict, **context: Any) -> Any:
    torch.manual_seed(1)
    data = batches(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the original warns of its own RMSprop
        with library.innerloop_ctx(module, opt, **context) as (fmodule, diffopt):
            for step, batch in enumerate(data[:3], 1):
                extra = eps_of(theirs, kind, options, step) if library is theirs else {}
                diffopt.step(mse(fmodule, batch), **extra)
            return fmodule, diffopt, mse(fmodule, data[3])


@pytest.mark.parametrize("copied", [True, False], ids=["copied", "own"])
@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=NAMES)
def test_inner_loop_equals_the_original(theirs: Any, kind: Any, options: dict, copied: bool) -> None:
    """Values, running statistics and meta-gradients agree, however the latter are requested."""
    module = network().double()
    seen = {}
    for library in (theirs, ours):
        twin = copy.deepcopy(module)
        fmodule, _, loss = inner_loop(
            library, theirs, twin, kind(twin.parameters(), **options), kind, options, copy_initial_weights=copied
        )
        middle = torch.autograd.grad(loss, list(fmodule.parameters(time=1)), retain_graph=True)
        initial = torch.autograd.grad(loss, fmodule.init_fast_params, retain_graph=True)
        loss.backward()
        accumulated = [p.grad for p in (fmodule.parameters(time=0) if copied else twin.parameters())]
        assert all(p.grad is None for p in twin.parameters()) is copied
        buffers = [b.double() for b in fmodule.buffers()]
        seen[library] = [flat(x) for x in (fmodule.fast_params, middle, initial, accumulated, buffers)]
        assert torch.equal(flat(twin.parameters()), flat(module.parameters()))
        assert torch.equal(flat(twin.buffers()), flat(module.buffers()))
    for actual, expected in zip(seen[ours], seen[theirs], strict=True):
        assert expected.norm() > 0
        assert_close(actual, expected, "float64-parity")


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=NAMES)
def test_hyper_parameters_have_the_originals_gradients(theirs: Any, kind: Any, options: dict) -> None:
    """Learning rate, decay and other hyper-parameters such as momentum may require grad, group by group."""
    module = network().double()
    learned = {name: value for name, value in options.items() if isinstance(value, float) and name != "eps"}
    gradients = {}
    for library in (theirs, ours):
        half = len(list(module.parameters())) // 2
        groups = [{"params": p} for p in (list(module.parameters())[:half], list(module.parameters())[half:])]
        override = {
            name: [torch.tensor(value * scale, dtype=torch.float64, requires_grad=True) for scale in (1.0, 0.7)]
            for name, value in learned.items()
        }
        opt = kind(groups, **options)
        *_, loss = inner_loop(library, theirs, module, opt, kind, options, override=override)
        gradients[library] = flat(torch.autograd.grad(loss, [x for pair in override.values() for x in pair]))
    assert gradients[theirs].abs().min() > 0
    assert_close(gradients[ours], gradients[theirs], "float64-parity")


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS[1:6], ids=NAMES[1:6])
def test_parameters_without_gradient_wait(theirs: Any, kind: Any, options: dict) -> None:
    """Unused parameters stay as they are, and their state starts when they are first used."""
    module = Partial().double()
    results = {}
    for library in (theirs, ours):
        if kind is ADAM and not hasattr(theirs.optim, "DifferentiableAdamW"):
            options = {**options, "eps": 1e-16}  # releases up to 0.2.1 scale it by the bias, which differs here
        fmodule, diffopt, loss = inner_loop(
            library, theirs, module, kind(module.parameters(), **options), SGD, options, copy_initial_weights=False
        )
        initial = [p for p in module.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, initial, allow_unused=True)
        assert [g is None for g in gradients] == [True, False, False, False, False]
        results[library] = flat(fmodule.fast_params), flat(gradients[1:])
        assert torch.equal(fmodule.never, module.never)
        assert torch.equal(fmodule.frozen, module.frozen)
        assert not fmodule.frozen.requires_grad
        if kind is ADAM:
            steps = [diffopt.state[0][i]["step"] for i in (2, 4)]  # used always, and late
            assert steps == [3, 2]
    for actual, expected in zip(results[ours], results[theirs], strict=True):
        assert_close(actual, expected, "float64-parity")


@pytest.mark.parametrize("kind", [SGD, ADAM, ADAMW, RMSPROP, native.SGD, native.Adam, native.AdamW, native.RMSprop])
@pytest.mark.parametrize("track", [True, False])
def test_steps_go_on_from_the_optimizers_state(kind: Any, track: bool) -> None:
    """Three differentiable steps continue two of an ordinary optimizer as three more of it would."""
    module = network().double()
    options = {"lr": 0.05, "weight_decay": 0.1} | (
        {"momentum": 0.9} if issubclass(kind, (SGD, RMSPROP)) else {"amsgrad": True}
    )
    opt = kind(module.parameters(), **options)
    data = batches(5)
    for batch in data[:2]:
        opt.zero_grad()
        mse(module, batch).backward()
        opt.step()
    before = copy.deepcopy(opt.state_dict()["state"])
    with ours.innerloop_ctx(module, opt, track_higher_grads=track) as (fmodule, diffopt):
        taken = diffopt.state[0][0]
        assert all(x is not taken[name] for name, x in opt.state[module[0].weight].items() if name != "step")
        for batch in data[2:]:
            diffopt.step(mse(fmodule, batch))
    for index, state in opt.state_dict()["state"].items():
        assert all(torch.equal(x, before[index][name]) for name, x in state.items())
    for batch in data[2:]:
        opt.zero_grad()
        mse(module, batch).backward()
        opt.step()
    assert_close(flat(fmodule.parameters()), flat(module.parameters()), "float64-parity")
    assert_close(flat(fmodule.buffers()), flat(module.buffers()), "float64-parity")
    assert all(p.requires_grad and p.is_leaf is not track for p in fmodule.parameters())
    name = "momentum_buffer" if issubclass(kind, (SGD, RMSPROP)) else "exp_avg_sq"
    states = [diffopt.state[0][i][name] for i in range(len(before))]
    assert_close(flat(states), flat(opt.state[p][name] for p in module.parameters()), "float64-parity")


@pytest.mark.parametrize("options", [{"weight_decay": 0.3}, {"weight_decay": 0.3, "amsgrad": True}])
def test_adamw_is_differentiated_as_finite_differences_say(options: dict) -> None:
    """Releases of the original have no AdamW."""
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    data = batches(3)

    def outer(lr: Tensor, first: Tensor) -> Tensor:
        opt = ADAMW(module.parameters(), lr=1.0, eps=1e-2, betas=(0.5, 0.4), **options)
        with ours.innerloop_ctx(module, opt, override={"lr": [lr]}) as (fmodule, diffopt):
            fmodule.update_params([first, *fmodule.fast_params[1:]])
            for batch in data[:2]:
                diffopt.step(mse(fmodule, batch))
            return mse(fmodule, data[2])

    first = module[0].weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(outer, (lr, first))
    if "amsgrad" not in options:  # the largest moment has kinks
        assert torch.autograd.gradgradcheck(outer, (lr, first))


@hypothesis.given(slope=st.floats(0.1, 2), lr=st.floats(0.01, 0.4), steps=st.integers(1, 6), start=st.floats(0.5, 3))
def test_quadratic(slope: float, lr: float, steps: int, start: float) -> None:
    """SGD on `a x^2 / 2` multiplies x by `1 - lr a`; all derivatives follow."""

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.tensor(start, dtype=torch.float64))

        def forward(self) -> Tensor:
            return slope * self.x**2 / 2

    point = Point()
    rate = torch.tensor(lr, dtype=torch.float64, requires_grad=True)
    opt = SGD(point.parameters(), lr=1.0)
    with ours.innerloop_ctx(point, opt, copy_initial_weights=False, override={"lr": [rate]}) as (fmodule, diffopt):
        for _ in range(steps):
            (x,) = diffopt.step(fmodule())
    factor = 1 - lr * slope
    by_start, by_rate = torch.autograd.grad(x, [point.x, rate], create_graph=True)
    (by_both,) = torch.autograd.grad(by_start, rate)
    expected = [factor**steps * start, factor**steps, -steps * slope * factor ** (steps - 1) * start]
    expected.append(-steps * slope * factor ** (steps - 1))
    assert_close(
        torch.stack([x, by_start, by_rate, by_both]), torch.tensor(expected, dtype=torch.float64), "float64-parity"
    )


def test_two_networks_that_depend_on_each_other(theirs: Any) -> None:
    """Each loss reaches both networks' history: gradients by fast weights count the paths that the original counts."""
    data = batches(1)[0][0]
    generator, critic = (nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double() for _ in range(2))
    gradients = {}
    for library in (theirs, ours):
        opts = [SGD(m.parameters(), lr=0.3, momentum=0.5) for m in (generator, critic)]
        with (
            library.innerloop_ctx(generator, opts[0], copy_initial_weights=False) as (g, g_opt),
            library.innerloop_ctx(critic, opts[1], copy_initial_weights=False) as (c, c_opt),
        ):
            for _ in range(3):
                c_opt.step((c(g(data)) - c(data)).square().sum())
                g_opt.step(-c(g(data)).square().sum())
            loss = c(g(data)).square().sum()
            gradients[library] = flat(torch.autograd.grad(loss, [*generator.parameters(), *critic.parameters()]))
    assert_close(gradients[ours], gradients[theirs], "float64-parity")
