"""Scripted, compiled and otherwise bound modules: they adapt as the plain module does, or the error names them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import metagan_fast.dropin.learn2learn as l2l
from metagan_fast.dropin import higher, torchopt
from support import assert_close

STEPS, RATE = 3, 0.1
compiled = functools.partial(torch.compile, backend="eager")  # the compiler's front end, without code generation


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.last = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class Assigned(Net):
    """Module whose forward calls an attribute bound to it."""

    def __init__(self, assign: Callable[[Assigned], Any], name: str = "function") -> None:
        super().__init__()
        setattr(self, name, assign(self))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def method(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class Listed(Net):
    """Module that also holds its layers in a plain tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = self.first, nn.Tanh(), self.last

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Decorated(Net):
    @compiled
    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def replaced(part: Callable[[nn.Module], nn.Module]) -> nn.Module:
    module = Net()
    module.first = part(module.first)
    return module


def changed(change: Callable[[nn.Module], Any], module: nn.Module) -> nn.Module:
    change(module)
    return module


def traced(module: nn.Module) -> nn.Module:
    return torch.jit.trace(module, torch.zeros(2, 4))


SCRIPTED = {
    "scripted": (lambda: torch.jit.script(Net()), "the module itself, of type RecursiveScriptModule, is scripted"),
    "traced": (lambda: traced(Net()), "the module itself, of type TopLevelTracedModule, is scripted"),
    "scripted-part": (lambda: replaced(torch.jit.script), "its part 'first', of type RecursiveScriptModule"),
    "traced-part": (lambda: replaced(traced), "its part 'first', of type TopLevelTracedModule"),
}
COMPILED = {
    "compiled": (lambda: compiled(Net()), "the module itself, of type OptimizedModule, was made by torch.compile"),
    "compiled-part": (lambda: replaced(compiled), "its part 'first', of type OptimizedModule"),
}
CLOSED = {
    "compiled-method": (
        lambda: Assigned(lambda module: compiled(module.method)),
        "the module itself, of type Assigned, was assigned the function 'function'",
    ),
    "compiled-forward": (
        lambda: nn.Sequential(Assigned(lambda module: compiled(module.method), "forward")),
        "its part '0', of type Assigned, was assigned the function 'forward'",
    ),
    "closure": (
        lambda: Assigned(lambda module: lambda x: module.method(x), "forward"),
        "was assigned the function 'forward'",
    ),
}
ADAPTING = {
    "compiled-in-place": lambda: changed(lambda module: module.compile(backend="eager"), Net()),
    "part-compiled-in-place": lambda: changed(lambda module: module.first.compile(backend="eager"), Net()),
    "decorated": Decorated,
    "assigned-method": lambda: Assigned(lambda module: module.method),
    "assigned-forward": lambda: Assigned(lambda module: module.method, "forward"),
    "assigned-partial": lambda: Assigned(lambda module: functools.partial(Assigned.method, module)),
    "listed": Listed,
    "fx": lambda: torch.fx.symbolic_trace(Net()),
    "exported": lambda: torch.export.export(Net(), (torch.zeros(5, 4),)).module(),
    "data-parallel": lambda: nn.DataParallel(Net()),
    "parametrized": lambda: changed(lambda module: parametrizations.orthogonal(module.first), Net()),
    "spectral-norm": lambda: changed(lambda module: nn.utils.spectral_norm(module.first).eval(), Net()),
    "pruned": lambda: changed(lambda module: prune.l1_unstructured(module.first, "weight", 0.3), Net()),
}
pytestmark = [
    pytest.mark.usefixtures("float64_default"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm:FutureWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def compiler() -> Iterator[None]:
    """Clear the compiler's caches."""
    yield
    torch._dynamo.reset()


def mse(module: Callable[[Tensor], Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
    return (module(data[0]) - data[1]).square().mean()


def by_higher(module: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    opt = torch.optim.SGD(module.parameters(), lr=RATE)
    with higher.innerloop_ctx(module, opt, copy_initial_weights=False) as (fmodule, diffopt):
        for _ in range(STEPS):
            diffopt.step(mse(fmodule, data))
        return mse(fmodule, data)


def by_learn2learn(module: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    clone = l2l.algorithms.MAML(module, lr=RATE, allow_unused=True).clone()
    for _ in range(STEPS):
        clone.adapt(mse(clone, data))
    return mse(clone, data)


def by_adapt_batch(module: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    learner = l2l.algorithms.MAML(module, lr=RATE, allow_unused=True)
    return mse(learner.adapt_batch(mse, [torch.stack([x, x]) for x in data], steps=STEPS)[1], data)


def by_torchopt(module: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """Step the module itself by TorchOpt and restore its parameters."""
    optimizer = torchopt.MetaSGD(module, lr=RATE)
    state = torchopt.extract_state_dict(module, by="reference")
    for _ in range(STEPS):
        optimizer.step(mse(module, data))
    loss = mse(module, data)
    torchopt.recover_state_dict(module, state)
    return loss


def by_module_clone(module: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    return by_torchopt(torchopt.module_clone(module, by="copy"), data)


COPYING = [by_higher, by_learn2learn, by_adapt_batch]


def descended(module: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """Return the loss after gradient descent on the module itself."""
    opt = torch.optim.SGD(module.parameters(), lr=RATE)
    for _ in range(STEPS):
        opt.zero_grad()
        mse(module, data).backward()
        opt.step()
    return mse(module, data).detach()


def assert_adapts(adapt: Callable[..., Tensor], module: nn.Module) -> None:
    """Compare with gradient descent, and the meta-gradient's length with finite differences along it."""
    data = torch.randn(5, 4), torch.randn(5, 1)
    before = [p.detach().clone() for p in module.parameters()]
    loss = adapt(module, data)
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    length = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))

    def descended_from(shift: float) -> Tensor:
        with torch.no_grad():
            for p, start, g in zip(module.parameters(), before, gradients, strict=True):
                p.copy_(start + shift / length * g)
        return descended(module, data)

    assert_close(loss, descended_from(0.0), "float64-rounding")
    assert_close(length, (descended_from(1e-5) - descended_from(-1e-5)) / 2e-5, "finite-difference")


@pytest.mark.parametrize(
    ("adapt", "kind"),
    [(adapt, kind) for adapt in COPYING for kind in {**SCRIPTED, **COMPILED, **CLOSED}]
    + [(adapt, kind) for adapt in (by_torchopt, by_module_clone) for kind in SCRIPTED]
    + [(by_module_clone, kind) for kind in CLOSED],
)
def test_modules_that_would_not_adapt_are_refused(adapt: Any, kind: str) -> None:
    make, message = {**SCRIPTED, **COMPILED, **CLOSED}[kind]
    with pytest.raises(ValueError, match=message):
        adapt(make(), (torch.randn(5, 4), torch.randn(5, 1)))


@pytest.mark.parametrize(
    ("adapt", "kind"),
    [(adapt, kind) for adapt in (by_higher, by_learn2learn) for kind in ADAPTING]
    + [(by_adapt_batch, kind) for kind in ("compiled-in-place", "assigned-forward", "listed", "exported")]
    + [(by_torchopt, kind) for kind in ("compiled-in-place", "compiled", "compiled-method")]
    + [(by_module_clone, kind) for kind in ("compiled-in-place", "compiled", "listed")],
)
def test_other_modules_adapt(adapt: Any, kind: str) -> None:
    """Compiled modules adapt, too, in stand-ins that replace the module's own parameters."""
    assert_adapts(adapt, ADAPTING[kind]() if kind in ADAPTING else {**COMPILED, **CLOSED}[kind][0]())


@pytest.mark.parametrize("adapt", COPYING)
def test_what_has_no_parameters_may_be_assigned(adapt: Any) -> None:
    """A plain function may replace the forward pass of a module without parameters."""
    module = nn.Sequential(Net(), nn.Identity())
    module[1].forward = lambda x: 2 * x
    assert_adapts(adapt, module)


@pytest.mark.parametrize("adapt", [by_higher, by_learn2learn])
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, parametrizations.weight_norm], ids=["hook", "parametrization"])
def test_weight_norm_adapts(adapt: Any, norm: Any) -> None:
    """Values only: PyTorch's own second derivatives of it are wrong."""
    module, data = changed(lambda module: norm(module.first), Net()), (torch.randn(5, 4), torch.randn(5, 1))
    before = mse(module, data)
    loss = adapt(module, data)
    assert loss < 0.9 * before
    assert_close(loss, descended(module, data), "float64-rounding")


def test_an_assigned_forward_takes_params() -> None:
    module = Assigned(lambda module: module.method, "forward")
    x, other = torch.randn(5, 4), Net()
    assert torch.equal(higher.monkeypatch(module)(x, params=other.parameters()), other(x))
