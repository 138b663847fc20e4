"""Errors about bad input: one line that names the op and the argument, and says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ops_cases
from metagan_fast import FlatLayout, functional
from ops_cases import CASES, CLIP_CASES, Case

F = functional
ones = torch.ones


def adam(**changed: Any) -> Any:
    arguments = {name: ones(2, 4) for name in ("params", "grads", "exp_avg", "exp_avg_sq")}
    return F.adam_step(**{**arguments, "lr": 0.1, "step": 1, **changed})


def sgd(*, twin: bool = False, **changed: Any) -> Any:
    function = F.sgd_step_ if twin else F.sgd_step
    return function(**{"params": ones(2, 4), "grads": ones(2, 4), "lr": 0.1, **changed})


def rmsprop(*, twin: bool = False, **changed: Any) -> Any:
    function = F.rmsprop_step_ if twin else F.rmsprop_step
    return function(**{"params": ones(4), "grads": ones(4), "square_avg": ones(4), "lr": 0.1, **changed})


def reptile(**changed: Any) -> Any:
    return F.reptile_interpolate(**{"initial": ones(4), "adapted": ones(3, 4), "step_size": 0.1, **changed})


def layout() -> FlatLayout:
    return FlatLayout.from_module(torch.nn.Linear(3, 2))


BAD: list[tuple[str, Callable[[], Any], str]] = [
    ("not a tensor", lambda: sgd(params=[1.0]), "params must be a tensor, got list"),
    ("other not a tensor", lambda: sgd(grads=3.0), "grads must be a tensor, got float"),
    (
        "rank",
        lambda: sgd(params=ones(2, 3, 4)),
        r"params must be \[numel\] or \[tasks, numel\], got \[2, 3, 4\]",
    ),
    ("rank 0", lambda: sgd(params=ones(())), r"got \[\]"),
    ("half", lambda: sgd(params=ones(2).half()), "float32, bfloat16 or float64, got torch.float16"),
    ("integers", lambda: sgd(params=ones(2).int()), "got torch.int32"),
    ("shape", lambda: sgd(grads=ones(2, 3)), r"grads must have the shape \[2, 4\] of params, got \[2, 3\]"),
    ("state shape", lambda: adam(exp_avg_sq=ones(4)), "exp_avg_sq must have the shape"),
    (
        "dtype",
        lambda: sgd(grads=ones(2, 4).double()),
        "grads must be torch.float32 as params, got torch.float64",
    ),
    ("device", lambda: sgd(grads=ones(2, 4, device="meta")), "grads must be on cpu as params, got meta"),
    ("lr negative", lambda: sgd(lr=-0.1), "lr must be a finite number of at least 0, got -0.1"),
    ("lr nan", lambda: sgd(lr=float("nan")), "lr must be a finite number"),
    ("lr infinite", lambda: adam(lr=float("inf")), "lr must be a finite number"),
    ("lr integers", lambda: sgd(lr=torch.tensor(1)), "lr must be a floating-point tensor"),
    (
        "lr shape",
        lambda: sgd(lr=ones(3)),
        r"lr must be a number, a 0-dim tensor, or \[4\], \[2\], \[2, 1\] or \[2, 4\]",
    ),
    ("lr shape of a row", lambda: rmsprop(lr=ones(3)), r"or \[4\], got \[3\]"),
    ("lr ambiguous", lambda: F.sgd_step(ones(3, 3), ones(3, 3), ones(3)), r"pass \[3, 1\] or \[1, 3\]"),
    ("lr device", lambda: sgd(lr=ones(2, device="meta")), "lr must be on cpu"),
    ("lr scalar device", lambda: sgd(lr=ones((), device="meta")), "lr must be on cpu"),
    ("layout size", lambda: sgd(lr=ones(2), layout=layout()), "expected parameters of 64 elements"),
    (
        "layout lr",
        lambda: F.sgd_step(ones(2, 64), ones(2, 64), ones(3), layout=layout()),
        r"one value a tensor, \[2\] or \[2, 2\], got \[3\]",
    ),
    ("step", lambda: adam(step=0), "step counts from 1, got 0"),
    ("step dtype", lambda: adam(step=ones(2)), r"corrections in float64 on cpu .* got \[2\], torch.float32"),
    ("step shape", lambda: adam(step=ones((), dtype=torch.float64)), r"corrections in float64 on cpu .* got \[\]"),
    ("step grad", lambda: adam(step=ones(2, dtype=torch.float64, requires_grad=True)), "require no grad"),
    ("beta", lambda: adam(betas=(1.0, 0.9)), r"beta1 must be in \[0, 1\), got 1.0"),
    ("beta negative", lambda: adam(betas=(0.9, -0.1)), "beta2 must be in"),
    ("eps", lambda: adam(eps=-1e-8), "eps must be a finite number of at least 0"),
    ("eps_root", lambda: adam(eps_root=-1e-8), "eps_root must be"),
    ("no eps", lambda: adam(eps=0.0), "eps and eps_root are both 0"),
    ("weight decay", lambda: adam(weight_decay=-1.0), "weight_decay must be"),
    ("momentum", lambda: sgd(momentum=-0.9), "momentum must be"),
    ("nesterov", lambda: sgd(nesterov=True), "nesterov needs momentum"),
    (
        "nesterov, dampened",
        lambda: sgd(nesterov=True, momentum=0.9, dampening=0.1),
        "dampening 0, got 0.9 and 0.1",
    ),
    ("no buffer", lambda: sgd(twin=True, momentum=0.9), "momentum_buffer is needed to write to; pass zeros"),
    ("no average", lambda: rmsprop(twin=True, centered=True), "grad_avg is needed to write to"),
    ("alpha", lambda: rmsprop(alpha=1.0), r"alpha must be in \[0, 1\)"),
    ("rmsprop eps", lambda: rmsprop(eps=0.0), "eps must be a finite number above 0"),
    ("initial", lambda: reptile(initial=ones(1, 4)), r"initial must be \[numel\], got \[1, 4\]"),
    (
        "adapted",
        lambda: reptile(adapted=ones(3, 5)),
        r"adapted must be \[tasks, 4\], one row a task, got \[3, 5\]",
    ),
    ("adapted, one row", lambda: reptile(adapted=ones(4)), "one row a task"),
    ("no tasks", lambda: reptile(adapted=ones(0, 4)), "adapted has no tasks"),
    (
        "adapted dtype",
        lambda: reptile(adapted=ones(3, 4).double()),
        "adapted must be torch.float32 as initial",
    ),
    ("weights", lambda: reptile(weights=ones(2)), r"weights must be a floating-point tensor \[3\]"),
    ("weights list", lambda: reptile(weights=[1, 1, 1]), "weights must be a floating-point tensor"),
    ("step size", lambda: reptile(step_size=float("nan")), "step_size must be finite"),
    ("step size shape", lambda: reptile(step_size=ones(4)), "step_size must be a number or a 0-dim tensor"),
    ("max norm", lambda: F.clip_grad_norm(ones(3), float("inf")), "max_norm must be a finite number"),
    ("max norm of a step", lambda: sgd(max_norm=float("nan")), "max_norm must be a finite number"),
    (
        "max norm of a step, negative",
        lambda: adam(max_norm=-1.0),
        "max_norm must be a finite number of at least 0, got -1",
    ),
    ("max norm negative", lambda: F.clip_grad_norm(ones(3), -1.0), "max_norm must be"),
    ("decay", lambda: F.ema_update(ones(3), ones(3), 1.1), r"decay must be in \[0, 1\], got 1.1"),
    ("gradient", lambda: F.reptile_gradient_(ones(3), ones(4), ones(2, 4)), "gradient must have the shape"),
]


@pytest.mark.parametrize("attempt, message", [pytest.param(*rest, id=name) for name, *rest in BAD])
def test_bad_input(attempt: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        attempt()
    assert re.match(r"[a-z_]+: [^\n]+$", str(raised.value)), "one line that begins with the op"


@pytest.mark.parametrize("case", CASES + CLIP_CASES, ids=str)
def test_a_twin_refuses_what_requires_grad(case: Case) -> None:
    arguments = ops_cases.make(case, 2, 5, lr_form="task")
    if case.op == "reptile_gradient":
        arguments["gradient"] = torch.zeros(5, dtype=torch.float64)
    for name, x in list(arguments.items()):
        if not isinstance(x, Tensor):
            continue
        wants = {**ops_cases.clone(arguments), name: x.clone().requires_grad_()}
        with pytest.raises(RuntimeError, match=f"{case.op}_: {name} requires grad"):
            case.twin(**wants)
        with torch.no_grad():
            case.twin(**wants)


def test_a_twin_tells_autograd_that_a_saved_tensor_changed() -> None:
    params = ones(3)
    x = ones(3, requires_grad=True)
    product = (x * params).sum()
    F.sgd_step_(params, ones(3), 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_a_twin_works_in_inference_mode() -> None:
    with torch.inference_mode():
        params = ones(3)
        F.sgd_step_(params, ones(3), 0.5)
        assert params.tolist() == [0.5] * 3
        F.sgd_step_(ones(3), ones(3), 0.5)


def test_a_twin_refuses_memory_that_overlaps() -> None:
    buffer = ones(20)
    for params, grads, message in [
        (buffer[:8], buffer[4:12], "params and grads share memory"),
        (buffer[4:12], buffer[:8], "share memory"),
        (torch.ones(1).expand(8), ones(8), "elements of params must be adjacent"),
        (ones(8, 3).t(), ones(3, 8), "elements of params must be adjacent"),
        (ones(4).expand(3, 4), ones(3, 4), "rows of params overlap"),
        (buffer.as_strided((4, 4), (2, 1)), ones(4, 4), "rows of params overlap"),
    ]:
        with pytest.raises(ValueError, match=message):
            F.sgd_step_(params, grads, 0.1)
    with pytest.raises(ValueError, match="share memory"):
        F.adam_step_(params := ones(8), ones(8), params, ones(8), 0.1, step=1)
    rows = ones(3, 8)
    with pytest.raises(ValueError, match="share memory"):
        F.reptile_interpolate_(rows[0], rows, 0.1)
    with pytest.raises(ValueError, match="share memory"):
        F.sgd_step_(params := ones(8), ones(8), params[2])


def test_memory_that_does_not_overlap_is_accepted() -> None:
    """Outputs may be neighbours in one buffer, interleaved rows, or the input itself."""
    buffer = ones(16)
    F.sgd_step_(buffer[:8], buffer[8:], 0.5)
    assert buffer.tolist() == [0.5] * 8 + [1.0] * 8
    rows = ones(3, 2, 8)
    F.sgd_step_(rows[:, 0], rows[:, 1], 0.5)
    assert (rows[:, 0] == 0.5).all() and (rows[:, 1] == 1).all()
    same = ones(8)
    F.sgd_step_(same, same, 0.25)
    assert same.tolist() == [0.75] * 8
