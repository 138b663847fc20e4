"""The CUDA kernels on the CPU: the reference's bits in any order of threads, no write out of bounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import cuda_build
import ops_cases
from cuda_on_cpu import ORDERS, kernels_on_cpu, library
from metagan_fast import FlatLayout, _native, functional
from metagan_fast._native import buffers
from metagan_fast._native.buffers import arithmetic
from metagan_fast.ops import _dispatch
from metagan_fast.ops._op import OPS
from metagan_fast.ops.clip_grad_norm import SHORT_ROW
from ops_cases import CANARY, CASES, CLIP_CASES, LR_FORMS, NUMBERED, Case, same_bits
from support import assert_close
from test_parity import check, on, ulps

pytestmark = [
    pytest.mark.skipif(bool(cuda_build.module_problem()), reason=cuda_build.module_problem()),
    pytest.mark.skipif(not _native.is_available()[0], reason=_native.is_available()[1]),
]

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def on_kernels(
    case: Case, arguments: ops_cases.Arguments, order: str = "forward", parts: int | None = None
) -> tuple[Tensor, ...]:
    with functional.use_backend("native"), kernels_on_cpu(order, parts=parts):
        return ops_cases.call(case.function, arguments)


@pytest.mark.parametrize("case", CASES, ids=str)
@given(
    rows=st.sampled_from([None, 1, 2, 5]),
    numel=st.sampled_from([0, 1, 7, 16, 31, 64, 129, 1000]),
    dtype=st.sampled_from(DTYPES),
    lr_form=st.sampled_from(LR_FORMS),
    tasks=st.integers(1, 6),
    margin=st.sampled_from([0, ops_cases.MARGIN, 16]),
    order=st.sampled_from(ORDERS),
)
def test_same_bits_as_the_reference(
    case: Case, rows: int | None, numel: int, dtype: torch.dtype, lr_form: str, tasks: int, margin: int, order: str
) -> None:
    arguments = ops_cases.make(case, rows, numel, dtype, lr_form=lr_form, tasks=tasks, margin=margin)
    check(case, on_kernels(case, arguments, order), on("reference", case.function, arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("rows, numel", [(700, 3), (2, 12_288), (2, 4_001)])
def test_threads_go_on_beyond_the_grid(case: Case, dtype: torch.dtype, rows: int, numel: int) -> None:
    """More rows, packs and elements than the shim's three blocks have threads."""
    arguments = ops_cases.make(case, rows, numel, dtype, lr_form="task-element")
    check(case, on_kernels(case, arguments), on("reference", case.function, arguments))


@pytest.mark.parametrize("case", CASES + CLIP_CASES, ids=str)
@given(
    rows=st.sampled_from([None, 1, 3]),
    numel=st.sampled_from([0, 1, 31, 96]),
    dtype=st.sampled_from(DTYPES),
    margin=st.sampled_from([ops_cases.MARGIN, 16]),
)
def test_twins_overwrite_what_they_name_and_nothing_else(
    case: Case, rows: int | None, numel: int, dtype: torch.dtype, margin: int
) -> None:
    before = ops_cases.make(case, rows, numel, dtype, lr_form="task-column", margin=margin)
    expected = on_kernels(case, before)
    after = ops_cases.clone(before)
    if case.op == "reptile_gradient":
        after["gradient"] = torch.zeros_like(before["initial"])
    with functional.use_backend("native"), kernels_on_cpu():
        results = ops_cases.call(case.twin, after)
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
            margins[..., margin : margin + numel] = CANARY
            assert (margins == CANARY).all(), name


@pytest.mark.parametrize("case", [case for case in CASES if case.has_lr], ids=str)
@pytest.mark.parametrize("per_task", [False, True])
def test_one_learning_rate_a_parameter_tensor(case: Case, per_task: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 40), torch.nn.PReLU())
    layout = FlatLayout.from_module(module)
    arguments = ops_cases.make(case, 2, layout.numel, torch.float32)
    rows = arguments["params"].shape[:-1]
    shape = (*rows, len(layout.slots)) if per_task else (len(layout.slots),)
    arguments |= {"lr": torch.rand(shape), "layout": layout}
    used = layout.flatten(module).bool()
    for a, b in zip(on_kernels(case, arguments), on("reference", case.function, arguments), strict=True):
        assert same_bits(a[..., used], b[..., used])


@pytest.mark.parametrize("case", NUMBERED, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_are_read_where_they_lie(case: Case, dtype: torch.dtype) -> None:
    arguments = ops_cases.make(case, 2, 70, dtype)
    in_tensors = ops_cases.in_tensors(case, arguments)
    check(case, on_kernels(case, in_tensors), on("reference", case.function, arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_segments_that_end_within_a_pack(dtype: torch.dtype) -> None:
    """The kernel accepts any ascending ends, empty segments included, beyond what layouts have."""
    ends = torch.tensor([1, 1, 3, 10, 64])
    rates = torch.rand(5, dtype=arithmetic(dtype))
    params, grads = torch.randn(2, 64).to(dtype), torch.randn(2, 64).to(dtype)
    out = torch.empty_like(params)
    lengths = ends.diff(prepend=torch.tensor([0]))
    with functional.use_backend("reference"):
        expected = functional.sgd_step(params, grads, rates.repeat_interleave(lengths))
    with kernels_on_cpu():
        matrices = [buffers.matrix(params), buffers.matrix(grads), None, buffers.matrix(out), None]
        rate = (rates.data_ptr(), 0, 1, 0, ends.data_ptr(), 5)
        buffers.run("sgd_step", params, *matrices, rate, (0.0, 0.0, 0.0, False))
    assert isinstance(expected, Tensor) and same_bits(out, expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_special_values(case: Case) -> None:
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 3e38, -3e38, torch.inf, -torch.inf, torch.nan, 1.0])
    pairs = torch.cartesian_prod(special, special)
    for dtype in (torch.float32, torch.bfloat16):
        arguments = ops_cases.make(case, None, len(pairs), dtype, tasks=2)
        buffers = [x for x in arguments.values() if isinstance(x, Tensor) and x.shape[-1:] == (len(pairs),)]
        for i, x in enumerate(buffers):
            x.copy_(pairs[:, i % 2].roll(7 * (i // 2)))
        check(case, on_kernels(case, arguments), on("reference", case.function, arguments))


@pytest.mark.parametrize("case", CLIP_CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "rows, numel",
    [(None, 0), (None, 1), (5, 100), (2, SHORT_ROW), (2, SHORT_ROW + 1), (2, 30_016)],
)
def test_clip_grad_norm(case: Case, dtype: torch.dtype, rows: int | None, numel: int) -> None:
    aligned = ops_cases.make(case, rows, numel, dtype, margin=16)
    shifted = ops_cases.make(case, rows, numel, dtype, margin=ops_cases.MARGIN)
    shifted["grads"].copy_(aligned["grads"])
    expected, first = on("reference", case.function, aligned), on_kernels(case, aligned)
    assert ulps(first[1], expected[1]) <= 2
    # In float64 the sum is no wider than the result: scale and product add their roundings to the norm's.
    assert ulps(first[0], expected[0]) <= (4 if dtype == torch.float64 else 2)
    for arguments, order in ((shifted, "forward"), (aligned, "reverse"), (aligned, "shuffled")):
        assert all(map(same_bits, on_kernels(case, arguments, order), first)), order


@pytest.mark.parametrize("case", CLIP_CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("margin", [16, ops_cases.MARGIN])
@pytest.mark.parametrize("rows, numel", [(None, 1), (5, 100), (2, 4_001), (1, SHORT_ROW)])
def test_one_launch_has_the_bits_of_two(
    case: Case, dtype: torch.dtype, margin: int, rows: int | None, numel: int
) -> None:
    arguments = ops_cases.make(case, rows, numel, dtype, margin=margin)
    expected = on_kernels(case, arguments, parts=1)
    for order in ORDERS:
        assert all(map(same_bits, on_kernels(case, arguments, order), expected)), order
        in_place = ops_cases.clone(arguments)
        with functional.use_backend("native"), kernels_on_cpu(order):
            assert all(map(same_bits, ops_cases.call(case.twin, in_place), expected)), order


def test_short_rows_take_one_launch() -> None:
    parts = library().clip_grad_norm_parts
    assert [parts(columns) for columns in (0, 1, SHORT_ROW, SHORT_ROW + 1)] == [0, 0, 0, 2]


def test_clip_grad_norm_sums_in_float64() -> None:
    case, _ = CLIP_CASES
    for numel in (8_000, 100_001):
        grads = torch.full((numel,), 1e-3)
        grads[0] = 1e3
        _, norm = on_kernels(case, {"grads": grads, "max_norm": 1.0})
        assert_close(norm, grads.double().norm(), "float32-rounding")
    tiny = torch.full((4, 100), 1e-30)  # squares underflow float32
    assert (on_kernels(case, {"grads": tiny, "max_norm": 1.0})[1] > 0).all()


def test_row_of_the_table() -> None:
    (row,) = (row for row in _dispatch.BACKENDS if row.name == "cuda")
    assert row.device == "cuda"
    assert all(row.function(op) is op.native for op in OPS.values())
    available, reason = _native.cuda_is_available()
    assert available == (not reason)
    assert available or "CUDA" in reason
