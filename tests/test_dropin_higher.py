"""The stand-in for `higher` against `higher` itself, closed forms and finite differences."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from metagan_fast import optim as native
from metagan_fast.dropin import higher as ours
from metagan_fast.dropin._flat_module import join, layout_of
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
    """The library `higher`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("higher", reason="the original, higher, is not installed")


class Partial(nn.Module):
    """Uses `late` from the second call on, `never` never; `frozen` does not require grad."""

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


def network() -> nn.Module:
    shared = nn.Linear(4, 4)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), shared, nn.BatchNorm1d(4), nn.Tanh(), shared, nn.Linear(4, 2))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(6, 4).double(), torch.randn(6, 2).double()) for _ in range(count)]


def mse(module: Callable[..., Tensor], batch: tuple[Tensor, Tensor], **options: Any) -> Tensor:
    return (module(batch[0], **options) - batch[1]).square().mean()


def flat(tensors: Any) -> Tensor:
    return torch.cat([x.detach().reshape(-1) for x in tensors])


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
    """Values, running statistics, and meta-gradients by every way to ask for one."""
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
    """Two groups, each with a learning rate and a decay that require grad; the other numbers, momentum say, too."""
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
            steps = [diffopt.state[0][i]["step"] for i in (2, 4)]  # of a weight used always, and of one used late
            assert steps == [3, 2]
    for actual, expected in zip(results[ours], results[theirs], strict=True):
        assert_close(actual, expected, "float64-parity")


@pytest.mark.parametrize("kind", [SGD, ADAM, ADAMW, RMSPROP, native.SGD, native.Adam, native.AdamW, native.RMSprop])
@pytest.mark.parametrize("track", [True, False])
def test_steps_go_on_from_the_optimizers_state(kind: Any, track: bool) -> None:
    """After two steps of an ordinary optimizer, three more are those of the ordinary optimizer."""
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


def test_params_callbacks_and_history(theirs: Any) -> None:
    """What a loop does with lists of parameters, with and without a functional module."""
    module = network().double()
    data = batches(3)
    results = {}

    def halve(grads: Any) -> list[Tensor]:
        return [g / 2 for g in grads]

    for library in (theirs, ours):
        fmodule = library.monkeypatch(copy.deepcopy(module), copy_initial_weights=False)
        opt = SGD(module.parameters(), lr=0.1, momentum=0.9)
        diffopt = library.get_diff_optim(opt, module.parameters(), grad_callback=halve)
        params = list(fmodule.parameters())
        params = diffopt.step(mse(fmodule, data[0], params=params), params=params)
        params = diffopt.step(
            mse(fmodule, data[1], params=params), params=params, grad_callback=lambda grads: [g * 3 for g in grads]
        )
        fmodule.fast_params = [fmodule.fast_params[0] + 1, *fmodule.fast_params[1:]]
        loss = mse(fmodule, data[2], params=params)
        assert len(fmodule._fast_params) == 5
        assert fmodule.fast_params is fmodule._fast_params[-1]
        assert [name for name, _ in fmodule.named_parameters()] == [name for name, _ in module.named_parameters()]
        assert torch.equal(fmodule[2](data[0][0]), fmodule[5](data[0][0]))
        assert fmodule[0].weight is fmodule.fast_params[0]
        results[library] = flat(params), flat(torch.autograd.grad(loss, list(fmodule.parameters(time=0))))
    for actual, expected in zip(results[ours], results[theirs], strict=True):
        assert_close(actual, expected, "float64-parity")


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers(theirs: Any, kind: Any) -> None:
    module = kind(3, 4, num_layers=2).double()
    x = torch.randn(5, 2, 3).double()
    gradients = {}
    for library in (theirs, ours):
        with library.innerloop_ctx(module, SGD(module.parameters(), lr=0.5)) as (fmodule, diffopt):
            diffopt.step(fmodule(x)[0].square().sum())
            gradients[library] = flat(torch.autograd.grad(fmodule(x)[0].sum(), fmodule.init_fast_params))
    assert_close(gradients[ours], gradients[theirs], "float64-parity")


def test_assigned_parameters_are_an_update() -> None:
    module = network().double()
    fmodule = ours.monkeypatch(module)
    weight = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    fmodule[5].weight = weight * 1  # the layer that occurs twice
    assert [len(fmodule._fast_params), fmodule[2].weight is fmodule.fast_params[2]] == [2, True]
    expected = copy.deepcopy(module)
    with torch.no_grad():
        expected[2].weight.copy_(weight)
    batch = batches(1)[0]
    mse(expected, batch).backward()
    (gradient,) = torch.autograd.grad(mse(fmodule, batch), weight)
    assert_close(gradient, expected[2].weight.grad, "float64-rounding")


def test_created_optimizer_and_registered_type(theirs: Any) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    data = batches(2)
    results = {}
    for library in (theirs, ours):

        class SignDescent(library.optim.DifferentiableOptimizer):
            def _update(self, grouped_grads: Any, **kwargs: Any) -> None:
                for group, grads in zip(self.param_groups, grouped_grads, strict=True):
                    for i, g in enumerate(grads):
                        group["params"][i] = group["params"][i] - group["lr"] * g.sign()

        class Sign(SGD):
            pass

        library.register_optim(Sign, SignDescent)
        fmodule = library.monkeypatch(module)
        for diffopt in (
            library.create_diff_optim(ADAM, {"lr": 0.1, "eps": 1e-16}, fmodel=fmodule),
            library.create_diff_optim(SGD, {"lr": 0.1}, params=list(fmodule.parameters()), fmodel=fmodule),
            library.create_diff_optim(Sign, {"lr": 0.1}, fmodel=fmodule),
        ):
            diffopt.step(mse(fmodule, data[0]))
        results[library] = flat(fmodule.parameters())
    assert_close(results[ours], results[theirs], "float64-parity")


def test_learned_hyper_parameters_return_to_the_optimizer() -> None:
    module = nn.Linear(2, 2)
    opt = ADAM(module.parameters(), lr=0.1, betas=(0.8, 0.9))
    override = ours.optim.get_trainable_opt_params(opt)
    assert override["lr"][0].requires_grad
    assert "foreach" not in override
    with torch.no_grad():
        override["lr"][0].mul_(2)
        override["betas"][0][1].add_(0.05)
    ours.optim.apply_trainable_opt_params(opt, override)
    group = opt.param_groups[0]
    assert group["lr"] == pytest.approx(0.2)
    assert group["betas"] == pytest.approx((0.8, 0.95))
    assert group["amsgrad"] is False


def test_tracking_ends_the_graph() -> None:
    module = network().double()
    module[0].weight.requires_grad_(False)
    data = batches(2)
    opt = SGD(module.parameters(), lr=0.1)
    with ours.innerloop_ctx(module, opt, copy_initial_weights=False, track_higher_grads=False) as (fmodule, diffopt):
        for batch in data:
            loss = mse(fmodule, batch)
            diffopt.step(loss)
            with pytest.raises(RuntimeError, match="second time"):  # the step freed the graph, as it did not keep it
                loss.backward()
        with pytest.raises(ValueError, match="time=2"):
            fmodule.parameters(time=2)
        with pytest.raises(Exception, match="track_higher_grads=True"):
            _ = fmodule.init_fast_params
        mse(fmodule, data[0]).backward()
    assert all(p.grad is None for p in module.parameters())
    assert [p.grad is not None for p in fmodule.parameters()] == [p.requires_grad for p in module.parameters()]
    assert torch.equal(fmodule[0].weight, module[0].weight)


def test_steps_share_one_buffer() -> None:
    """Fast weights are views of one flat result, taken back without a copy."""
    module = network()
    with ours.innerloop_ctx(module, SGD(module.parameters(), lr=0.1)) as (fmodule, diffopt):
        for _ in range(2):
            params = list(fmodule.parameters())
            layout = layout_of(tuple(p.shape for p in params))
            assert len({p.untyped_storage().data_ptr() for p in params}) == 1
            assert join(layout, params).data_ptr() == params[0].data_ptr()
            diffopt.step(fmodule(torch.randn(5, 4)).square().mean())


def test_mixed_dtypes_and_a_device(theirs: Any) -> None:
    module = nn.Sequential(nn.Linear(4, 4).double(), nn.Tanh())
    module.register_parameter("scale", nn.Parameter(torch.ones(4)))
    data = batches(1)[0][0]
    results = {}
    for library in (theirs, ours):
        opt = ADAM(module.parameters(), lr=0.1, eps=1e-12)
        with library.innerloop_ctx(module, opt, device=torch.device("cpu")) as (fmodule, diffopt):
            for _ in range(2):
                diffopt.step((fmodule(data) * fmodule.scale).square().sum())
            assert [p.dtype for p in fmodule.parameters()] == [p.dtype for p in module.parameters()]
            results[library] = [flat([p.double()]) for p in fmodule.parameters()]
    for actual, expected in zip(results[ours], results[theirs], strict=True):
        assert_close(actual, expected, "float32-rounding")


def test_bad_use_is_refused() -> None:
    module = network()
    opt = SGD(module.parameters(), lr=0.1)
    fmodule = ours.monkeypatch(module)
    diffopt = ours.get_diff_optim(opt, module.parameters(), fmodel=fmodule)
    with pytest.raises(ValueError, match="functional already"):
        ours.monkeypatch(fmodule)
    with pytest.raises(ValueError, match="no fast weights"):
        ours.make_functional(module)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="not among the reference parameters"):
        ours.get_diff_optim(opt, network().parameters())
    with pytest.raises(ValueError, match="Adagrad have no differentiable twin"):
        ours.get_diff_optim(torch.optim.Adagrad(module.parameters()), module.parameters())
    with pytest.raises(ValueError, match="needs params="):
        ours.get_diff_optim(opt, module.parameters()).step(torch.zeros((), requires_grad=True))
    with pytest.raises(ValueError, match="'lr' must be a list of one value"):
        diffopt.step(fmodule(torch.zeros(2, 4)).sum(), override={"lr": [0.1, 0.2]})
    with pytest.raises(RuntimeError, match="loss has no graph"):
        diffopt.step(module(torch.zeros(2, 4)).sum().detach())
    with pytest.raises(IndexError, match="one tensor for each of the"):
        fmodule(torch.zeros(2, 4), params=list(fmodule.parameters())[1:])
    with pytest.raises(TypeError, match="must be a tensor"):
        fmodule[0].weight = 3
    with pytest.raises(ValueError, match="True or False"):
        fmodule.track_higher_grads = 1
    with pytest.raises(ValueError, match="fmodel= or params="):
        ours.create_diff_optim(SGD, {"lr": 0.1})
