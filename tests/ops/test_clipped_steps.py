"""`sgd_step` and `adam_step` with `max_norm` and `zero_grads`: the same as clipping, step and reset one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

import metagan_fast as mgf
import ops_cases
from metagan_fast import _native, functional
from ops_cases import CANARY, CASES, MARGIN, Case, same_bits
from support import assert_close

STEPS = tuple(case for case in CASES if case.op in ("sgd_step", "adam_step"))
TELLING = (STEPS[0], STEPS[4], STEPS[6])
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
AVAILABLE, WHY_NOT = _native.is_available()
BACKENDS = (pytest.param("native", marks=pytest.mark.skipif(not AVAILABLE, reason=WHY_NOT)), "reference")
MAX_NORM = 2.0


def make(case: Case, rows: int | None, numel: int, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """Return arguments in which `max_norm` scales the first row of gradients and leaves the second."""
    arguments = ops_cases.make(case, rows, numel, dtype, **options)
    if rows is not None:
        arguments["grads"][1:] *= 1e-3
    return arguments


def one_by_one(case: Case, arguments: ops_cases.Arguments) -> tuple[Tensor, ...]:
    clipped, _ = functional.clip_grad_norm(arguments["grads"], MAX_NORM)
    return ops_cases.call(case.function, {**arguments, "grads": clipped})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", STEPS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, numel", [(None, 100), (2, 1), (3, 2081), (2, 0)])
def test_same_bits_as_one_by_one(backend: str, case: Case, dtype: torch.dtype, rows: int | None, numel: int) -> None:
    arguments = make(case, rows, numel, dtype, lr_form="task-column", margin=MARGIN)
    with functional.use_backend(backend):
        expected = one_by_one(case, arguments)
        before = ops_cases.clone(arguments)
        results = {"function": ops_cases.call(case.function, {**arguments, "max_norm": MAX_NORM})}
        assert all(same_bits(arguments[name], before[name]) for name in case.buffers)
        for zero_grads in (False, True):
            twin = ops_cases.clone(arguments)
            options = {"max_norm": MAX_NORM, "zero_grads": zero_grads}
            results[f"{zero_grads=}"] = ops_cases.call(case.twin, {**twin, **options})
            assert same_bits(twin["grads"], torch.zeros_like(twin["grads"]) if zero_grads else arguments["grads"])
            for name in case.buffers:
                margins = torch.cat([twin[name]._base[..., :MARGIN], twin[name]._base[..., -MARGIN:]])
                assert (margins == CANARY).all(), name
            reset = ops_cases.clone(arguments)
            ops_cases.call(case.twin, {**reset, "zero_grads": zero_grads})
            for name, value in zip(case.written, ops_cases.call(case.function, arguments), strict=True):
                assert same_bits(reset[name], value)
    for how, found in results.items():
        for name, a, b in zip(case.written, found, expected, strict=True):
            assert same_bits(a, b), (how, name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e9])
def test_against_torch(backend: str, max_norm: float) -> None:
    start, gradients = torch.randn(50, dtype=torch.float64), torch.randn(4, 50, dtype=torch.float64)
    for kind in ("sgd", "adamw"):
        holder = torch.nn.Parameter(start.clone())
        if kind == "sgd":
            peer: torch.optim.Optimizer = torch.optim.SGD([holder], lr=0.1, momentum=0.9)
        else:
            peer = torch.optim.AdamW([holder], lr=0.1, weight_decay=0.1)
        params, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
        for step, gradient in enumerate(gradients, 1):
            holder.grad = gradient.clone()
            torch.nn.utils.clip_grad_norm_([holder], max_norm)
            peer.step()
            options: dict[str, Any] = {"max_norm": max_norm, "zero_grads": True}
            ours = gradient.clone()
            with functional.use_backend(backend):
                if kind == "sgd":
                    functional.sgd_step_(params, ours, 0.1, momentum_buffer=m, momentum=0.9, **options)
                else:
                    adamw: dict[str, Any] = {"step": step, "weight_decay": 0.1, "decoupled": True, **options}
                    functional.adam_step_(params, ours, m, v, 0.1, **adamw)
            assert not ours.any()
            assert_close(params, holder, "float64-parity")


@pytest.mark.parametrize("case", TELLING, ids=str)
def test_first_and_second_derivatives(case: Case) -> None:
    arguments = make(case, 2, 4, lr_form="task")
    assert (arguments["grads"].norm(dim=1) > 0).all()
    arguments["max_norm"] = arguments["grads"][0].norm().item() / 2  # clips the first row but not the second
    names = [name for name, x in arguments.items() if isinstance(x, Tensor)]
    tensors = [arguments[name].requires_grad_() for name in names]

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        return ops_cases.call(case.function, {**arguments, **dict(zip(names, values, strict=True))})

    assert gradcheck(function, tensors, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("case", TELLING, ids=str)
def test_under_transforms(case: Case) -> None:
    batch = [make(case, 2, 5, lr_form="task") for _ in range(3)]
    names = [name for name, x in batch[0].items() if isinstance(x, Tensor)]
    others = {name: x for name, x in batch[0].items() if name not in names} | {"max_norm": MAX_NORM}

    def loss(values: dict[str, Tensor]) -> Tensor:
        return torch.stack([x.sin().sum() for x in ops_cases.call(case.function, {**values, **others})]).sum()

    stacked = {name: torch.stack([arguments[name] for arguments in batch]) for name in names}
    values, gradients = vmap(loss)(stacked), vmap(grad(loss))(stacked)
    for i, arguments in enumerate(batch):
        leaves = {name: arguments[name].clone().requires_grad_() for name in names}
        clipped = functional.clip_grad_norm(leaves["grads"], MAX_NORM)[0]
        results = ops_cases.call(case.function, {**arguments, **leaves, "grads": clipped})
        expected = torch.stack([x.sin().sum() for x in results]).sum()
        assert_close(values[i], expected, "float64-rounding")
        for name, gradient in zip(names, torch.autograd.grad(expected, list(leaves.values())), strict=True):
            assert_close(gradients[name][i], gradient, "float64-rounding")


@pytest.mark.slow
def test_compile_of_the_twins() -> None:
    def steps(params: Tensor, first: Tensor, second: Tensor, m: Tensor, v: Tensor) -> Tensor:
        functional.sgd_step_(params, first, 0.1, max_norm=0.5, zero_grads=True)
        return functional.adam_step_(params, second, m, v, 0.1, step=1, max_norm=0.5, zero_grads=True)[0]

    mine = [torch.randn(2, 6, dtype=torch.float64) for _ in range(4)] + [torch.rand(2, 6, dtype=torch.float64)]
    theirs = [x.clone() for x in mine]
    torch._dynamo.reset()
    torch.compile(steps, fullgraph=True, backend="aot_eager")(*mine)
    steps(*theirs)
    for a, b in zip(mine, theirs, strict=True):
        assert_close(a, b, "float64-rounding")
    assert not mine[1].any() and not mine[2].any()


def test_with_fake_tensors() -> None:
    with FakeTensorMode():
        x = [torch.empty(2, 5) for _ in range(4)]
        results = functional.adam_step_(*x, 0.1, step=1, max_norm=1.0, zero_grads=True)
        results += functional.adam_step(*x, 0.1, step=1, max_norm=1.0)
    assert [result.shape for result in results] == 6 * [(2, 5)]


def test_a_reset_is_a_write() -> None:
    """A gradient with shared memory is refused, and autograd sees that it has changed."""
    ones = torch.ones
    for params, grads, message in (
        (same := ones(8), same, "share memory"),
        (ones(3, 8), ones(8).expand(3, 8), "rows of grads overlap"),
        (ones(3, 8), ones(8, 3).t(), "elements of grads must be adjacent"),
    ):
        with pytest.raises(ValueError, match=message):
            functional.sgd_step_(params, grads, 0.1, zero_grads=True)
        functional.sgd_step_(params, grads, 0.1, max_norm=1.0)
    with pytest.raises(RuntimeError, match="sgd_step_: grads requires grad"):
        functional.sgd_step_(ones(3), ones(3, requires_grad=True), 0.1, zero_grads=True)
    grads, x = ones(3), ones(3, requires_grad=True)
    product = (x * grads).sum()
    functional.sgd_step_(ones(3), grads, 0.1)
    product.backward(retain_graph=True)
    functional.sgd_step_(ones(3), grads, 0.1, zero_grads=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_meta_optimizer_clips_in_its_step(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of an op gives the bytes of clamping, clipping and step apart."""
    options = {"momentum": 0.9} if optimizer == "sgd" else {}
    apart, together = (
        mgf.Reptile(optimizer=optimizer, lr=0.1, clip_value=1.5, clip_norm=norm, **options) for norm in (None, 0.3)
    )
    state = tuple(torch.rand(70) for _ in together.initial_state(torch.zeros(70)))
    params, gradient = torch.randn(70), torch.randn(70)
    expected = [x.clone() for x in (params, *state)]
    clamped = gradient.clamp(-1.5, 1.5)
    clipped = functional.clip_grad_norm(clamped, 0.3)[0]
    apart.step(expected[0], clipped, tuple(expected[1:]), 0.1, 3, in_place=True)

    called = []
    for name in functional.__all__:
        function = getattr(functional, name)
        monkeypatch.setattr(functional, name, lambda *a, f=function, **k: called.append(f.__name__) or f(*a, **k))
    assert together.clamp(gradient).item() == pytest.approx(gradient.norm().item(), abs=2.0)
    assert torch.equal(gradient, clamped)
    lr, *corrections = torch.tensor(together.numbers(0, 3), dtype=torch.float64).split([1, 2])
    updated = together.step(params, gradient, state, lr[0], *corrections, in_place=False)
    together.step(params, gradient, state, 0.1, 3, in_place=True)
    op = "sgd_step" if optimizer == "sgd" else "adam_step"
    assert called == [op, op + "_"]
    for a, b, c in zip((params, *state), updated, expected, strict=True):
        assert same_bits(a, c)
        assert same_bits(b, c)
