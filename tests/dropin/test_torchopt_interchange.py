"""TorchOpt's stand-in beside TorchOpt: states as trees, copies, chains, and objects of either library in the other."""

from __future__ import annotations

import copy
import importlib.util
import logging
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils import _pytree

from metagan_fast._utils import log
from metagan_fast.dropin import torchopt as ours
from originals import coverage
from support import ROOT, assert_close, join

EXACT = {"betas": (0.5, 0.75), "eps": 1e-3}  # exact in float32, where the original computes their powers
TRANSFORMATIONS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "adam": {"lr": 0.05, **EXACT},
    "adamw": {"lr": 0.05, "weight_decay": 0.1, **EXACT},
    "rmsprop": {"lr": 0.02, "eps": 1e-3, "momentum": 0.5, "centered": True},
}
META = {"sgd": "MetaSGD", "adam": "MetaAdam", "adamw": "MetaAdamW", "rmsprop": "MetaRMSProp"}
every_kind = pytest.mark.parametrize("kind", TRANSFORMATIONS)
COPIES: dict[str, Callable[[Any], Any]] = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}
every_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Return the library TorchOpt."""
    return pytest.importorskip("torchopt", reason="the original, torchopt, is not installed")


def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def batch(*sizes: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(*sizes, 4).double(), torch.randn(*sizes, 2).double()


def mse(module: Callable[..., Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
    return (module(data[0]) - data[1]).square().mean()


def parameters(module: nn.Module) -> Tensor:
    return join(dict(module.named_parameters())).detach()


@pytest.mark.parametrize(
    ("kind", "more"), [*((kind, {}) for kind in TRANSFORMATIONS), ("adam", {"moment_requires_grad": True})]
)
def test_states_pass_through_vmap(kind: str, more: dict[str, Any]) -> None:
    """An ensemble under vmap, states passed through each step, matches members stepped one by one."""
    module, optimizer, data = network(), getattr(ours, kind)(**TRANSFORMATIONS[kind], **more), batch(3, 6)
    stacked = {name: torch.stack([(1 + i) * p.detach() for i in range(3)]) for name, p in module.named_parameters()}

    def start(params: Any) -> Any:
        return params, optimizer.init(params)

    def step(training: Any, data: Any) -> Any:
        params, state = training
        grads = grad(lambda params: mse(lambda x: functional_call(module, params, (x,)), data))(params)
        updates, state = optimizer.update(grads, state, params=params, inplace=False)
        return ours.apply_updates(params, updates, inplace=False), state

    together = vmap(start)(stacked)
    for _ in range(3):
        together = vmap(step)(together, data)
    for member in range(3):
        alone = start({name: p[member] for name, p in stacked.items()})
        for _ in range(3):
            alone = step(alone, (data[0][member], data[1][member]))
        assert_close(join({name: p[member] for name, p in together[0].items()}), join(alone[0]), "float64-rounding")
        for rows, own in zip(_pytree.tree_leaves(together[1]), _pytree.tree_leaves(alone[1]), strict=True):
            assert_close(rows[member], own, "float64-rounding")


def stepped(kind: str) -> tuple[nn.Module, Any]:
    module = network()
    optimizer = getattr(ours, META[kind])(module, **TRANSFORMATIONS[kind])
    for _ in range(2):
        optimizer.step(mse(module, batch(6)))
    return module, optimizer


@every_kind
@pytest.mark.parametrize("library", ["torch", "optree"])
def test_states_are_trees_of_their_buffers(kind: str, library: str) -> None:
    trees: Any = _pytree
    if library == "optree":
        trees = pytest.importorskip("optree", reason="optree, with which TorchOpt reads trees, is not installed")
    _, optimizer = stepped(kind)
    state = optimizer.state_dict()
    buffers = list(state[0][0].state.values())
    assert buffers and all(x is y for x, y in zip(trees.tree_leaves(state), buffers, strict=True))
    paths = _pytree.tree_flatten_with_path(state)[0]
    assert [str(path[-1]) for path, _ in paths] == [f"[{name!r}]" for name in state[0][0].state]
    doubled = trees.tree_map(lambda x: 2 * x, state)
    assert type(doubled[0][0]) is type(state[0][0])
    assert [doubled[0][0].positions, doubled[0][0].step] == [state[0][0].positions, 2]
    for x, y in zip(doubled[0][0].state.values(), buffers, strict=True):
        assert torch.equal(x, 2 * y)


@every_kind
@every_copy
def test_copies_of_optimizers_go_on_alike(kind: str, copied: Callable[[Any], Any]) -> None:
    """Copies work before the first step and after detached steps; a copy optimizes the copied module."""
    module, optimizer = network(), None
    for steps in range(2):
        if steps:
            module, optimizer = stepped(kind)
            ours.stop_gradient(module)
            ours.stop_gradient(optimizer)
        else:
            optimizer = getattr(ours, META[kind])(module, **TRANSFORMATIONS[kind])
        twin, twin_optimizer = copied((module, optimizer))
        before = parameters(module)
        twin_optimizer.step(mse(twin, batch(6)))
        assert torch.equal(parameters(module), before)
        optimizer.step(mse(module, batch(6)))
        assert torch.equal(parameters(twin), parameters(module))
        assert not torch.equal(parameters(module), before)


@every_copy
def test_copies_of_transformations(copied: Callable[[Any], Any]) -> None:
    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    made = [getattr(ours, kind)(**options) for kind, options in TRANSFORMATIONS.items()]
    made += [ours.sgd(rate), ours.chain(*made), ours.chain.flat(*made), ours.base.identity()]
    params = {"b": torch.ones(3).double(), "a": torch.ones(2, 2).double()}
    for transformation in made:
        twin = copied(transformation)
        assert type(twin) is type(transformation)
        results = []
        for each in (transformation, twin):
            updates, state = each.update(params, each.init(params), params=params, inplace=False)
            updates, _ = each.update(updates, copied(_pytree.tree_map(Tensor.detach, state)), params=params)
            results.append(join(updates))
        assert torch.equal(*results)
        assert copied(ours.FuncOptimizer(transformation)).optim_state is None
    assert copied(made[4]).options["lr"].requires_grad


def test_chains_of_identities(theirs: Any) -> None:
    """As in the original, the identity adds nothing and a chain of one element is that element."""
    for library in (theirs, ours):
        chain, identity, adam = library.chain, library.base.identity, library.adam(lr=0.1)
        kind = library.base.ChainedGradientTransformation
        for nothing in (chain(), chain(identity()), chain(identity(), identity()), chain.flat()):
            assert nothing == identity()
        assert identity().chain(identity()) == identity()
        assert isinstance(identity().chain(identity()), kind)
        assert isinstance(identity(), library.base.IdentityGradientTransformation)
        assert chain(adam) is adam
        assert isinstance(adam.chain(identity()), kind)
        for chained in (adam.chain(identity()), identity().chain(adam), chain(identity(), adam, identity())):
            assert chained == adam
            assert chained != library.adam(lr=0.1)
        assert hash(adam.chain(identity())) == hash(chain(adam, identity()))
        assert adam.chain(adam) != adam
        assert chain(adam, chain(adam, adam)) == chain(adam, adam, adam)
        assert library.combine.chain_flat is chain.flat
        updates = (torch.ones(2), None)
        assert identity().update(updates, identity().init(updates))[0] is updates
    assert repr(ours.base.identity().chain(ours.base.identity())).startswith("ChainedGradientTransformation(Identity")


def test_flat_chains_are_chains() -> None:
    """Leaves come in order, None included, in the tree's structure."""
    seen = []

    def record(updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> tuple[Any, Any]:
        seen.append((updates, params))
        return updates, state

    recorder = ours.GradientTransformation(lambda params: len(params), record)
    params = {"b": (torch.ones(1), None), "a": torch.zeros(2)}
    chained, flat = ours.chain(ours.sgd(0.5), ours.sgd(0.5)), ours.chain.flat(ours.sgd(0.5), recorder, ours.sgd(0.5))
    state = flat.init(params)
    assert state[1] == 3
    updates, _ = flat.update(params, state, params=params)
    expected, _ = chained.update(params, chained.init(params), params=params)
    assert list(updates) == ["b", "a"] and updates["b"][1] is None
    assert torch.equal(updates["b"][0], expected["b"][0]) and torch.equal(updates["a"], expected["a"])
    assert [x is None for x in seen[0][0]] == [False, False, True]
    assert seen[0][1][0] is params["a"] and seen[0][1][1] is params["b"][0]
    flat.update(params, state)
    assert seen[1][1] is None


@every_kind
def test_transformations_of_either_library_serve_the_other(theirs: Any, kind: str) -> None:
    """Optimizers of either library run transformations of both, alone and chained."""
    data, options = batch(6), TRANSFORMATIONS[kind]
    results: dict[str, list[Tensor]] = {}
    for source in (theirs, ours):
        transformation = getattr(source, kind)(**options)
        for library in (theirs, ours):
            for name, impl in (
                ("alone", transformation),
                ("chained", library.chain(theirs.clip_grad_norm(0.1), transformation)),
                ("method", transformation.chain(theirs.base.identity())),
            ):
                module = network()
                initial = list(module.parameters())
                meta = library.MetaOptimizer(module, impl)
                for _ in range(2):
                    meta.step(mse(module, data))
                state = library.extract_state_dict(meta, by="copy")
                library.recover_state_dict(meta, state)
                meta.step(mse(module, data))
                slopes = torch.autograd.grad(mse(module, data), initial)

                params = dict(network().named_parameters())
                functional = library.FuncOptimizer(impl)
                for _ in range(2):
                    loss = mse(lambda x, p=params: functional_call(network(), p, (x,)), data)
                    params = functional.step(loss, params)
                results.setdefault(name, []).append(
                    torch.cat([parameters(module), *(x.reshape(-1) for x in slopes), join(params).detach()])
                )
            module = network()
            optimizer = library.Optimizer(module.parameters(), transformation)  # ours is the original's, handed on
            for _ in range(2):
                optimizer.zero_grad()
                mse(module, data).backward()
                optimizer.step()
            results.setdefault("outer", []).append(parameters(module))
    for name, found in results.items():
        assert len(found) == 4, name
        for actual in found[1:]:
            assert_close(actual, found[0], "float64-parity")


@every_kind
def test_states_in_the_originals_optimizers_are_detached(theirs: Any, kind: str) -> None:
    """`stop_gradient` of the original detaches in place; later steps start from the same numbers."""
    module = network()
    optimizer = theirs.MetaOptimizer(module, getattr(ours, kind)(**TRANSFORMATIONS[kind]))
    optimizer.step(mse(module, batch(6)))
    before = [x.detach().clone() for x in _pytree.tree_leaves(optimizer.state_dict())]
    theirs.stop_gradient(optimizer)
    after = _pytree.tree_leaves(optimizer.state_dict())
    assert before and all(torch.equal(x, y) and x.grad_fn is None for x, y in zip(after, before, strict=True))
    theirs.stop_gradient(module)
    optimizer.step(mse(module, batch(6)))
    expected = network()
    other = getattr(ours, META[kind])(expected, **TRANSFORMATIONS[kind])
    for _ in range(2):
        other.step(mse(expected, batch(6)))
    assert_close(parameters(module), parameters(expected), "float64-parity")


def test_optimizers_of_the_original_have_their_states_kept(theirs: Any) -> None:
    module, data = network(), batch(6)
    optimizer = theirs.MetaSGD(module, lr=0.1, momentum=0.9)
    optimizer.step(mse(module, data))
    states = ours.extract_state_dict(module), ours.extract_state_dict(optimizer)
    optimizer.step(mse(module, data))
    once = parameters(module)
    for target, state in zip((module, optimizer), states, strict=True):
        ours.recover_state_dict(target, state)
    optimizer.step(mse(module, data))
    assert torch.equal(parameters(module), once)
    ours.stop_gradient(optimizer)
    assert all(x.grad_fn is None for x in _pytree.tree_leaves(optimizer.state_dict()) if isinstance(x, Tensor))
    with pytest.raises(TypeError, match="optimizer for the cloned module"):
        ours.module_clone(optimizer)


def test_names_that_are_not_covered(theirs: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(log, "_said", set())
    with caplog.at_level(logging.WARNING):
        assert ours.Optimizer is ours.optim.Optimizer is theirs.Optimizer
        assert ours.optim.meta.MetaAdaMax is ours.MetaAdaMax is theirs.MetaAdaMax
        assert ours.schedule is theirs.schedule
        assert ours.alias.adagrad is theirs.adagrad
    assert len(caplog.records) == 6
    with pytest.raises(AttributeError, match=r"neither .* nor the original, torchopt, has 'nothing'"):
        _ = ours.nothing


def test_without_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchopt", None)
    monkeypatch.setitem(sys.modules, "torchopt.base", None)
    monkeypatch.setitem(sys.modules, "torchopt.optim", None)
    assert ours.base.__file__ is not None
    name = f"{ours.__name__}.base_alone"
    spec = importlib.util.spec_from_file_location(name, ours.base.__file__)
    assert spec is not None and spec.loader is not None
    alone: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    assert [x.__module__ for x in alone.IdentityGradientTransformation.__mro__[:3]] == [name] * 3
    chained = alone.identity().chain(alone.GradientTransformation(lambda params: 3, lambda u, s, **_: (u, s + 1)))
    assert chained.update("updates", chained.init(())) == ("updates", (4,))
    with pytest.raises(AttributeError, match=r"does not cover 'Optimizer'.*torchopt, is not installed: install it"):
        _ = ours.Optimizer
    with pytest.raises(AttributeError, match="does not cover 'Optimizer'"):
        _ = ours.optim.Optimizer


def test_the_migration_page_counts_what_is_covered(theirs: Any) -> None:
    page = ROOT.joinpath("docs", "migrate", "torchopt.md").read_text()
    modules = ("alias", "base", "combine", "update", "utils")
    rows = [coverage(ours, theirs), *(coverage(getattr(ours, name), getattr(theirs, name)) for name in modules)]
    assert [row for row in rows if row not in page] == []
    assert ours.__version__ == theirs.__version__
