"""The optimizers against torch.optim's: numbers, state, errors, and what is left to torch."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metagan_fast.benchmarks import dropins
from metagan_fast.benchmarks.dropin_cases import optim as dropin_cases
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from metagan_fast import _logging, _native, optim
from support import assert_close, instruction_set, join, relative_error
from tolerances import tolerance

NATIVE, WHY_NOT = _native.can_gather()
needs_native = pytest.mark.skipif(not NATIVE, reason=WHY_NOT)

NAMES = ("SGD", "Adam", "AdamW", "RMSprop")
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("Adam", {"lr": 0.1}),
    ("Adam", {"lr": 0.1, "amsgrad": True, "weight_decay": 0.1, "maximize": True}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.1}),
    ("RMSprop", {"lr": 0.1, "momentum": 0.9, "centered": True, "weight_decay": 0.1}),
)
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (7,), (33,), (5, 13), (2, 3, 4, 5), (1, 1, 3), (300,))


def case_id(value: object) -> str:
    return "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


@st.composite
def options(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Return arguments that the optimizer of a name takes."""
    chosen: dict[str, Any] = {
        "lr": draw(st.sampled_from([0.1, 1e-3])),
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
        "maximize": draw(st.booleans()),
    }
    if name == "SGD":
        chosen["momentum"] = draw(st.sampled_from([0.0, 0.5, 0.9]))
        if chosen["momentum"]:
            chosen["dampening"] = draw(st.sampled_from([0.0, 0.3]))
            chosen["nesterov"] = chosen["dampening"] == 0 and draw(st.booleans())
    elif name == "RMSprop":
        chosen["alpha"] = draw(st.sampled_from([0.99, 0.5]))
        chosen["eps"] = draw(st.sampled_from([1e-8, 1e-3]))
        chosen["momentum"] = draw(st.sampled_from([0.0, 0.9]))
        chosen["centered"] = draw(st.booleans())
    else:
        chosen["betas"] = draw(st.sampled_from([(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)]))
        chosen["eps"] = draw(st.sampled_from([1e-8, 1e-3]))
        chosen["amsgrad"] = draw(st.booleans())
    return chosen


class Run:
    """Parameters under an optimizer; runs made with the same seed see the same values and gradients."""

    def __init__(
        self,
        module: Any,
        name: str,
        arguments: dict[str, Any],
        shapes: Sequence[tuple[int, ...]] = SHAPES,
        dtype: torch.dtype = torch.float32,
        stored: torch.dtype | None = None,
        change: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        self.random = torch.Generator().manual_seed(1)
        self.stored = stored or dtype  # what values are rounded to before they become `dtype`
        self.params = [nn.Parameter(change(self.values(shape, dtype))) for shape in shapes]
        self.optimizer = getattr(module, name)(self.params, **arguments)

    def values(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=self.random, dtype=torch.float64).to(self.stored).to(dtype)

    def step(self, without: frozenset[int] = frozenset()) -> None:
        """Take a step; parameters `without` have no gradient."""
        for i, param in enumerate(self.params):
            grad = self.values(tuple(param.shape), param.dtype)
            param.grad = None if i in without else torch.empty_like(param).copy_(grad)
        self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and state by name."""
        named = {f"param {i}": param for i, param in enumerate(self.params)}
        for i, param in enumerate(self.params):
            named |= {f"{key} {i}": value for key, value in self.optimizer.state.get(param, {}).items()}
        return named


def check(actual: Run, expected: Run, name: str | None) -> None:
    """Assert that parameters and state agree: to a tolerance, or to the bit if there is none."""
    a, b = actual.tensors(), expected.tensors()
    assert a.keys() == b.keys()
    kinds: dict[str, list[str]] = {}
    for key in a:
        assert a[key].dtype == b[key].dtype and a[key].shape == b[key].shape, key
        assert a[key].stride() == b[key].stride(), key
        if name is None:
            assert torch.equal(a[key], b[key]), key
        kinds.setdefault(key.split()[0], []).append(key)
    for keys in kinds.values() if name is not None else ():  # a single number may happen to end near 0
        assert_close(join({key: a[key] for key in keys}), join({key: b[key] for key in keys}), name)


@contextlib.contextmanager
def natively() -> Iterator[None]:
    """Let nothing be done by torch's functions, where there is a native step."""
    refuse = mock.Mock(side_effect=AssertionError("torch's own step was called"))
    names = ("sgd", "adam", "rmsprop") if NATIVE else ()
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(optim, name, refuse))
        yield


def close(dtype: torch.dtype) -> str:
    return "float64-rounding" if dtype == torch.float64 else "optimizer-steps"


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_numbers_of_torch(name: str, data: st.DataObject) -> None:
    arguments = data.draw(options(name))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    shapes = [(300,), *data.draw(st.lists(st.sampled_from(SHAPES), max_size=6))]
    absent = data.draw(st.lists(st.frozensets(st.integers(0, 5), max_size=2), min_size=4, max_size=4))
    ours = Run(optim, name, arguments, shapes, dtype)
    torchs = Run(torch.optim, name, arguments, shapes, dtype)
    exact = Run(torch.optim, name, arguments, shapes, torch.float64, stored=dtype)
    first_is_torchs = bool(arguments.get("dampening"))
    for without in absent:
        with contextlib.nullcontext() if first_is_torchs else natively():
            ours.step(without)
        torchs.step(without)
        exact.step(without)
    check(ours, torchs, close(dtype))
    a, b, e = (torch.cat([param.detach().flatten() for param in run.params]) for run in (ours, torchs, exact))
    floor = tolerance(close(dtype)) / 10
    assert relative_error(a, e) <= tolerance("optimizer-times-torch") * relative_error(b, e) + floor


@needs_native
@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
def test_bfloat16_is_rounded_once(name: str, arguments: dict[str, Any]) -> None:
    ours = Run(optim, name, arguments, dtype=torch.bfloat16)
    for _ in range(3):
        ours.step()
    before, state = [param.detach().clone() for param in ours.params], copy.deepcopy(ours.optimizer.state_dict())
    with natively():
        ours.step()
    wide = Run(torch.optim, name, arguments)
    for param, value, of_ours in zip(wide.params, before, ours.params, strict=True):
        param.data = value.float()
        param.grad = of_ours.grad.float()
    wide.optimizer.load_state_dict(state)
    wide.optimizer.step()
    expected = wide.tensors()
    for key, value in ours.tensors().items():
        assert_close(value, expected[key].to(value.dtype), "bf16-store")


@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
@pytest.mark.parametrize("first, then", [(torch.optim, optim), (optim, torch.optim)], ids=["to us", "to torch"])
def test_checkpoints_are_exchanged(name: str, arguments: dict[str, Any], first: Any, then: Any) -> None:
    run, whole = Run(first, name, arguments), Run(torch.optim, name, arguments)
    for _ in range(3):
        run.step()
        whole.step()
    file = io.BytesIO()
    torch.save(run.optimizer.state_dict(), file)
    file.seek(0)
    run.optimizer = getattr(then, name)(run.params, lr=7.0)
    run.optimizer.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        with natively() if then is optim else contextlib.nullcontext():
            run.step()
        whole.step()
    check(run, whole, "optimizer-steps")
    assert run.optimizer.state_dict()["param_groups"] == whole.optimizer.state_dict()["param_groups"]
    assert run.optimizer.defaults.keys() == whole.optimizer.defaults.keys()


@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
def test_copies_and_pickles_go_on(name: str, arguments: dict[str, Any]) -> None:
    run, whole = Run(optim, name, arguments), Run(torch.optim, name, arguments)
    run.step()
    whole.step()
    run.params, run.optimizer = copy.deepcopy((run.params, run.optimizer))
    assert type(run.optimizer) is getattr(optim, name)
    run.step()
    whole.step()
    check(run, whole, "optimizer-steps")


@needs_native
@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
def test_same_bits_for_every_instruction_set_and_thread_count(
    name: str, arguments: dict[str, Any], isa: str, set_threads: Callable[[int], None]
) -> None:
    def run(threads: int) -> Run:
        set_threads(threads)
        result = Run(optim, name, arguments, [(40000,), (3,), (33, 7), (50000,)])
        for _ in range(2):
            result.step()
        return result

    with instruction_set("portable"):
        expected = run(1)
    for threads in (1, 2, 3):
        check(run(threads), expected, None)


def flat_run(module: Any, starts: Sequence[int], ends: Sequence[int], together: frozenset[str]) -> dict[str, Tensor]:
    """Return what steps with momentum make of parts of three vectors: of views if `together`, else of copies."""
    vectors = {"params": torch.linspace(-1, 1, 100), "grads": torch.linspace(3, -2, 100), "buffers": torch.ones(100)}

    def parts(name: str) -> list[Tensor]:
        views = [vectors[name][a:b] for a, b in zip(starts, ends, strict=True)]
        return views if name in together else [view.clone() for view in views]

    params = [nn.Parameter(part) for part in parts("params")]
    buffers = parts("buffers")
    optimizer = module.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1)
    for param, grad, buffer in zip(params, parts("grads"), buffers, strict=True):
        param.grad = grad
        optimizer.state[param]["momentum_buffer"] = buffer
    for _ in range(3):
        optimizer.step()
    if "params" in together:  # the rest of it as well
        return {"whole": vectors["params"], "buffers": torch.cat(buffers)}
    whole = torch.cat([torch.linspace(-1, 1, 100)[: starts[0]], *params, torch.linspace(-1, 1, 100)[ends[-1] :]])
    return {"whole": whole.detach(), "buffers": torch.cat(buffers)}


@pytest.mark.parametrize("together", [{"params"}, {"params", "grads"}, {"params", "buffers"}, {"grads", "buffers"}])
def test_adjacent_parameters_are_updated_as_if_apart(together: set[str]) -> None:
    starts, ends = [10, 17, 50, 60], [17, 50, 60, 93]
    apart = flat_run(optim, starts, ends, frozenset())
    for chosen in (together, {"params", "grads", "buffers"}):
        with natively():
            actual = flat_run(optim, starts, ends, frozenset(chosen))
        assert all(torch.equal(actual[name], apart[name]) for name in apart)


def test_overlapping_parameters_are_updated_one_after_the_other() -> None:
    starts, ends, together = [0, 30], [50, 100], frozenset({"params"})
    ours, torchs = (flat_run(module, starts, ends, together) for module in (optim, torch.optim))
    assert all(torch.equal(ours[name], torchs[name]) for name in torchs)


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


def every_other(x: Tensor) -> Tensor:
    return torch.stack([x, x], -1)[..., 0]


class Marked(Tensor):
    """A subclass of Tensor."""


@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
@pytest.mark.parametrize("change", [channels_last, lambda x: x.transpose(0, -1) if x.ndim > 1 else x])
def test_any_order_of_dimensions_is_native(name: str, arguments: dict[str, Any], change: Any) -> None:
    shapes = [(2, 3, 4, 5), (4, 6), (3,)]
    ours = Run(optim, name, arguments, shapes, change=change)
    torchs = Run(torch.optim, name, arguments, shapes, change=change)
    for i in range(3):
        with natively() if i else contextlib.nullcontext():
            ours.step()
        torchs.step()
    check(ours, torchs, "optimizer-steps")


@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
@pytest.mark.parametrize(
    "dtype, change",
    [
        (torch.float16, lambda x: x),
        (torch.complex64, lambda x: x),
        (torch.float32, every_other),
        (torch.float32, lambda x: x.as_subclass(Marked)),
    ],
    ids=["float16", "complex", "gaps", "subclass"],
)
def test_what_is_left_to_torch(name: str, arguments: dict[str, Any], dtype: torch.dtype, change: Any) -> None:
    shapes = [(5,), (2, 3, 4)]
    ours = Run(optim, name, arguments, shapes, dtype, change=change)
    torchs = Run(torch.optim, name, arguments, shapes, dtype, change=change)
    for _ in range(3):
        ours.step()
        torchs.step()
    check(ours, torchs, None)


@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
def test_mixed_dtypes_and_gradients_laid_out_otherwise(name: str, arguments: dict[str, Any]) -> None:
    def run(module: Any) -> Run:
        result = Run(module, name, arguments, [(1,)])
        result.params = [
            nn.Parameter(torch.linspace(-1, 1, 12, dtype=dtype).reshape(3, 4))
            for dtype in (torch.float32, torch.float64, torch.float16, torch.float32)
        ]
        result.optimizer = getattr(module, name)(result.params, **arguments)
        for step in range(3):
            for i, param in enumerate(result.params):
                grad = torch.linspace(2, -1, 12, dtype=param.dtype) * (step + 1)
                param.grad = grad.reshape(4, 3).t() if i == 3 else grad.reshape(3, 4)
            result.optimizer.step()
        return result

    check(run(optim), run(torch.optim), "optimizer-steps")


def test_gradients_negative_by_a_mark_alone() -> None:
    z = torch.tensor([2.0 + 3.0j]).conj().imag
    assert z.is_neg() and z.is_contiguous()
    param = nn.Parameter(torch.zeros(1))
    param.grad = z
    optim.SGD([param], lr=1.0).step()
    assert param.item() == 3.0


@pytest.mark.parametrize("name", NAMES)
def test_sparse_gradients(name: str) -> None:
    def run(module: Any) -> tuple[Tensor, Tensor, BaseException | None]:
        dense, embedding = nn.Parameter(torch.ones(3)), nn.Embedding(5, 2, sparse=True)
        embedding.weight.data.fill_(1.0)
        optimizer = getattr(module, name)([dense, embedding.weight], lr=0.1)
        error = None
        for _ in range(2):
            optimizer.zero_grad()
            (dense.sum() + embedding(torch.tensor([1, 3])).sum()).backward()
            try:
                optimizer.step()
            except RuntimeError as caught:
                error = caught
        return dense, embedding.weight, error

    ours, torchs = run(optim), run(torch.optim)
    assert str(ours[2]) == str(torchs[2]) and type(ours[2]) is type(torchs[2])
    assert torch.equal(ours[0], torchs[0]) and torch.equal(ours[1], torchs[1])  # unchanged where there is an error


@pytest.mark.parametrize(
    "name, arguments",
    [
        *(("SGD", x) for x in ({"lr": -1.0}, {"momentum": -1.0}, {"weight_decay": -1.0}, {"nesterov": True})),
        *((n, x) for n in ("Adam", "AdamW") for x in ({"betas": (1.0, 0.9)}, {"eps": -1.0}, {"lr": -1.0})),
        *(("RMSprop", x) for x in ({"alpha": -1.0}, {"momentum": -1.0}, {"lr": torch.ones(2)})),
        *((n, {"fused": True, "foreach": True}) for n in ("SGD", "Adam", "AdamW")),
        *((n, {"fused": True, "differentiable": True}) for n in ("SGD", "Adam", "AdamW")),
        *((n, {"no_such_option": 1}) for n in NAMES),
    ],
    ids=case_id,
)
def test_bad_arguments_raise_what_torch_raises(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises((ValueError, RuntimeError, TypeError)) as expected:
        getattr(torch.optim, name)([nn.Parameter(torch.ones(1))], **arguments)
    with pytest.raises(expected.type) as actual:
        getattr(optim, name)([nn.Parameter(torch.ones(1))], **arguments)
    assert str(actual.value) == str(expected.value)


@pytest.mark.parametrize("name", NAMES)
def test_bad_parameters_raise_what_torch_raises(name: str) -> None:
    make = getattr(optim, name)
    param = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="empty parameter list"):
        make([])
    with pytest.raises(TypeError):
        make(param)
    with pytest.raises(ValueError, match="non-leaf"):
        make([param * 2])
    optimizer = make([param])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [param]})
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop"])
def test_capturable_is_refused_on_a_cpu_as_by_torch(name: str) -> None:
    for module in (torch.optim, optim):
        run = Run(module, name, {"capturable": True}, [(3,)])
        with pytest.raises(AssertionError, match="capturable=True"):
            run.step()


def test_a_buffer_of_none_in_a_checkpoint_is_none_yet() -> None:
    run, whole = (Run(module, "SGD", {"lr": 0.1, "momentum": 0.9}, [(3,)]) for module in (optim, torch.optim))
    state = run.optimizer.state_dict()
    state["state"] = {0: {"momentum_buffer": None}}
    run.optimizer.load_state_dict(state)
    for _ in range(2):
        run.step()
        whole.step()
    check(run, whole, "optimizer-steps")


@pytest.mark.parametrize("name", NAMES)
def test_groups_have_options_of_their_own(name: str) -> None:
    def run(module: Any) -> Run:
        result = Run(module, name, {"lr": 0.1}, [(5,), (4,), (3,)])
        first, second, third = result.params
        result.optimizer = getattr(module, name)(
            [{"params": [first], "lr": 0.5}, {"params": second, "weight_decay": 0.3}], lr=0.01
        )
        result.step(frozenset({2}))
        result.optimizer.add_param_group({"params": [third], "maximize": True})
        result.step()
        return result

    ours, torchs = run(optim), run(torch.optim)
    check(ours, torchs, "optimizer-steps")
    assert repr(ours.optimizer) == repr(torchs.optimizer)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 3),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=6, cycle_momentum=hasattr(o, "betas")),
    ],
    ids=["exponential", "cosine", "one cycle"],
)
def test_schedulers(name: str, make: Any) -> None:
    runs = []
    for module in (optim, torch.optim):
        run = Run(module, name, {"lr": 0.1, **({"momentum": 0.9} if name == "SGD" else {})})
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "step() was not called", among others
            scheduler = make(run.optimizer)
            for _ in range(5):
                run.step()
                scheduler.step()
        runs.append(run)
    check(*runs, "optimizer-steps")


def test_one_cycle_moves_betas_too() -> None:
    runs = []
    for module in (optim, torch.optim):
        run = Run(module, "Adam", {"lr": 0.1})
        scheduler = torch.optim.lr_scheduler.OneCycleLR(run.optimizer, 0.3, total_steps=6)
        for _ in range(5):
            run.step()
            scheduler.step()
        runs.append(run)
    assert runs[0].optimizer.param_groups[0]["betas"] != (0.9, 0.999)
    check(*runs, "optimizer-steps")


@pytest.mark.parametrize("name", NAMES)
def test_a_learning_rate_may_be_a_tensor(name: str) -> None:
    def run(module: Any) -> Run:
        lr = torch.tensor(0.5)
        result = Run(module, name, {"lr": lr})
        result.step()
        lr.mul_(0.1)
        result.step()
        return result

    with natively():
        ours = run(optim)
    check(ours, run(torch.optim), "optimizer-steps")


def test_closure() -> None:
    param = nn.Parameter(torch.tensor([2.0, -4.0]))
    optimizer = optim.SGD([param], lr=0.25)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (param * param).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() == 20.0 and loss.requires_grad
    assert param.tolist() == [1.0, -2.0]
    assert optimizer.step() is None


@pytest.mark.parametrize("name", NAMES)
def test_hooks_run_once_a_step(name: str) -> None:
    run = Run(optim, name, {"lr": 0.1}, [(3,)])
    seen: list[str] = []
    handles = [
        run.optimizer.register_step_pre_hook(lambda *_: seen.append("before")),
        run.optimizer.register_step_post_hook(lambda *_: seen.append("after")),
        register_optimizer_step_post_hook(lambda *_: seen.append("global")),
    ]
    run.step()
    for handle in handles:
        handle.remove()
    run.step()
    assert seen == ["before", "after", "global"]


@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
def test_autograd_notices_the_change(name: str, arguments: dict[str, Any]) -> None:
    run = Run(optim, name, arguments, [(3,)])
    run.step()
    (param,) = run.params
    state = [value for key, value in run.optimizer.state.get(param, {}).items() if key != "step"]
    for changed in (param, *state):
        probe = torch.ones(3, requires_grad=True)
        loss = (probe * changed).sum()  # saves `changed`
        run.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_steps_are_not_recorded() -> None:
    run = Run(optim, "Adam", {"lr": 0.1}, [(3,)])
    run.step()
    (param,) = run.params
    assert param.is_leaf and param.grad_fn is None and param.grad is not None
    run.optimizer.zero_grad()
    assert param.grad is None
    assert all(not value.requires_grad for value in run.optimizer.state[param].values())


@pytest.mark.parametrize("name", NAMES)
def test_memory_that_moved_is_found(name: str) -> None:
    def run(module: Any) -> Run:
        result = Run(module, name, {"lr": 0.1, **({"momentum": 0.9} if name in ("SGD", "RMSprop") else {})})
        result.step()
        for param in result.params:
            param.data = param.data.clone()
            state = result.optimizer.state[param]
            state |= {key: value.clone() for key, value in state.items()}
        result.step()
        old = result.params[4]  # a parameter made longer, its state carried over
        state = result.optimizer.state.pop(old)
        new = result.params[4] = nn.Parameter(torch.cat([old.data, old.data]))
        result.optimizer.param_groups[0]["params"][4] = new
        result.optimizer.state[new] = {k: torch.cat([v, v]) if v.ndim else v for k, v in state.items()}
        result.step()
        return result

    with natively():
        ours = run(optim)
    check(ours, run(torch.optim), "optimizer-steps")


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_gradients_that_a_scaler_leaves_scaled(name: str) -> None:
    def run(module: Any, fused: bool) -> Run:
        result = Run(module, name, {"lr": 0.1, "fused": fused}, [(5,)])
        (param,) = result.params
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for factor in (1.0, torch.inf, 2.0):
            result.optimizer.zero_grad()
            scaler.scale((param * param * factor).sum()).backward()
            scaler.step(result.optimizer)
            scaler.update()
        return result

    for fused in (True, False):
        check(run(optim, fused), run(torch.optim, fused), "optimizer-steps")


@pytest.mark.parametrize("flag", ["foreach", "fused"])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_flags_of_torchs_functions_have_no_say(name: str, flag: str) -> None:
    run = Run(optim, name, {"lr": 0.1, flag: True})
    with natively():
        run.step()
    assert run.optimizer.state_dict()["param_groups"][0][flag] is True


@pytest.mark.parametrize("name", NAMES)
def test_differentiable_steps_are_torchs(name: str) -> None:
    def run(module: Any) -> Tensor:
        scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        weight = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        param = weight.clone()
        param.retain_grad()
        optimizer = getattr(module, name)([weight], lr=0.1, differentiable=True)
        optimizer.param_groups[0]["params"] = [param]
        param.grad = scale * param.detach() ** 2
        optimizer.step()
        (gradient,) = torch.autograd.grad((param**2).sum(), scale)
        return gradient

    assert torch.equal(run(optim), run(torch.optim))


def test_inference_mode() -> None:
    with torch.inference_mode():
        runs = [Run(module, "Adam", {"lr": 0.1}) for module in (optim, torch.optim)]
        for run in runs:
            run.step()
            run.step()
        check(*runs, None)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_steps(name: str) -> None:
    runs = [Run(module, name, {"lr": 0.1}, [(5,)]) for module in (optim, torch.optim)]
    torch.compiler.reset()
    compiled = torch.compile(runs[0].optimizer.step, backend="eager")
    for _ in range(2):
        for run, step in zip(runs, (compiled, runs[1].optimizer.step), strict=True):
            for param in run.params:
                param.grad = run.values(tuple(param.shape), param.dtype)
            step()
    check(*runs, "optimizer-steps")


@pytest.mark.parametrize("name, arguments", CASES, ids=case_id)
def test_without_the_extension(name: str, arguments: dict[str, Any]) -> None:
    ours, torchs = Run(optim, name, arguments), Run(torch.optim, name, arguments)
    with mock.patch.object(_native, "can_gather", lambda: (False, "this installation has no compiled extension")):
        for _ in range(3):
            ours.step()
    for _ in range(3):
        torchs.step()
    check(ours, torchs, None)


@needs_native
def test_what_is_left_to_torch_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with mock.patch.object(_logging, "_said", set()), caplog.at_level(logging.INFO):
        native = Run(optim, "SGD", {"lr": 0.1, "momentum": 0.9})
        native.step()
        native.step()
        assert not caplog.records
        half = Run(optim, "Adam", {"lr": 0.1}, [(3,), (4,)], torch.float16)
        half.step()
        half.step()
    (record,) = caplog.records
    assert record.levelno == logging.INFO and "float16" in record.getMessage()


@pytest.mark.parametrize("name", ["Adam", "RMSprop"])
def test_counts_under_a_float64_default(name: str) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        runs = [Run(module, name, {"lr": 0.1}) for module in (optim, torch.optim)]
        for run, _ in itertools.product(runs, range(3)):
            run.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(state["step"].dtype == torch.float64 for state in runs[0].optimizer.state.values())
    check(*runs, "optimizer-steps")


@settings(max_examples=10)
@given(size=st.integers(1, 200), name=st.sampled_from(NAMES))
def test_training_goes_where_torch_goes(size: int, name: str) -> None:
    def train(module: Any) -> Tensor:
        torch.manual_seed(size)
        net = nn.Sequential(nn.Linear(3, size), nn.Tanh(), nn.Linear(size, 1)).double()
        x, y = torch.randn(16, 3).double(), torch.randn(16, 1).double()
        optimizer = getattr(module, name)(net.parameters(), lr=1e-2)
        for _ in range(10):
            optimizer.zero_grad()
            ((net(x) - y) ** 2).mean().backward()
            optimizer.step()
        return torch.cat([param.flatten() for param in net.parameters()])

    assert_close(train(optim), train(torch.optim), "float64-parity")


@pytest.mark.parametrize("case", dropin_cases.CASES, ids=lambda case: case.name)
def test_benchmark_cases_agree(case: Any) -> None:
    original, *others = dropins.run(case, thread_counts=[1], quick=True)
    assert original.contender == "torch"
    assert [record.contender for record in others][-1] == "metagan_fast"
    assert all(record.error <= record.error_allowed for record in others)
