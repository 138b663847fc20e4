"""The stand-in for TorchOpt against TorchOpt itself and closed forms."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metagan_fast.dropin import torchopt as ours
from support import assert_close

SGD, ADAM, ADAMW, RMSPROP = "sgd", "adam", "adamw", "rmsprop"
META = {SGD: "MetaSGD", ADAM: "MetaAdam", ADAMW: "MetaAdamW", RMSPROP: "MetaRMSProp"}
EXACT = {"betas": (0.5, 0.75)}  # exact in float32, where the original computes their powers
OPTIMIZERS = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.02}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True, "weight_decay": 0.02}),
    (ADAM, {"lr": 0.05, "eps": 1e-3, **EXACT}),
    (ADAM, {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.1, "eps_root": 1e-4, "maximize": True, **EXACT}),
    (ADAMW, {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.3, "maximize": True, **EXACT}),
    (RMSPROP, {"lr": 0.02, "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
    (RMSPROP, {"lr": 0.02, "eps": 1e-3, "momentum": 0.5, "centered": True, "initial_scale": 1.0}),
    (RMSPROP, {"lr": 0.02, "eps": 1e-3, "momentum": 0.5, "nesterov": True, "centered": True, "weight_decay": 0.1}),
    (RMSPROP, {"lr": 0.02, "eps": 1e-3, "momentum": 0.5}),
]
NAMES = [f"{kind}-{'-'.join(options)}" for kind, options in OPTIMIZERS]


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Return the library TorchOpt."""
    return pytest.importorskip("torchopt", reason="the original, torchopt, is not installed")


def test_signatures_are_the_originals(theirs: Any) -> None:
    """Arguments have the original's names, kinds, order and defaults, except for AdamW's masks."""

    def arguments(function: Any) -> list[tuple[str, Any, Any]]:
        of = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in of if p.name != "mask"]

    names = [name for name in ours.__all__ if callable(getattr(theirs, name, None))]
    assert {"sgd", "MetaSGD", "FuncOptimizer", "extract_state_dict"} < set(names)
    different = [name for name in names if arguments(getattr(ours, name)) != arguments(getattr(theirs, name))]
    assert not different


class Network(nn.Module):
    """Network that uses the layer `late` from the second call on."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 2, bias=False))
        self.late = nn.Linear(2, 2)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.body(x)
        return self.late(y) if self.calls > 1 else y


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(6, 4).double(), torch.randn(6, 2).double()) for _ in range(count)]


def mse(module: Callable[..., Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    return (module(batch[0]) - batch[1]).square().mean()


def flat(tensors: Any) -> Tensor:
    return torch.cat([x.detach().reshape(-1) for x in tensors])


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=NAMES)
def test_meta_optimizer_equals_the_original(theirs: Any, kind: str, options: dict) -> None:
    """Values and meta-gradients agree after four steps, by initial and by intermediate parameters."""
    if options.get("momentum"):  # the original's buffer is lost where a gradient was missing
        module: nn.Module = Network().body
    else:
        module = Network()
    module = module.double()
    data, results = batches(5), {}
    for library in (theirs, ours):
        twin = copy.deepcopy(module)
        initial = list(twin.parameters())
        optimizer = getattr(library, META[kind])(twin, **options)
        for step, batch in enumerate(data[:4]):
            optimizer.step(mse(twin, batch))
            if step == 1:
                middle = list(twin.parameters())
        assert all(not isinstance(p, nn.Parameter) for p in twin.parameters())
        loss = mse(twin, data[4])
        gradients = torch.autograd.grad(loss, middle, retain_graph=True)
        loss.backward()
        results[library] = [flat(twin.parameters()), flat(gradients), flat(p.grad for p in initial)]
        assert torch.equal(flat(initial), flat(module.parameters()))
    for actual, expected in zip(results[ours], results[theirs], strict=True):
        assert expected.norm() > 0
        assert_close(actual, expected, "float64-parity")


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=NAMES)
@pytest.mark.parametrize("inplace", [True, False])
def test_functional_optimizer_equals_the_original(theirs: Any, kind: str, options: dict, inplace: bool) -> None:
    """A dictionary of parameters, not in alphabetical order, is updated; with a graph when not in place."""
    module = Network().body.double()
    data, results = batches(4), {}
    for library in (theirs, ours):
        transformation = getattr(library, kind)(**options)
        initial = {name: p.detach().clone().requires_grad_() for name, p in reversed(list(module.named_parameters()))}
        params, state = initial, transformation.init(initial)
        for batch in data[:3]:
            loss = mse(lambda x, params=params: functional_call(module, params, (x,)), batch)
            found = torch.autograd.grad(loss, list(params.values()), create_graph=not inplace)
            grads = dict(zip(params, found, strict=True))
            updates, state = transformation.update(grads, state, params=params, inplace=inplace)
            new_params = library.apply_updates(params, updates, inplace=inplace)
            assert (new_params["0.weight"] is params["0.weight"]) is inplace
            params = new_params
        results[library] = [flat(params[name] for name in sorted(params))]
        if not inplace:
            loss = mse(lambda x, params=params: functional_call(module, params, (x,)), data[3])
            results[library].append(flat(torch.autograd.grad(loss, [initial[name] for name in sorted(initial)])))
    for actual, expected in zip(results[ours], results[theirs], strict=True):
        assert_close(actual, expected, "float64-parity")


@pytest.mark.parametrize("kind", [SGD, ADAM, ADAMW, RMSPROP])
def test_learning_rate_schedule_and_its_gradient(theirs: Any, kind: str) -> None:
    """A schedule may depend on the step count and on a learned number."""
    module = Network().body.double()
    data, results = batches(4), {}
    for library in (theirs, ours):
        twin = copy.deepcopy(module)
        base = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
        options = {SGD: {}, RMSPROP: {"eps": 1e-3}}.get(kind, {"eps": 1e-3, **EXACT})
        optimizer = getattr(library, META[kind])(twin, lr=lambda count, base=base: base / (count + 1), **options)
        for batch in data[:3]:
            optimizer.step(mse(twin, batch))
        (gradient,) = torch.autograd.grad(mse(twin, data[3]), base)
        results[library] = [flat(twin.parameters()), gradient]
    for actual, expected in zip(results[ours], results[theirs], strict=True):
        assert_close(actual, expected, "float64-parity")


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=NAMES)
def test_state_is_extracted_and_recovered(theirs: Any, kind: str, options: dict) -> None:
    """Two tasks start from one extracted state after a warm-up, as in MAML loops."""
    if options.get("dampening"):
        options = {**options, "dampening": 0.0}  # after a recovery the original dampens a first step
    module = Network().body.double()
    data, results = batches(4), {}
    for library in (theirs, ours):
        twin = copy.deepcopy(module)
        initial = list(twin.parameters())
        optimizer = getattr(library, META[kind])(twin, **options)
        optimizer.step(mse(twin, data[0]))
        network_state = library.extract_state_dict(twin, by="reference", detach_buffers=True)
        optimizer_state = library.extract_state_dict(optimizer, by="copy")
        total = 0
        for batch in data[1:3]:
            optimizer.step(mse(twin, batch))
            optimizer.step(mse(twin, batch))
            total = total + mse(twin, data[3])
            library.recover_state_dict(twin, network_state)
            library.recover_state_dict(optimizer, optimizer_state)
        total.backward()
        tensors = [*twin.parameters(), *(b for b in twin.buffers() if b.is_floating_point())]
        results[library] = [flat(tensors), flat(p.grad for p in initial), total]
    for actual, expected in zip(results[ours], results[theirs], strict=True):
        assert_close(actual, expected, "float64-parity")


@pytest.mark.parametrize("by", ["reference", "copy", "deepcopy", "clone"])
@pytest.mark.parametrize("device", [None, "meta"])
def test_extracted_tensors(by: str, device: str | None) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    state = ours.extract_state_dict(module, by=by, device=device)
    assert [sorted(p) for p in state.params] == [["bias", "weight"], ["bias", "weight"]]
    assert [len(b) for b in state.buffers] == [3]
    weight = state.params[0]["weight"]
    assert (weight is module[0].weight) is (by == "reference" and device is None)
    assert (weight.grad_fn is None) is (by == "deepcopy" or (by == "reference" and device is None))
    assert weight.requires_grad
    assert weight.is_meta is (device == "meta")
    assert ours.extract_state_dict(module, with_buffers=False).buffers == ()


def test_gradients_are_stopped() -> None:
    """Modules, optimizers, states and trees are detached; values and requires_grad stay."""
    module = Network().body.double()
    optimizer = ours.MetaAdam(module, lr=0.1)
    for batch in batches(2):
        optimizer.step(mse(module, batch))
    before, weight = flat(module.parameters()), module[0].weight
    (part,) = optimizer.state_dict()[0]
    moments = part.state["exp_avg"].detach().clone()
    taken = ours.extract_state_dict(module, by="copy")
    assert all(
        x is not None for x in (weight.grad_fn, part.state["exp_avg"].grad_fn, taken.params[0]["weight"].grad_fn)
    )
    ours.stop_gradient(module)
    ours.stop_gradient(optimizer)
    ours.module_detach_(taken)
    assert module[0].weight is weight
    for x in (weight, part.state["exp_avg"], taken.params[0]["weight"]):
        assert x.grad_fn is None and x.requires_grad
    assert torch.equal(flat(module.parameters()), before)
    assert torch.equal(part.state["exp_avg"], moments)
    tensor = torch.ones(2, requires_grad=True) * 2
    ours.stop_gradient({"a": [tensor, None]})
    assert tensor.is_leaf and tensor.requires_grad


@pytest.mark.parametrize("by", ["reference", "copy", "deepcopy"])
def test_cloned_module(by: str) -> None:
    module = Network().body.double()
    ours.MetaSGD(module, lr=0.1).step(mse(module, batches(1)[0]))
    clone = ours.module_clone(module, by=by)
    assert type(clone) is type(module)
    assert (clone[0].weight is module[0].weight) is (by == "reference")
    assert (clone[0].weight.grad_fn is None) is (by == "deepcopy")
    assert torch.equal(flat(clone.parameters()), flat(module.parameters()))


def test_parameters_share_one_buffer_and_stay_tied() -> None:
    """Parameters lie in one flat result after a step; a tied one gets both gradients, as in `torch.optim`."""
    shared = nn.Linear(4, 4)
    module = nn.Sequential(shared, nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2)).double()
    module[4].weight = shared.weight
    module[2].bias.requires_grad_(False)
    expected, data = copy.deepcopy(module), batches(3)
    ordinary = torch.optim.Adam([p for p in expected.parameters() if p.requires_grad], lr=0.1)
    optimizer = ours.MetaAdam(module, lr=0.1)
    for batch in data:
        optimizer.step(mse(module, batch))
        ordinary.zero_grad()
        mse(expected, batch).backward()
        ordinary.step()
    assert module[4].weight is module[0].weight
    assert isinstance(module[2].bias, nn.Parameter)
    assert len({p.untyped_storage().data_ptr() for p in module.parameters()}) == 2
    assert_close(flat(module.parameters()), flat(expected.parameters()), "float64-parity")


def test_sgd_on_a_quadratic() -> None:
    """Every derivative of K steps on `a x^2 / 2`, which multiply x by `1 - lr a`."""

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    point = Point()
    start, slope, lr, steps = point.x, 0.8, torch.tensor(0.3, dtype=torch.float64, requires_grad=True), 4
    optimizer = ours.MetaSGD(point, lr=lr)
    for _ in range(steps):
        optimizer.step(slope * point.x**2 / 2)
    factor = 1 - 0.3 * slope
    by_start, by_rate = torch.autograd.grad(point.x, [start, lr])
    expected = [factor**steps * 2, factor**steps, -steps * slope * factor ** (steps - 1) * 2]
    actual = torch.stack([point.x, by_start, by_rate])
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), "float64-rounding")


def test_unused_elements_have_finite_meta_gradients() -> None:
    """Where the gradient is exactly 0, Adam's and RMSprop's roots have derivative 0; the original gives NaN."""
    for optimizer in (ours.MetaAdam, ours.MetaRMSProp):
        module = nn.Linear(3, 2).double()
        weight = module.weight
        x = torch.tensor([[1.0, 0.0, 2.0]], dtype=torch.float64)
        wrapped = optimizer(module, lr=0.1)
        wrapped.step(module(x).square().sum())
        (gradient,) = torch.autograd.grad(module(x + 1).square().sum(), weight)
        assert gradient.isfinite().all() and gradient.norm() > 0


def test_functional_optimizer_under_vmap() -> None:
    """A batch of parameters takes the steps that each takes alone."""
    optimizer = ours.adam(lr=0.1, weight_decay=0.1)

    def steps(w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        params = {"w": w, "b": b}
        state = optimizer.init(params)
        for scale in (1.0, 2.0):
            grads = {name: p.cos() * scale for name, p in params.items()}
            updates, state = optimizer.update(grads, state, params=params, inplace=False)
            params = ours.apply_updates(params, updates, inplace=False)
        return params["w"], params["b"]

    w, b = torch.randn(3, 2, 5).double(), torch.randn(3, 7).double()
    together = vmap(steps)(w, b)
    alone = [steps(*row) for row in zip(w, b, strict=True)]
    for actual, expected in zip(together, zip(*alone, strict=True), strict=True):
        assert_close(actual, torch.stack(expected), "float64-rounding")


def test_wrapped_and_chained_transformations(theirs: Any) -> None:
    """User-defined transformations chain; functional optimizers are wrapped; moments can be given."""
    data, results = batches(3), {}
    module = Network().body.double()
    names = [name for name, _ in module.named_parameters()]

    for library in (theirs, ours):

        def init(params: Any) -> tuple:
            return ()

        def double(updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> tuple:
            return tuple(None if g is None else 2 * g for g in updates), state

        own = (theirs.base if library is theirs else ours).GradientTransformation(init, double)
        chained = library.chain(own, library.adam(lr=0.1, eps=1e-3, moment_requires_grad=True, **EXACT))
        twin = copy.deepcopy(module)
        meta = library.MetaOptimizer(twin, chained)
        for batch in data[:2]:
            meta.step(mse(twin, batch))

        params = tuple(p.detach().clone().requires_grad_() for p in module.parameters())
        wrapper = library.FuncOptimizer(library.sgd(lr=0.1, momentum=0.5))
        for batch in data[:2]:
            named = dict(zip(names, params, strict=True))
            loss = mse(lambda x, named=named: functional_call(module, named, (x,)), batch)
            params = wrapper.step(loss, params)
        borrowed = copy.deepcopy(module)
        meta = library.MetaOptimizer(borrowed, theirs.adam(lr=0.1, eps=1e-3, **EXACT))  # the original's own
        for batch in data[:2]:
            meta.step(mse(borrowed, batch))
        results[library] = flat(twin.parameters()), flat(params), flat(borrowed.parameters())
    for actual, expected in zip(results[ours], results[theirs], strict=True):
        assert_close(actual, expected, "float64-parity")

    transformation = ours.adam(lr=0.1, moment_requires_grad=True)
    params = {"a": torch.ones(2, dtype=torch.float64)}
    state = transformation.init(params)
    updates, _ = transformation.update({"a": torch.ones(2, dtype=torch.float64)}, state, params=params)
    (gradient,) = torch.autograd.grad(updates["a"].sum(), state[0].state["exp_avg"])
    assert_close(gradient[:2], torch.full((2,), -0.1 * 0.9 / 0.1, dtype=torch.float64), "float32-rounding")  # eps 1e-8


@pytest.mark.parametrize("tree", [{}, (), [], (None,), {"a": (), "b": {"c": []}, "d": None}])
def test_empty_trees(tree: Any) -> None:
    for name in (SGD, ADAM, ADAMW, RMSPROP):
        optimizer = getattr(ours, name)(lr=0.1)
        updates, _ = optimizer.update(tree, optimizer.init(tree), params=tree)
        assert ours.apply_updates(tree, updates) == tree == updates


def test_trees_are_read_by_sorted_keys() -> None:
    """Dictionaries with equal keys match in any order."""
    params = {"b": torch.ones(1), "a": {2: torch.zeros(1), 1: torch.ones(2)}}
    updates = {"a": {1: torch.ones(2), 2: torch.ones(1)}, "b": torch.full((1,), 3.0)}
    added = ours.apply_updates(params, updates, inplace=False)
    assert list(added) == ["b", "a"]
    assert [added["b"].tolist(), added["a"][1].tolist(), added["a"][2].tolist()] == [[4.0], [2.0, 2.0], [1.0]]


def test_bad_use_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="gradient transformation"):
        ours.MetaOptimizer(module, torch.optim.SGD(module.parameters()))
    with pytest.raises(RuntimeError, match="no graph"):
        ours.MetaSGD(module, lr=0.1).step(torch.zeros(()))
    with pytest.raises(RuntimeError, match="expected a module"):
        ours.extract_state_dict(torch.zeros(2))
    with pytest.raises(RuntimeError, match="expected a module"):
        ours.recover_state_dict(torch.zeros(2), ())
    with pytest.raises(AssertionError, match="by must be one of"):
        ours.extract_state_dict(module, by="value")
    with pytest.raises(AssertionError, match="needs the parameters"):
        ours.sgd(lr=0.1, weight_decay=0.1).update((torch.zeros(2),), ())
    with pytest.raises(ValueError, match="nesterov"):
        ours.sgd(lr=0.1, nesterov=True)
    with pytest.raises(ValueError, match="lr must be"):
        ours.MetaSGD(module, lr=-0.1)
    with pytest.raises(ValueError, match="second of betas"):
        ours.MetaAdam(module, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="same form"):
        ours.apply_updates((torch.zeros(2),), (torch.zeros(2), torch.zeros(2)))
    with pytest.raises(TypeError, match="optimizer for the cloned module"):
        ours.module_clone(ours.MetaSGD(module, lr=0.1))
    with caplog.at_level(logging.WARNING):
        assert ours.extract_state_dict(module, enable_visual=True).visual_contents is None
    assert "enable_visual=True is ignored" in caplog.text
