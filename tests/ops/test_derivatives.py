"""Derivatives of the ops to second order: finite differences, closed forms, the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import ops_cases
from metagan_fast import FlatLayout, functional
from metagan_fast.ops import _dispatch, _op, adam_step, sgd_step
from metagan_fast.ops._op import OPS
from ops_cases import CASES, CLIP_CASES, Case
from support import assert_close

DIFFERENTIABLE = [case for case in CASES if OPS[case.op].differentiable]
PLAIN = [case for case in (*CASES, *CLIP_CASES) if case not in DIFFERENTIABLE]


def tensors_of(case: Case, **options: Any) -> tuple[list[str], list[Tensor], ops_cases.Arguments]:
    """Return the names and values of the tensor arguments, and all arguments."""
    arguments = ops_cases.make(case, 2, 3, **options)
    names = [name for name, x in arguments.items() if isinstance(x, Tensor)]
    return names, [arguments[name].requires_grad_() for name in names], arguments


@pytest.mark.parametrize("lr_form", ["number", "scalar", "task", "task-element", "shared-element"])
@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_first_and_second_derivatives(case: Case, lr_form: str) -> None:
    names, tensors, arguments = tensors_of(case, lr_form=lr_form)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        return ops_cases.call(case.function, {**arguments, **dict(zip(names, values, strict=True))})

    assert gradcheck(function, tensors, check_forward_ad=True, fast_mode=True)
    if lr_form in ("task", "shared-element"):
        assert gradgradcheck(function, tensors, fast_mode=True, check_fwd_over_rev=True)


def test_derivatives_where_the_step_is_in_a_tensor() -> None:
    case = next(case for case in DIFFERENTIABLE if case.op == "adam_step")
    names, tensors, arguments = tensors_of(case, lr_form="task")
    corrections = torch.tensor([2.0, 3.0], dtype=torch.float64)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names, values, strict=True))
        return ops_cases.call(case.function, {**arguments, **given, "step": corrections})

    assert gradcheck(function, tensors, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_the_other_ops_are_differentiable_in_plain_pytorch(case: Case) -> None:
    names, tensors, arguments = tensors_of(case, lr_form="task")

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        return ops_cases.call(case.function, {**arguments, **dict(zip(names, values, strict=True))})

    assert gradcheck(function, tensors, fast_mode=True)
    assert gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("eps, eps_root", [(1e-8, 0.0), (1e-3, 0.0), (0.0, 1e-8), (1e-3, 1e-4)])
@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_with_any_eps(eps: float, eps_root: float, decoupled: bool) -> None:
    options = {"step": 2, "eps": eps, "eps_root": eps_root, "weight_decay": 0.1, "decoupled": decoupled}
    params, grads, m = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    v = torch.rand(5, dtype=torch.float64, requires_grad=True)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        return functional.adam_step(*values, 0.1, **options)

    assert gradcheck(function, (params, grads, m, v))
    assert gradgradcheck(function, (params, grads, m, v))


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision_gradients_are_those_of_the_reference(case: Case, dtype: torch.dtype) -> None:
    _, tensors, arguments = tensors_of(case, lr_form="task", dtype=dtype)
    tolerance = "float32-derivative" if dtype == torch.float32 else "bf16-derivative"
    results = ops_cases.call(case.function, arguments)
    weights = [torch.randn_like(x) for x in results]
    expected = ops_cases.call(OPS[case.op].plain, {**arguments, "lr": arguments["lr"].unsqueeze(-1)})
    actual = torch.autograd.grad(results, tensors, weights)
    for a, b, x in zip(actual, torch.autograd.grad(expected, tensors, weights), tensors, strict=True):
        assert a.dtype == x.dtype
        assert_close(a, b, tolerance)


def test_where_nothing_was_ever_seen_the_derivative_is_zero() -> None:
    """The slope of the square root counts as 0 where v and grad are 0, at first and second order."""
    zeros = torch.zeros(2, dtype=torch.float64)
    grads = torch.tensor([0.0, 0.5], dtype=torch.float64, requires_grad=True)
    v = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    params, _, _ = functional.adam_step(zeros, grads, zeros, v, 0.1, step=1, eps=1e-3)
    first = torch.autograd.grad(params.sum(), (grads, v), create_graph=True)
    second = torch.autograd.grad(sum(x.sum() for x in first), (grads, v))
    for x in (*first, *second):
        assert x.isfinite().all()
    assert first[1][0] == 0 and second[1][0] == 0
    assert_close(first[0][0], torch.tensor(-0.1 / 1e-3, dtype=torch.float64), "float64-rounding")


@pytest.mark.parametrize("op", ["sgd_step", "adam_step"])
def test_one_learning_rate_a_parameter_tensor_can_be_learned(op: str) -> None:
    layout = FlatLayout.from_module(torch.nn.Linear(3, 2))
    case = next(case for case in CASES if case.op == op)
    arguments = ops_cases.make(case, 2, layout.numel) | {"layout": layout}

    def function(lr: Tensor) -> Tensor:
        return ops_cases.call(case.function, {**arguments, "lr": lr})[0]

    for shape in ((2,), (2, 2)):
        assert gradcheck(function, torch.rand(shape, dtype=torch.float64, requires_grad=True))


def test_a_derivative_through_many_steps_is_that_of_the_reference() -> None:
    """Ten Adam steps down a quartic, differentiated by start, learning rate and curvature, twice."""
    start = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    lr = torch.full((2,), 0.05, dtype=torch.float64, requires_grad=True)
    curvature = (torch.rand(6, dtype=torch.float64) + 0.5).requires_grad_()

    def end(step_function: Any, rate: Tensor) -> Tensor:
        params, m, v = start, torch.zeros_like(start), torch.zeros_like(start)
        for step in range(1, 11):
            grads = 4 * curvature * params**3
            params, m, v = step_function(params, grads, m, v, rate, step=step, eps=1e-2)
        return (params**2).sum()

    inputs = (start, lr, curvature)
    results = []
    for loss in (end(functional.adam_step, lr), end(OPS["adam_step"].plain, lr.unsqueeze(-1))):
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        results.append((*first, *torch.autograd.grad(sum((x**2).sum() for x in first), inputs)))
    for a, b in zip(*results, strict=True):
        assert_close(a, b, "float64-parity")


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_the_kernel_is_used_where_a_gradient_is_wanted(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    select = _dispatch.select
    monkeypatch.setattr(_dispatch, "select", lambda op, *like: calls.append(op.name) or select(op, *like))
    _, _, arguments = tensors_of(case, lr_form="scalar")
    ops_cases.call(case.function, arguments)
    assert calls == [case.op]


@pytest.mark.parametrize("module, function", [(sgd_step, sgd_step._SGDStep), (adam_step, adam_step._AdamStep)])
def test_the_short_path_is_taken_only_where_no_derivative_is_wanted(
    module: Any, function: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in CASES if case.op == module.__name__.rsplit(".", 1)[1])
    calls = []
    apply = function.apply
    monkeypatch.setattr(function, "apply", lambda *operands: calls.append(1) or apply(*operands))
    arguments = ops_cases.make(case, 2, 3, lr_form="task")

    def count(**changed: Any) -> int:
        calls.clear()
        ops_cases.call(case.function, {**arguments, **changed})
        return len(calls)

    assert count() == 0
    for name, x in arguments.items():
        if isinstance(x, Tensor):
            wants = {name: x.clone().requires_grad_()}
            assert count(**wants) == 1, name
            with torch.no_grad():
                assert count(**wants) == 0, name
    with torch.autograd.forward_ad.dual_level():
        tangent = torch.ones_like(arguments["grads"])
        assert count(grads=torch.autograd.forward_ad.make_dual(arguments["grads"], tangent)) == 1
    assert torch.func.vmap(lambda grads: torch.tensor(count(grads=grads)))(torch.randn(4, 2, 3).double()).sum() > 0
    assert _op.route(*arguments.values()) is _op.Route.KERNEL
