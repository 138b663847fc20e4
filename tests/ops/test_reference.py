"""The reference against oracles that share no code with it: torch.optim, torch.nn.utils, closed forms."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import ops_cases
from metagan_fast.ops import reference
from ops_cases import CASES, CLIP_CASES, Case, same_bits
from support import assert_close

STEPS = 4


def trajectory(
    optimizer: type[torch.optim.Optimizer], start: Tensor, gradients: list[Tensor], **options: Any
) -> Tensor:
    """Return the parameters of a torch optimizer after steps along given gradients."""
    params = torch.nn.Parameter(start.clone())
    stepper = optimizer([params], **options)
    for gradient in gradients:
        params.grad = gradient.clone()
        stepper.step()
    return params.detach()


@pytest.fixture
def problem() -> tuple[Tensor, list[Tensor]]:
    gradients = [torch.randn(3, 11, dtype=torch.float64) for _ in range(STEPS)]
    for gradient in gradients:
        gradient[:, 5] = 0  # an element with zero gradients
    return torch.randn(3, 11, dtype=torch.float64), gradients


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True},
    ],
    ids=str,
)
def test_sgd_step_is_torch_sgd(problem: tuple[Tensor, list[Tensor]], options: dict[str, Any]) -> None:
    params, gradients = problem
    expected = trajectory(torch.optim.SGD, params, gradients, lr=0.1, **options)
    state = {"momentum_buffer": torch.zeros_like(params)} if "momentum" in options else {}
    for step, gradient in enumerate(gradients):
        first = {"dampening": 0.0} if step == 0 else {}  # torch does not dampen the first step
        params, *buffers = reference.sgd_step(params, gradient, 0.1, **{**options, **state, **first})
        state = {"momentum_buffer": buffers[0]} if buffers else {}
    assert_close(params, expected, "float64-rounding")


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"betas": (0.5, 0.9), "eps": 1e-3}], ids=str)
@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_step_is_torch_adam(
    problem: tuple[Tensor, list[Tensor]], options: dict[str, Any], decoupled: bool
) -> None:
    params, gradients = problem
    optimizer = torch.optim.AdamW if decoupled else torch.optim.Adam
    expected = trajectory(optimizer, params, gradients, **{"lr": 0.1, "weight_decay": 0.0, **options})
    m, v = torch.zeros_like(params), torch.zeros_like(params)
    for step, gradient in enumerate(gradients, start=1):
        params, m, v = reference.adam_step(params, gradient, m, v, 0.1, step=step, decoupled=decoupled, **options)
    assert_close(params, expected, "float64-rounding")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1, "momentum": 0.9},
        {"centered": True},
        {"alpha": 0.5, "eps": 1e-3, "momentum": 0.9, "centered": True},
    ],
    ids=str,
)
def test_rmsprop_step_is_torch_rmsprop(problem: tuple[Tensor, list[Tensor]], options: dict[str, Any]) -> None:
    params, gradients = problem
    expected = trajectory(torch.optim.RMSprop, params, gradients, lr=0.1, **options)
    square_avg = torch.zeros_like(params)
    names = ["momentum_buffer"] * ("momentum" in options) + ["grad_avg"] * ("centered" in options)
    state = dict.fromkeys(names, torch.zeros_like(params))
    for gradient in gradients:
        params, square_avg, *rest = reference.rmsprop_step(params, gradient, square_avg, 0.1, **options, **state)
        state = dict(zip(names, rest, strict=True))
    assert_close(params, expected, "float64-rounding")


def test_a_constant_gradient_leaves_the_centered_variance_at_zero() -> None:
    """Rounding may make the centered variance negative, whose root in torch.optim.RMSprop is NaN."""
    params, square_avg, grad_avg = torch.zeros(1000), torch.zeros(1000), torch.zeros(1000)
    gradient = torch.randn(1000)
    for _ in range(200):
        params, square_avg, grad_avg = reference.rmsprop_step(
            params, gradient, square_avg, 1e-3, alpha=0.5, centered=True, grad_avg=grad_avg
        )
    assert params.isfinite().all()
    assert (square_avg < grad_avg * grad_avg).any(), "the case this test is about does not occur"


@given(tasks=st.integers(1, 5), numel=st.integers(0, 40))
def test_reptile_is_the_mean_difference(tasks: int, numel: int) -> None:
    initial, adapted = torch.randn(numel).double(), torch.randn(tasks, numel).double()
    difference = adapted.mean(0) - initial
    assert_close(reference.reptile_interpolate(initial, adapted, 0.3), initial + 0.3 * difference, "float64-rounding")
    assert_close(reference.reptile_gradient(initial, adapted), -difference, "float64-rounding")
    weights = torch.rand(tasks).double()
    difference = weights @ (adapted - initial)
    weighted = reference.reptile_interpolate(initial, adapted, 0.3, weights)
    assert_close(weighted, initial + 0.3 * difference, "float64-rounding")
    assert_close(reference.reptile_gradient(initial, adapted, weights), -difference, "float64-rounding")


def test_a_full_step_reaches_the_only_task() -> None:
    initial, adapted = torch.tensor([1.0, -2.0]), torch.tensor([[3.0, 5.0]])
    assert torch.equal(reference.reptile_interpolate(initial, adapted, 1.0), adapted[0])


@pytest.mark.parametrize("decoupled", [False, True])
def test_meta_adam_step_is_torch_adam_on_the_difference(decoupled: bool) -> None:
    initial = torch.randn(12, dtype=torch.float64)
    adapted = [torch.randn(4, 12, dtype=torch.float64) for _ in range(STEPS)]
    optimizer = torch.optim.AdamW if decoupled else torch.optim.Adam
    theta = torch.nn.Parameter(initial.clone())
    stepper = optimizer([theta], lr=0.1, weight_decay=0.05)
    params, m, v = initial, torch.zeros_like(initial), torch.zeros_like(initial)
    for step, rows in enumerate(adapted, start=1):
        theta.grad = theta.detach() - rows.mean(0)
        stepper.step()
        params, m, v = reference.meta_adam_step(
            params, rows, m, v, 0.1, step=step, weight_decay=0.05, decoupled=decoupled
        )
    assert_close(params, theta, "float64-rounding")


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e9])
def test_clip_grad_norm_is_torch_per_row(max_norm: float) -> None:
    grads = torch.randn(3, 20, dtype=torch.float64) * torch.tensor([[1e-3], [1.0], [1e3]]).double()
    clipped, norms = reference.clip_grad_norm(grads, max_norm)
    for row, clipped_row, norm in zip(grads, clipped, norms, strict=True):
        holder = torch.nn.Parameter(torch.zeros(20, dtype=torch.float64))
        holder.grad = row.clone()
        assert_close(norm, torch.nn.utils.clip_grad_norm_([holder], max_norm), "float64-rounding")
        assert_close(clipped_row, holder.grad, "float64-rounding")


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_clip_grad_norm_shows_a_bad_norm_as_torch_does(bad: float) -> None:
    grads = torch.tensor([[1.0, bad], [3.0, 4.0]])
    clipped, norms = reference.clip_grad_norm(grads, 5.0)
    holder = torch.nn.Parameter(torch.zeros(2))
    holder.grad = grads[0].clone()
    torch.nn.utils.clip_grad_norm_([holder], 5.0)
    assert torch.equal(clipped[0].isnan(), holder.grad.isnan())
    assert not norms[0].isfinite() and norms[1] == 5
    assert clipped[1].isfinite().all()


def test_ema_update_is_the_weighted_sum_of_the_past() -> None:
    values = torch.randn(5, 7, dtype=torch.float64)
    average = values[0]
    for value in values[1:]:
        average = reference.ema_update(average, value, 0.8)
    weights = 0.2 * 0.8 ** torch.arange(4, -1, -1, dtype=torch.float64)
    weights[0] = 0.8**4
    assert_close(average, weights @ values, "float64-rounding")
    assert torch.equal(reference.ema_update(values[0], values[1], 1.0), values[0])


@pytest.mark.parametrize("case", CASES + CLIP_CASES, ids=str)
def test_bfloat16_is_storage_alone(case: Case) -> None:
    """bfloat16 is widened, computed in float32 and rounded once."""
    arguments = ops_cases.make(case, 2, 37, torch.bfloat16, lr_form="number")
    function = getattr(reference, case.op)
    wide = {name: x.float() if isinstance(x, Tensor) else x for name, x in arguments.items()}
    results, wide_results = function(**arguments), function(**wide)
    if isinstance(results, Tensor):
        results, wide_results = (results,), (wide_results,)
    for result, wide_result in zip(results, wide_results, strict=True):
        assert same_bits(result, wide_result.to(result.dtype))


def test_every_call_rounds_once() -> None:
    """The reference avoids fused torch calls, which round once where the kernels round twice."""
    source = inspect.getsource(reference).split('"""', 2)[2]
    for fused in ("alpha=1", "alpha=-", ".addcmul", ".addcdiv", ".lerp", "torch.add(", ".add(", ".sub("):
        assert fused not in source, fused


def test_the_square_root_has_no_slope_at_zero() -> None:
    x = torch.tensor([0.0, 4.0, torch.nan], dtype=torch.float64, requires_grad=True)
    root = reference.safe_sqrt(x)
    assert root[:2].tolist() == [0.0, 2.0] and root[2].isnan()
    (first,) = torch.autograd.grad(root[:2].sum(), x, create_graph=True)
    assert first[:2].tolist() == [0.0, 0.25]
    (second,) = torch.autograd.grad(first[:2].sum(), x)
    assert second[:2].tolist() == [0.0, -1 / 32]
