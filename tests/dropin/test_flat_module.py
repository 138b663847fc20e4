"""Flat modules, which the stand-ins share: tensors in one buffer, stepped as one node of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from metagan_fast.dropin import _updates
from metagan_fast.dropin._flat_module import advance, flat_copies, join, layout_of, over_buffers, split
from metagan_fast.ops import reference
from support import assert_close

SHAPES = ((3, 2), (), (33,), (1, 4))
SGD = {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}
ADAM = {"lr": 0.1, "betas": (0.6, 0.8), "eps": 0.1, "weight_decay": 0.0}
RULES = [
    (_updates.sgd, SGD),
    (_updates.sgd, {**SGD, "weight_decay": 0.3}),
    (_updates.sgd, {**SGD, "momentum": 0.7, "dampening": 0.2, "weight_decay": 0.3}),
    (_updates.sgd, {**SGD, "momentum": 0.7, "nesterov": True}),
    (_updates.adam, {**ADAM, "weight_decay": 0.3, "eps_root": 0.01}),
    (_updates.adam, {**ADAM, "weight_decay": 0.3, "decoupled": True}),
]


def tensors(requires_grad: bool = True, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad) for shape in shapes]


@pytest.mark.parametrize("together", [True, False])
def test_join_is_differentiable(together: bool) -> None:
    """First and second derivatives by every tensor, in one buffer or apart."""
    originals = tensors()
    layout = layout_of(tuple(x.shape for x in originals))
    weights = torch.randn(layout.numel, dtype=torch.float64)

    def joined(*parts: Tensor) -> Tensor:
        copies = flat_copies(parts, device=None, detach=False) if together else list(parts)
        return join(layout, copies).pow(3) * weights

    assert torch.autograd.gradcheck(joined, originals)
    assert torch.autograd.gradgradcheck(joined, originals)


def test_split_is_differentiable_and_gives_tensors_of_their_own() -> None:
    layout = layout_of(tuple(torch.Size(shape) for shape in SHAPES))
    flat = torch.randn(layout.numel, dtype=torch.float64, requires_grad=True)

    def cubed(flat: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.pow(3) for x in split(layout, flat)[1:])

    assert torch.autograd.gradcheck(cubed, flat)
    assert torch.autograd.gradgradcheck(cubed, flat)
    for x, slot in zip(split(layout, flat * 1), layout.slots, strict=True):
        assert tuple(x.shape) == slot.shape and not x._is_view()
        x.detach_()


@pytest.mark.parametrize("learned", [True, False], ids=["learned-rate", "fixed-rate"])
@pytest.mark.parametrize(("rule", "options"), RULES)
def test_fused_step_is_differentiable(rule: Any, options: dict, learned: bool) -> None:
    """First and second derivatives of two chained steps by parameters, gradients and learning rate."""
    shapes = (2,), ()
    layout = layout_of(tuple(torch.Size(shape) for shape in shapes))
    count = len(shapes)
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=learned)

    def steps(lr: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        rate = lr if learned else 0.1
        params, state = rule(layout, inputs[:count], inputs[count:], {}, 1, {**options, "lr": rate})
        params, state = rule(layout, params, [g * 2 for g in inputs[count:]], state, 2, {**options, "lr": rate})
        assert any("_FusedStep" in type(node).__name__ for node in _nodes(params[0]))
        return *params, *(x[:2] for x in state.values())

    arguments = (lr, *tensors(shapes=shapes), *tensors(shapes=shapes))
    assert torch.autograd.gradcheck(steps, arguments)
    assert torch.autograd.gradgradcheck(steps, arguments)


def _nodes(x: Tensor) -> list[Any]:
    found, seen = [x.grad_fn], {x.grad_fn}
    for node in found:
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                found.append(after)
    return found


@pytest.mark.parametrize(("rule", "options"), RULES)
def test_fused_step_equals_the_step_of_buffers(rule: Any, options: dict) -> None:
    """Values agree to the bit, and derivatives where only some results are used."""
    flat_rule = {_updates.sgd: _updates.flat_sgd, _updates.adam: _updates.flat_adam}[rule]
    layout = layout_of(tuple(torch.Size(shape) for shape in SHAPES))
    params, grads = tensors(), tensors()
    results = {}
    for each in (rule, over_buffers(flat_rule)):
        new, state = each(layout, params, grads, {}, 1, options)
        new, _ = each(layout, new, grads, state, 2, options)
        found = torch.autograd.grad(new[0].sum() + new[2].pow(2).sum(), [*params, *grads], allow_unused=True)
        dense = [torch.zeros_like(x) if g is None else g for g, x in zip(found, [*params, *grads], strict=True)]
        results[each] = new, join(layout_of(tuple(x.shape for x in dense)), dense)
    (actual, derivative), (expected, oracle) = results.values()
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    assert oracle.norm() > 0
    assert_close(derivative, oracle, "float64-rounding")


def test_plain_descent_keeps_no_tensor_and_tells_what_is_unused() -> None:
    params, grads = tensors(), tensors()
    new, _ = advance(_updates.sgd, SGD, (), params, grads)
    assert new[0].grad_fn.saved_tensors == ()
    found = torch.autograd.grad(new[1], [*params, *grads], allow_unused=True)
    assert [i for i, g in enumerate(found) if g is not None] == [1, len(SHAPES) + 1]
    assert found[len(SHAPES) + 1].item() == -0.1


@hypothesis.given(present=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=4))
def test_parameters_step_when_they_have_a_gradient(present: list[list[bool]]) -> None:
    """Each behaves as if it were alone."""
    params, alone = tensors(requires_grad=False), []
    for i, p in enumerate(params):
        m = v = torch.zeros_like(p)
        for count, step in enumerate([step for step, here in enumerate(present) if here[i]], 1):
            g = torch.full_like(p, float(step + 1))
            p, m, v = reference.adam_step(p, g, m, v, 0.1, step=count, betas=(0.6, 0.8), eps=0.1)
        alone.append(p)
    parts: Any = ()
    for step, here in enumerate(present):
        grads = [torch.full_like(p, float(step + 1)) if x else None for p, x in zip(params, here, strict=True)]
        params, parts = advance(_updates.adam, ADAM, parts, params, grads)
    assert all(torch.equal(p, expected) for p, expected in zip(params, alone, strict=True))


def test_tensors_that_only_look_like_a_buffer_are_copied() -> None:
    """Order, strides and storage must match the layout."""
    layout = layout_of((torch.Size((4, 8)), torch.Size((32,))))
    buffer = torch.arange(64.0)
    first, second = split(layout, buffer)
    shared = join(layout, [first, second])
    assert shared.data_ptr() == buffer.data_ptr()
    for pair in (
        [second.view(4, 8), first.view(32)],
        [first, second.clone()],
        [first, split(layout, torch.ones(64))[1]],
        [first.as_strided((4, 8), (1, 4)), second],
    ):
        flat = join(layout, pair)
        assert flat.data_ptr() != buffer.data_ptr()
        assert torch.equal(flat, torch.cat([x.reshape(-1) for x in pair]))
