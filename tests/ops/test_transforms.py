"""The ops under torch.func and torch.compile, against plain autograd on the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import ops_cases
from metagan_fast import functional
from metagan_fast.ops._op import OPS
from ops_cases import CASES, CLIP_CASES, Case, same_bits
from support import assert_close

DIFFERENTIABLE = [case for case in CASES if OPS[case.op].differentiable]
BATCH = 4


def tensors_of(
    case: Case, rows: int | None, numel: int, lr_form: str = "scalar"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensor arguments and the others."""
    arguments = ops_cases.make(case, rows, numel, lr_form=lr_form)
    tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
    return tensors, {name: x for name, x in arguments.items() if name not in tensors}


def stack(
    case: Case, rows: int | None, numel: int, lr_form: str = "scalar"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a batch of tensor arguments, and the others."""
    batch = [tensors_of(case, rows, numel, lr_form) for _ in range(BATCH)]
    return {name: torch.stack([tensors[name] for tensors, _ in batch]) for name in batch[0][0]}, batch[0][1]


def scalar(results: tuple[Tensor, ...]) -> Tensor:
    """Return a number that depends nonlinearly on every result."""
    return sum(((i + 1) * x.sin()).sum() for i, x in enumerate(results))


@pytest.mark.parametrize("case", CASES + CLIP_CASES, ids=str)
@pytest.mark.parametrize("rows", [None, 2])
def test_vmap_is_a_loop(case: Case, rows: int | None) -> None:
    lr_form = "scalar" if rows is None else "task"
    tensors, others = stack(case, rows, 7, lr_form)

    def function(values: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return ops_cases.call(case.function, {**values, **others})

    mapped = vmap(function)(tensors)
    for i in range(BATCH):
        for a, b in zip(mapped, function({name: x[i] for name, x in tensors.items()}), strict=True):
            if case.rounds_exactly(b.dtype) and case.op != "clip_grad_norm":
                assert same_bits(a[i], b)
            else:
                assert_close(a[i], b, "float64-rounding")


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_vmap_over_any_subset_and_dimension(case: Case) -> None:
    tensors, others = stack(case, 2, 5, "task-element")
    for name in tensors:
        one, rest = (
            tensors[name].movedim(0, -1),
            {other: x[0] for other, x in tensors.items() if other != name},
        )

        def function(value: Tensor, name: str = name, rest: dict[str, Tensor] = rest) -> Tensor:
            return ops_cases.call(case.function, {**rest, name: value, **others})[0]

        mapped = vmap(function, in_dims=-1)(one)
        for i in range(BATCH):
            assert_close(mapped[i], function(tensors[name][i]), "float64-rounding")


def test_vmap_within_vmap() -> None:
    params, grads = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    lr = torch.rand(3)

    def step(params: Tensor, grads: Tensor, lr: Tensor) -> Tensor:
        return functional.sgd_step(params, grads, lr)

    mapped = vmap(vmap(step, in_dims=(0, 0, None)))(params, grads, lr)
    assert same_bits(mapped, params - lr[:, None, None] * grads)


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_derivatives_under_transforms(case: Case) -> None:
    """grad, vmap(grad), grad(vmap), jvp and both orders of Hessian equal autograd through the reference."""
    tensors, others = stack(case, None, 4)

    def loss(values: dict[str, Tensor], function: Callable[..., Any] = case.function) -> Tensor:
        return scalar(ops_cases.call(function, {**values, **others}))

    def oracle(values: dict[str, Tensor]) -> Tensor:
        return scalar(OPS[case.op].plain(*values_in_order(values), **options(values)))

    def values_in_order(values: dict[str, Tensor]) -> list[Tensor]:
        return [values[name] for name in (*case.buffers, "lr") if name != "momentum_buffer"]

    def options(values: dict[str, Tensor]) -> dict[str, Any]:
        state = {name: values[name] for name in ("momentum_buffer",) if name in values}
        return {**others, **state}

    expected = []
    for i in range(BATCH):
        leaves = {name: x[i].clone().requires_grad_() for name, x in tensors.items()}
        gradients = torch.autograd.grad(oracle(leaves), list(leaves.values()))
        expected.append(dict(zip(leaves, gradients, strict=True)))

    first = {name: x[0] for name, x in tensors.items()}
    mapped = vmap(grad(loss))(tensors)
    summed = grad(lambda values: vmap(loss)(values).sum())(tensors)
    for name in tensors:
        assert_close(grad(loss)(first)[name], expected[0][name], "float64-rounding")
        for i in range(BATCH):
            assert_close(mapped[name][i], expected[i][name], "float64-rounding")
            assert_close(summed[name][i], expected[i][name], "float64-rounding")

    tangents = {name: torch.randn_like(x) for name, x in first.items()}
    _, directional = jvp(loss, (first,), (tangents,))
    assert_close(directional, sum((expected[0][name] * tangents[name]).sum() for name in first), "float64-rounding")

    for name in ("grads", "lr"):

        def along(value: Tensor, name: str = name, function: Callable[..., Tensor] = loss) -> Tensor:
            return function({**first, name: value})

        second = hessian(lambda value, name=name: oracle({**first, name: value}))(first[name])
        for nested in (jacfwd(jacrev(along)), jacrev(jacrev(along)), jacrev(jacfwd(along))):
            assert_close(nested(first[name]), second, "float64-rounding")


def test_a_twin_refuses_transforms() -> None:
    grads = torch.randn(3, 5)
    for transformed in (
        lambda: vmap(lambda p, g: functional.sgd_step_(p, g, 0.1))(grads.clone(), grads),
        lambda: grad(lambda g: functional.sgd_step_(g.clone(), g, 0.1).sum())(grads),
        lambda: jvp(lambda g: functional.sgd_step_(torch.zeros(3, 5), g, 0.1), (grads,), (grads,)),
    ):
        with pytest.raises(RuntimeError, match="sgd_step"):
            transformed()


@pytest.mark.slow
def test_compile_forward_and_backward() -> None:
    """One graph through both optimizers, with the gradient for the learning rates.

    A compiler sees the ops as plain PyTorch, so generating code would test nothing further.
    """

    def inner(params: Tensor, lr: Tensor) -> Tensor:
        params, buffer = functional.sgd_step(
            params, params**3, lr, momentum_buffer=torch.zeros_like(params), momentum=0.9
        )
        zeros = torch.zeros_like(params)
        params, _, _ = functional.adam_step(params, params**3, zeros, zeros, lr, step=1, eps_root=1e-8)
        return (params * buffer).sum()

    params = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    lr = torch.rand(2, dtype=torch.float64, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(inner, fullgraph=True, backend="aot_eager")
    loss, expected = compiled(params, lr), inner(params, lr)
    assert_close(loss, expected, "float64-rounding")
    for a, b in zip(torch.autograd.grad(loss, (params, lr)), torch.autograd.grad(expected, (params, lr)), strict=True):
        assert_close(a, b, "float64-rounding")


@pytest.mark.slow
def test_compile_of_vmap_of_grad() -> None:
    def loss(grads: Tensor, lr: Tensor) -> Tensor:
        zeros = torch.zeros_like(grads)
        return functional.adam_step(zeros + 1, grads, zeros, zeros, lr, step=1, eps_root=1e-4)[0].sin().sum()

    grads, lr = torch.randn(3, 2, 5, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    function = vmap(grad(loss, argnums=(0, 1)))
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(grads, lr), function(grads, lr), strict=True):
        assert b.abs().sum() > 0
        assert_close(a, b, "float64-rounding")


@pytest.mark.slow
def test_compile_of_the_twins() -> None:
    def steps(params: Tensor, grads: Tensor, adapted: Tensor, m: Tensor, v: Tensor) -> Tensor:
        functional.sgd_step_(params, grads, 0.1)
        functional.clip_grad_norm_(grads, 0.5)
        functional.rmsprop_step_(params, grads, v, 0.1)
        functional.meta_adam_step_(params, adapted, m, v, 0.1, step=1)
        functional.reptile_interpolate_(params, adapted, 0.5)
        return functional.ema_update_(m, params, 0.9)

    def arguments() -> list[Tensor]:
        torch.manual_seed(1)
        vectors = [torch.randn(6, dtype=torch.float64) for _ in range(4)]
        return [*vectors[:2], torch.randn(3, 6, dtype=torch.float64), vectors[2], vectors[3].abs()]

    torch._dynamo.reset()
    mine, theirs = arguments(), arguments()
    torch.compile(steps, fullgraph=True, backend="aot_eager")(*mine)
    steps(*theirs)
    for a, b in zip(mine, theirs, strict=True):
        assert_close(a, b, "float64-rounding")


def test_a_tracer_sees_plain_pytorch() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda p, g: functional.sgd_step(p, g, 0.5))(torch.randn(4), torch.randn(4))
    other = torch.randn(2, 4)
    assert torch.equal(graph(other[0], other[1]), other[0] - 0.5 * other[1])
