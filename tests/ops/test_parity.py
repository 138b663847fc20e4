"""The native kernels against the reference: the same bits for any shape, instruction set, thread count."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import ops_cases
from metagan_fast import FlatLayout, _native, functional
from ops_cases import CANARY, CASES, CLIP_CASES, LR_FORMS, NUMBERED, Case, same_bits
from support import ISAS, assert_close

AVAILABLE, WHY_NOT = _native.is_available()
pytestmark = pytest.mark.skipif(not AVAILABLE, reason=WHY_NOT)

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def on(backend: str, function: Callable, arguments: ops_cases.Arguments) -> tuple[Tensor, ...]:
    with functional.use_backend(backend):
        return ops_cases.call(function, arguments)


def check(case: Case, actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for name, a, b in zip(case.written, actual, expected, strict=True):
        if case.rounds_exactly(b.dtype):
            assert same_bits(a, b), name
        else:
            assert_close(a, b, "float64-square-root")


@pytest.mark.parametrize("case", CASES, ids=str)
@given(
    rows=st.sampled_from([None, 1, 2, 5]),
    numel=st.sampled_from([0, 1, 2, 7, 16, 31, 33, 64, 129, 1000]),
    dtype=st.sampled_from(DTYPES),
    lr_form=st.sampled_from(LR_FORMS),
    tasks=st.integers(1, 6),
    margin=st.sampled_from([0, ops_cases.MARGIN]),
)
def test_same_bits_as_the_reference(
    case: Case, rows: int | None, numel: int, dtype: torch.dtype, lr_form: str, tasks: int, margin: int
) -> None:
    arguments = ops_cases.make(case, rows, numel, dtype, lr_form=lr_form, tasks=tasks, margin=margin)
    expected = on("reference", case.function, arguments)
    actual = on("native", case.function, arguments)
    check(case, actual, expected)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set_and_thread_count(
    case: Case, dtype: torch.dtype, isa: str, set_threads: Callable
) -> None:
    arguments = ops_cases.make(case, 3, 20_011, dtype, lr_form="task-column", margin=ops_cases.MARGIN)
    expected = on("reference", case.function, arguments)
    for threads in (1, 2, 4):
        set_threads(threads)
        actual = on("native", case.function, arguments)
        if threads == 1:
            check(case, actual, expected)
            first = actual
        assert all(map(same_bits, actual, first))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_special_values(case: Case, isa: str) -> None:
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 3e38, -3e38, torch.inf, -torch.inf, torch.nan, 1.0])
    pairs = torch.cartesian_prod(special, special)
    arguments = ops_cases.make(case, None, len(pairs), torch.float32, tasks=2)
    buffers = [x for x in arguments.values() if isinstance(x, Tensor) and x.shape[-1:] == (len(pairs),)]
    for i, x in enumerate(buffers):
        x.copy_(pairs[:, i % 2].roll(7 * (i // 2)))
    expected = on("reference", case.function, arguments)
    for a, b in zip(on("native", case.function, arguments), expected, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rounding_of_halves(case: Case, dtype: torch.dtype) -> None:
    """bfloat16 rounds ties in the last place to even."""
    arguments = ops_cases.make(case, None, 512, dtype)
    for x in arguments.values():
        if isinstance(x, Tensor) and x.shape[-1:] == (512,):
            x.copy_(torch.randint(0, 256, x.shape) / 256 + 1)
    check(case, on("native", case.function, arguments), on("reference", case.function, arguments))


@pytest.mark.parametrize("case", [case for case in CASES if case.has_lr], ids=str)
@pytest.mark.parametrize("per_task", [False, True])
def test_one_learning_rate_a_parameter_tensor(case: Case, per_task: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 40), torch.nn.PReLU())
    layout = FlatLayout.from_module(module)
    slots = len(layout.slots)
    arguments = ops_cases.make(case, 2, layout.numel, torch.float32)
    used = layout.flatten(module).bool()
    rows = arguments["params"].shape[:-1]
    arguments |= {"lr": torch.rand(*rows, slots) if per_task else torch.rand(slots), "layout": layout}
    expected = on("reference", case.function, arguments)
    for a, b in zip(on("native", case.function, arguments), expected, strict=True):
        assert same_bits(a[..., used], b[..., used])
    strided = torch.rand(*rows, 2 * slots)[..., ::2]
    strided.copy_(arguments["lr"].expand_as(strided))
    for a, b in zip(on("native", case.function, {**arguments, "lr": strided}), expected, strict=True):
        assert same_bits(a[..., used], b[..., used])


@pytest.mark.parametrize("case", [case for case in CASES if case.has_lr], ids=str)
def test_learning_rates_of_any_dtype_and_stride(case: Case) -> None:
    arguments = ops_cases.make(case, 4, 9, torch.float32)
    shape = arguments["params"].shape
    columns = torch.rand(9, 4, dtype=torch.float64).t() if len(shape) == 2 else torch.rand(18, dtype=torch.float64)[::2]
    for lr in (columns, columns.bfloat16(), torch.tensor(0.1, dtype=torch.float64)):
        expected = on("reference", case.function, {**arguments, "lr": lr})
        for a, b in zip(on("native", case.function, {**arguments, "lr": lr}), expected, strict=True):
            assert same_bits(a, b)


@pytest.mark.parametrize("case", NUMBERED, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_in_tensors_change_no_bit(case: Case, dtype: torch.dtype) -> None:
    arguments = ops_cases.make(case, 2, 70, dtype)
    expected = on("reference", case.function, arguments)
    for backend in ("native", "reference"):
        check(case, on(backend, case.function, ops_cases.in_tensors(case, arguments)), expected)


def test_a_step_size_of_any_dtype() -> None:
    arguments = {"initial": torch.randn(40), "adapted": torch.randn(2, 40)}
    for dtype in DTYPES:
        size = torch.tensor(0.3, dtype=dtype)
        numbers = {**arguments, "step_size": size.item()}
        (expected,) = on("reference", functional.reptile_interpolate, numbers)
        (actual,) = on("native", functional.reptile_interpolate, {**arguments, "step_size": size})
        assert same_bits(actual, expected)


@pytest.mark.parametrize("case", CASES + CLIP_CASES, ids=str)
def test_inputs_of_any_stride(case: Case) -> None:
    """Inputs may be strided, or expanded from one row."""
    arguments = ops_cases.make(case, 4, 9, torch.float32)
    expected = on("native", case.function, arguments)
    transposed = {
        name: x.t().contiguous().t() if isinstance(x, Tensor) and x.ndim == 2 else x for name, x in arguments.items()
    }
    for a, b in zip(on("native", case.function, transposed), expected, strict=True):
        assert same_bits(a, b)
    if "grads" in arguments:
        one = torch.ones((), dtype=torch.float32)
        expanded = {**arguments, "grads": one.expand(4, 9)}
        filled = {**arguments, "grads": torch.ones(4, 9)}
        results = (on("native", case.function, expanded), on("native", case.function, filled))
        for a, b in zip(*results, strict=True):
            assert same_bits(a, b)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("case", CASES + CLIP_CASES, ids=str)
@given(
    rows=st.sampled_from([None, 1, 3]),
    numel=st.sampled_from([0, 1, 31, 100]),
    dtype=st.sampled_from(DTYPES),
    lr_form=st.sampled_from(LR_FORMS),
)
def test_twins_overwrite_what_they_name_and_nothing_else(
    backend: str, case: Case, rows: int | None, numel: int, dtype: torch.dtype, lr_form: str
) -> None:
    before = ops_cases.make(case, rows, numel, dtype, lr_form=lr_form, margin=ops_cases.MARGIN)
    expected = on(backend, case.function, before)
    after = ops_cases.clone(before)
    if case.op == "reptile_gradient":
        after["gradient"] = torch.zeros_like(before["initial"])
    results = on(backend, case.twin, after)
    for name, result, value in zip(case.written, results, expected, strict=False):
        assert result is after[name]
        assert same_bits(result, value), name
    for name, x in before.items():
        if not isinstance(x, Tensor):
            continue
        if name not in case.written:
            assert same_bits(after[name], x), name
        if x._base is not None and name != "lr":
            margins = after[name]._base.clone()
            margins[..., ops_cases.MARGIN : ops_cases.MARGIN + numel] = CANARY
            assert (margins == CANARY).all(), name


@pytest.mark.parametrize("case", CASES + CLIP_CASES, ids=str)
def test_zero_padding_stays_zero(case: Case) -> None:
    arguments = ops_cases.make(case, 2, 50, torch.float32)
    for x in arguments.values():
        if isinstance(x, Tensor) and x.shape[-1:] == (50,):
            x[..., 45:] = 0
    for result in on("native", case.function, arguments):
        assert not result[..., 45:].any() or result.shape[-1:] != (50,)


@pytest.mark.parametrize("case", CLIP_CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, numel", [(None, 0), (None, 1), (3, 100), (2, 70_001)])
def test_clip_grad_norm_within_two_ulp(
    case: Case, dtype: torch.dtype, rows: int | None, numel: int, isa: str, set_threads: Callable
) -> None:
    arguments = ops_cases.make(case, rows, numel, dtype, margin=ops_cases.MARGIN)
    expected = on("reference", case.function, arguments)
    first = on("native", case.function, arguments)
    assert ulps(first[1], expected[1]) <= 2
    # In float64 the sum is no wider than the result: scale and product add their roundings to the norm's.
    assert ulps(first[0], expected[0]) <= (4 if dtype == torch.float64 else 2)
    for threads in (2, 4):
        set_threads(threads)
        for a, b in zip(on("native", case.function, arguments), first, strict=True):
            assert same_bits(a, b), (isa, threads)


def test_clip_grad_norm_sums_in_float64() -> None:
    """A million elements of 1e-3 beside one of 1e4: a float32 sum of squares would lose them all."""
    grads = torch.full((1_000_001,), 1e-3)
    grads[0] = 1e4
    _, norm = functional.clip_grad_norm(grads, 1.0)
    assert_close(norm, grads.double().norm(), "float32-rounding")
    tiny = torch.full((4, 100), 1e-30)  # squares underflow float32
    assert (functional.clip_grad_norm(tiny, 1.0)[1] > 0).all()


def test_the_thread_variable_is_read_at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAGAN_FAST_THREADS", "3")
    assert _native.threads() == 3
    for wrong in ("0", "-1", "two"):
        monkeypatch.setenv("METAGAN_FAST_THREADS", wrong)
        with pytest.raises(ValueError, match="METAGAN_FAST_THREADS"):
            functional.sgd_step(torch.ones(3), torch.ones(3), 0.1)
    monkeypatch.delenv("METAGAN_FAST_THREADS")
    assert _native.threads() == torch.get_num_threads()


@pytest.mark.skipif("METAGAN_FAST_ISA" in os.environ, reason="METAGAN_FAST_ISA chooses")
def test_the_best_instruction_set_is_the_default() -> None:
    assert _native._core.isa() == ISAS[-1]


def ulps(actual: Tensor, expected: Tensor) -> float:
    """Return the largest distance in units of the last place of the expected values."""
    if not expected.numel():
        return 0.0
    last_place = torch.finfo(expected.dtype).eps * 2.0 ** torch.floor(torch.log2(expected.double().abs()))
    last_place = torch.where(expected == 0, 1.0, last_place)
    return ((actual.double() - expected.double()).abs() / last_place).max().item()
