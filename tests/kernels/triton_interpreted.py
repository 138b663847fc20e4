"""The Triton kernels against the reference, in Triton's interpreter; `test_triton_interpreter.py` starts this file.

A kernel chooses the interpreter when it is imported, so the tests need a separate process. It writes out of bounds
without a word, so buffers have canaries around them. It takes milliseconds a program: few blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from metagan_fast.kernels.blocks import PARTS
from metagan_fast.kernels.updates import _launch
from metagan_fast.kernels.updates.clip_grad_norm import SHORT_ROW, in_two_launches
from metagan_fast.kernels.updates.sgd_step import sgd_step
from torch import Tensor

import ops_cases
from metagan_fast import FlatLayout, _triton, functional
from ops_cases import BY_NAME, CANARY, CASES, CLIP_CASES, LR_FORMS, MARGIN, NUMBERED, Case, same_bits
from support import assert_close

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
SIZES = ((None, 1), (2, 33), (1, _launch.BLOCK), (2, _launch.BLOCK + 7))
RATED = tuple(case for case in CASES if case.has_lr)


def on(backend: str, function: Callable, arguments: ops_cases.Arguments) -> tuple[Tensor, ...]:
    with functional.use_backend(backend):
        return ops_cases.call(function, arguments)


def check(case: Case, actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert len(actual) == len(expected)
    for name, a, b in zip(case.written, actual, expected, strict=True):
        if b.dtype == torch.bfloat16:
            assert_close(a, b, "interpreted-bf16")
        elif case.rounds_exactly(b.dtype):
            assert same_bits(a, b), name
        else:
            assert_close(a, b, "float64-square-root")


def record_launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each launch adds its kernel's name."""
    started: list[str] = []
    start = _launch.start
    monkeypatch.setattr(_launch, "start", lambda kernel, *rest: started.append(kernel.__name__) or start(kernel, *rest))
    return started


def check_margins(arguments: ops_cases.Arguments) -> None:
    for name, x in arguments.items():
        if isinstance(x, Tensor) and x._base is not None:
            for canaries in (x._base[..., :MARGIN], x._base[..., -MARGIN:]):
                assert (canaries == CANARY).all(), name


def test_the_interpreter_is_on() -> None:
    assert _triton.is_interpreted() == (True, "")
    assert type(sgd_step.__globals__["sgd_step_kernel"]).__name__ == "InterpretedFunction"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_as_the_reference(case: Case, dtype: torch.dtype) -> None:
    for i, (rows, numel) in enumerate(SIZES):
        if dtype != torch.float32 and i % 2 == 0:
            continue
        arguments = ops_cases.make(case, rows, numel, dtype, lr_form=LR_FORMS[i], tasks=i + 1, margin=MARGIN)
        expected = on("reference", case.function, arguments)
        if i == 1:
            check(case, on("triton", case.function, arguments), expected)
        in_place = ops_cases.clone(arguments)
        if case.op == "reptile_gradient":
            in_place = {"gradient": torch.empty_like(in_place["initial"]), **in_place}
        check(case, on("triton", case.twin, in_place), expected)
        check_margins(in_place)


@pytest.mark.parametrize("lr_form", LR_FORMS)
@pytest.mark.parametrize("case", RATED[::3], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[::2], ids=str)
def test_every_form_of_learning_rate(case: Case, lr_form: str, dtype: torch.dtype) -> None:
    arguments = ops_cases.make(case, 3, 70, dtype, lr_form=lr_form)
    check(case, on("triton", case.function, arguments), on("reference", case.function, arguments))


@pytest.mark.parametrize("case", RATED[::3], ids=str)
@pytest.mark.parametrize("per_task", [False, True])
def test_one_learning_rate_a_parameter_tensor(case: Case, per_task: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 140), torch.nn.PReLU())
    layout = FlatLayout.from_module(module)
    arguments = ops_cases.make(case, 2, layout.numel, torch.float32)
    used = layout.flatten(module).bool()
    rows, slots = arguments["params"].shape[:-1], len(layout.slots)
    lr = torch.rand(*rows, 2 * slots)[..., ::2] if per_task else torch.rand(slots)
    arguments |= {"lr": lr, "layout": layout}
    expected = on("reference", case.function, arguments)
    for a, b in zip(on("triton", case.function, arguments), expected, strict=True):
        assert same_bits(a[..., used], b[..., used])


@pytest.mark.parametrize("case", RATED[::3], ids=str)
def test_learning_rates_of_any_dtype_and_stride(case: Case) -> None:
    arguments = ops_cases.make(case, 4, 9, torch.float32)
    shape = arguments["params"].shape
    columns = torch.rand(9, 4, dtype=torch.float64).t() if len(shape) == 2 else torch.rand(18, dtype=torch.float64)[::2]
    for lr in (columns, columns.bfloat16(), torch.tensor(0.1, dtype=torch.float64)):
        arguments["lr"] = lr
        check(case, on("triton", case.function, arguments), on("reference", case.function, arguments))


@pytest.mark.parametrize("case", NUMBERED[::4], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numbers_in_tensors(case: Case, dtype: torch.dtype) -> None:
    arguments = ops_cases.make(case, 2, 70, dtype)
    in_tensors = ops_cases.in_tensors(case, arguments)
    check(case, on("triton", case.function, in_tensors), on("reference", case.function, arguments))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the interpreter
@pytest.mark.parametrize("case", CASES, ids=str)
def test_special_values(case: Case) -> None:
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 3e38, -3e38, torch.inf, -torch.inf, torch.nan, 1.0])
    pairs = torch.cartesian_prod(special, special)
    arguments = ops_cases.make(case, None, len(pairs), torch.float32, tasks=2)
    buffers = [x for x in arguments.values() if isinstance(x, Tensor) and x.shape[-1:] == (len(pairs),)]
    for i, x in enumerate(buffers):
        x.copy_(pairs[:, i % 2].roll(7 * (i // 2)))
    expected = on("reference", case.function, arguments)
    for a, b in zip(on("triton", case.function, arguments), expected, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CLIP_CASES, ids=str)
def test_clip_grad_norm(case: Case, dtype: torch.dtype) -> None:
    for rows, numel in ((None, 1), (3, _launch.BLOCK + 7), (2, 0), (1, SHORT_ROW + 1)):
        arguments = ops_cases.make(case, rows, numel, dtype, margin=MARGIN)
        (expected, norms), (actual, actual_norms) = (on(x, case.function, arguments) for x in ("reference", "triton"))
        assert_close(actual_norms, norms, "clip-norm")
        assert_close(actual, expected, "interpreted-bf16" if dtype == torch.bfloat16 else "clip-norm")
        in_place = ops_cases.clone(arguments)
        assert same_bits(on("triton", case.twin, in_place)[0], actual)
        check_margins(in_place)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clipping_in_one_launch_has_the_bits_of_two(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    started = record_launches(monkeypatch)
    for rows, numel in ((None, 1), (2, 2 * _launch.BLOCK), (1, SHORT_ROW)):
        arguments = ops_cases.make(CLIP_CASES[0], rows, numel, dtype)
        started.clear()
        one = on("triton", functional.clip_grad_norm, arguments)
        assert started == ["clip_short_rows_kernel"]
        with monkeypatch.context() as patch:
            patch.setattr("metagan_fast.kernels.updates.clip_grad_norm.in_one_launch", in_two_launches)
            two = on("triton", functional.clip_grad_norm, arguments)
        assert started[1:] == ["sum_of_squares_kernel", "clip_grad_norm_kernel"]
        assert all(map(same_bits, one, two))


def test_clipping_rows_that_are_not_finite() -> None:
    grads = torch.ones(3, 20)
    grads[0, 3], grads[1, 4] = torch.nan, torch.inf
    (expected, norms), (actual, actual_norms) = (
        on(name, functional.clip_grad_norm, {"grads": grads, "max_norm": 1.0}) for name in ("reference", "triton")
    )
    assert same_bits(actual_norms[:2], norms[:2])
    assert same_bits(actual[:2], expected[:2])


def test_rows_further_apart_than_32_bits_count() -> None:
    """Offsets reach 2^31 in rows 2^30 apart, in sparse memory of few touched pages."""
    whole = torch.empty(2 * (2**30 + 16) + 40, dtype=torch.bfloat16)
    average = whole.as_strided((3, 40), (2**30 + 16, 1))
    params = torch.ones(3, 40, dtype=torch.bfloat16)
    average.zero_()
    on("triton", functional.ema_update_, {"average": average, "params": params, "decay": 0.5})
    assert (average == 0.5).all()
    clipped, norms = on("triton", functional.clip_grad_norm, {"grads": average, "max_norm": 1e9})
    assert torch.equal(clipped, average)
    assert_close(norms, torch.full((3,), 10.0).sqrt(), "clip-norm")


def test_more_blocks_than_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "BLOCK", 16)
    grads = torch.randn(2, 16 * 2 * PARTS.value // 64 + 5).double()
    monkeypatch.setattr("metagan_fast.kernels.updates.clip_grad_norm.PARTS", type(PARTS)(4))
    monkeypatch.setattr("metagan_fast.kernels.updates.clip_grad_norm.SHORT_ROW", 16)
    _, norms = on("triton", functional.clip_grad_norm, {"grads": grads, "max_norm": 1.0})
    assert_close(norms, grads.norm(dim=-1), "clip-norm")


@pytest.mark.parametrize(
    "case",
    [
        BY_NAME["sgd_step-weight_decay=0.1"],
        BY_NAME["sgd_step-momentum=0.9-nesterov=True-weight_decay=0.1"],
        BY_NAME["adam_step-step=3-weight_decay=0.1"],
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, numel", [(None, 70), (2, _launch.BLOCK + 7)])
def test_fused_clipping_and_reset(
    case: Case, dtype: torch.dtype, rows: int | None, numel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One launch, or one beside the sums of squares, gives the bytes of clipping, step and reset one by one."""
    arguments = ops_cases.make(case, rows, numel, dtype, lr_form="task-column", margin=MARGIN)
    clipped, _ = on("triton", functional.clip_grad_norm, {"grads": arguments["grads"], "max_norm": 0.5})
    expected = on("triton", case.function, {**arguments, "grads": clipped})
    for a, b in zip(expected, on("reference", case.function, {**arguments, "max_norm": 0.5}), strict=True):
        assert_close(a, b, "interpreted-bf16" if dtype == torch.bfloat16 else "clip-norm")
    fused = {**ops_cases.clone(arguments), "max_norm": 0.5}
    started = record_launches(monkeypatch)
    results = [on("triton", case.function, fused)]
    assert same_bits(fused["grads"], arguments["grads"])
    version = fused["grads"]._version
    results.append(on("triton", case.twin, {**fused, "zero_grads": True}))
    assert started == [f"{case.op}_kernel", "sum_of_squares_kernel", f"{case.op}_kernel"]
    monkeypatch.setattr("metagan_fast.kernels.updates.clip_grad_norm.SHORT_ROW", 0)  # in parts
    again = on("triton", case.function, {**arguments, "max_norm": 0.5})
    assert started[3:] == ["sum_of_squares_kernel", f"{case.op}_kernel"]
    for a, b in zip(again, expected, strict=True):
        assert_close(a, b, "interpreted-bf16" if dtype == torch.bfloat16 else "clip-norm")
    for found in results:
        assert all(map(same_bits, found, expected))
    assert same_bits(fused["grads"], torch.zeros_like(fused["grads"]))
    assert fused["grads"]._version > version
    check_margins(fused)


@pytest.mark.parametrize("case", [BY_NAME["sgd_step"], BY_NAME["adam_step-step=3"]], ids=str)
def test_reset_alone(case: Case) -> None:
    arguments = ops_cases.make(case, 2, 70, torch.float32, margin=MARGIN)
    expected = on("reference", case.function, arguments)
    check(case, on("triton", case.twin, {**arguments, "zero_grads": True}), expected)
    assert not arguments["grads"].any()
    check_margins(arguments)


def test_fused_clipping_of_rows_that_are_not_finite() -> None:
    grads = torch.ones(3, 20)
    grads[0, 3], grads[1, 4] = torch.nan, torch.inf
    arguments = {"params": torch.zeros(3, 20), "grads": grads, "lr": 0.1, "max_norm": 1.0}
    (expected,), (actual,) = (on(name, functional.sgd_step, arguments) for name in ("reference", "triton"))
    assert same_bits(actual[:2], expected[:2])
    assert_close(actual[2], expected[2], "clip-norm")
