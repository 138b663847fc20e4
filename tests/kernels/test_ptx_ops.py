"""The package's kernels as Triton and nvcc compile them for a GPU, run on a CPU, against the reference."""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import ops_cases
import ptx
import ptx_triton
from metagan_fast import FlatLayout, functional
from metagan_fast.ops import _dispatch
from ops_cases import BY_NAME, CASES, CLIP_CASES, MARGIN, NUMBERED, Case, same_bits
from ptx_launchers import cuda_as_ptx
from support import assert_close
from tolerances import tolerance

pytestmark = pytest.mark.skipif(ptx.COMPILER is None, reason="needs g++")

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
TELLING = list({case.op: case for case in (*CASES, CLIP_CASES[0])}.values())
"""One case for each op."""


def reference(case: Case, arguments: ops_cases.Arguments) -> tuple[Tensor, ...]:
    with functional.use_backend("reference"):
        return ops_cases.call(case.function, arguments)


def check(case: Case, actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(actual, expected, strict=True):
        if case in CLIP_CASES:
            torch.testing.assert_close(a, b, rtol=tolerance("float32-rounding"), atol=0)
        elif case.rounds_exactly(b.dtype):
            assert same_bits(a, b)
        else:
            assert_close(a, b, "float64-square-root")


# ---- Triton


@pytest.fixture(scope="module")
def aot() -> Any:
    pytest.importorskip("triton", reason="needs Triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("needs Triton's compiler, not its interpreter")
    return pytest.importorskip("triton_aot", reason="the package has no Triton kernels", exc_type=ImportError)


@contextmanager
def triton_as_ptx(aot: Any, order: str, target: str = "sm_80") -> Iterator[list[str]]:
    """Run the PTX of the Triton kernels for ops on CPU tensors; yield the names of kernels that ran."""
    ran: list[str] = []
    count = itertools.count()

    def start(kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        names = [name for name in kernel.arg_names if name not in constants]
        launch = aot.Launch(
            f"ptx{id(ran)}-{next(count)}", kernel, programs, dict(zip(names, arguments, strict=True)), constants
        )
        ptx_triton.run(launch, order, target=target)
        ran.append(launch.name)

    with (
        mock.patch.object(aot._launch, "start", start),
        mock.patch.object(_dispatch, "select", lambda op, *_: aot._triton.implementation(op.name)),
    ):
        yield ran


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", TELLING, ids=str)
def test_triton_kernels_give_the_reference_bits(aot: Any, case: Case, dtype: torch.dtype) -> None:
    if case in CLIP_CASES and dtype == torch.bfloat16:
        pytest.skip("a norm that differs by an ulp rounds elsewhere in 8 bits")
    numel, order = {
        torch.float32: (2080, "random"),
        torch.bfloat16: (1041, "forward"),
        torch.float64: (77, "reverse"),
    }[dtype]
    arguments = ops_cases.make(case, 3, numel, dtype, margin=0 if dtype == torch.float32 else MARGIN)
    with triton_as_ptx(aot, order) as ran:
        actual = ops_cases.call(case.function, ops_cases.clone(arguments))
    assert ran
    check(case, actual, reference(case, arguments))


@pytest.mark.parametrize(
    ("target", "dtype"),
    [
        ("sm_90", torch.float32),
        ("sm_90", torch.bfloat16),
        ("sm_90", torch.float64),
        ("sm_100", torch.float32),
        ("sm_100", torch.bfloat16),
    ],
    ids=str,
)
@pytest.mark.parametrize("case", TELLING, ids=str)
def test_triton_kernels_of_newer_gpus_give_the_reference_bits(
    aot: Any, case: Case, target: str, dtype: torch.dtype
) -> None:
    if case in CLIP_CASES and dtype == torch.bfloat16:
        pytest.skip("a norm that differs by an ulp rounds elsewhere in 8 bits")
    arguments = ops_cases.make(case, 3, 2080, dtype)
    with triton_as_ptx(aot, "random", target) as ran:
        actual = ops_cases.call(case.function, ops_cases.clone(arguments))
    assert ran
    check(case, actual, reference(case, arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("margin", [0, MARGIN])
def test_triton_clipping_in_one_launch_and_in_two(aot: Any, margin: int, dtype: torch.dtype) -> None:
    """Bytes are equal in any order of threads, in place too."""
    case = CLIP_CASES[0]
    arguments = ops_cases.make(case, 3, 2080 if margin == 0 else 1041, dtype, margin=margin)
    with triton_as_ptx(aot, "forward") as ran:
        clip = importlib.import_module("metagan_fast.kernels.updates.clip_grad_norm")
        with mock.patch.object(clip, "in_one_launch", clip.in_two_launches):
            expected = ops_cases.call(case.function, arguments)
        assert ran == ["sum_of_squares_kernel", "clip_grad_norm_kernel"]
    for order in ("reverse", "random"):
        for function in (case.function, case.twin):
            with triton_as_ptx(aot, order) as ran:
                actual = ops_cases.call(function, ops_cases.clone(arguments))
            assert ran == ["clip_short_rows_kernel"]
            assert all(map(same_bits, actual, expected)), order
    if dtype != torch.bfloat16:
        check(case, expected, reference(case, arguments))


def test_triton_clipping_of_long_rows(aot: Any) -> None:
    case = CLIP_CASES[0]
    arguments = ops_cases.make(case, 2, 8208, torch.float32)
    with triton_as_ptx(aot, "random") as ran:
        actual = ops_cases.call(case.function, arguments)
    assert ran == ["sum_of_squares_kernel", "clip_grad_norm_kernel"]
    check(case, actual, reference(case, arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case", [BY_NAME["sgd_step-weight_decay=0.1"], BY_NAME["adam_step-step=3-weight_decay=0.1"]], ids=str
)
def test_triton_clipping_and_reset_within_a_step(aot: Any, case: Case, dtype: torch.dtype) -> None:
    """Bytes equal those of clipping and step one after the other, bfloat16's roundings included."""
    arguments = ops_cases.make(case, 3, 2080, dtype)
    with triton_as_ptx(aot, "random"):
        clipped, _ = functional.clip_grad_norm(arguments["grads"], 0.5)
        expected = ops_cases.call(case.function, {**arguments, "grads": clipped})
    for zero_grads in (False, True):
        fused = {**ops_cases.clone(arguments), "max_norm": 0.5, "zero_grads": zero_grads}
        with triton_as_ptx(aot, "random") as ran:
            actual = ops_cases.call(case.twin, fused)
        assert ran == ["sum_of_squares_kernel"] * zero_grads + [f"{case.op}_kernel"]
        assert all(map(same_bits, actual, expected))
        assert bool(fused["grads"].any()) != zero_grads


# ---- CUDA


@pytest.fixture(scope="module")
def cuda() -> Any:
    build = pytest.importorskip("cuda_build", reason="the package has no CUDA kernels", exc_type=ImportError)
    if build.NVCC is None:
        pytest.skip("needs nvcc")
    if problem := build.module_problem():
        pytest.skip(problem)
    return build


@pytest.mark.parametrize("case", (*CASES, *CLIP_CASES), ids=str)
def test_cuda_kernels_give_the_reference_bits(cuda: Any, case: Case) -> None:
    check_cuda(cuda, case, torch.float32, 2080, "random", wide=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", TELLING, ids=str)
def test_cuda_kernels_of_other_dtypes(cuda: Any, case: Case, dtype: torch.dtype) -> None:
    if case in CLIP_CASES and dtype == torch.bfloat16:
        pytest.skip("a norm that differs by an ulp rounds elsewhere in 8 bits")
    long = case.op in ("adam_step", "meta_adam_step", "rmsprop_step")  # their packs of 8 take seconds to compile
    wide = dtype == torch.bfloat16 and not long
    numel, order = (2080, "forward") if wide else (333, "reverse")
    check_cuda(cuda, case, dtype, numel, order, wide=wide)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("margin", [0, MARGIN])
def test_cuda_clipping_in_one_launch_and_in_two(cuda: Any, margin: int, dtype: torch.dtype) -> None:
    """A row of one part has equal bytes in both, in place too; a row of three parts agrees within rounding."""
    case = CLIP_CASES[0]
    arguments = ops_cases.make(case, 3, 2080 if margin == 0 else 333, dtype, margin=margin)
    found: dict[int, list[tuple[Tensor, ...]]] = {0: [], 1: [], 3: []}
    for parts, results in found.items():
        for function in (case.function, case.twin):
            with cuda_as_ptx(cuda, "random", parts) as launcher:
                results.append(ops_cases.call(function, ops_cases.clone(arguments)))
            assert len(launcher.ran) == (2 if parts else 1)
    for results in (*found[0], *found[1][1:]):
        assert all(map(same_bits, results, found[1][0]))
    assert all(map(same_bits, *found[3]))
    if dtype != torch.bfloat16:
        check(case, found[3][0], reference(case, arguments))


@pytest.mark.parametrize("lr_form", ops_cases.LR_FORMS)
def test_cuda_learning_rates(cuda: Any, lr_form: str) -> None:
    adam = next(case for case in CASES if case.op == "adam_step")
    check_cuda(cuda, adam, torch.float32, 96, "random", wide=True, lr_form=lr_form)


@pytest.mark.parametrize("case", NUMBERED[::4], ids=str)
def test_cuda_numbers_in_memory(cuda: Any, case: Case) -> None:
    arguments = ops_cases.make(case, 3, 96, torch.float32)
    with cuda_as_ptx(cuda, "random"):
        actual = ops_cases.call(case.function, ops_cases.in_tensors(case, arguments))
    check(case, actual, reference(case, arguments))


def test_cuda_learning_rate_of_each_parameter_tensor(cuda: Any) -> None:
    module = torch.nn.Linear(40, 52)
    layout = FlatLayout.from_module(module)
    sgd = next(case for case in CASES if case.op == "sgd_step")
    arguments = ops_cases.make(sgd, 3, layout.numel, torch.float32)
    arguments |= {"lr": torch.rand(3, len(layout.slots)), "layout": layout}
    with cuda_as_ptx(cuda, "reverse"):
        actual = ops_cases.call(sgd.function, ops_cases.clone(arguments))
    used = layout.flatten(module).bool()
    for a, b in zip(actual, reference(sgd, arguments), strict=True):
        assert same_bits(a[:, used], b[:, used])


def check_cuda(
    cuda: Any, case: Case, dtype: torch.dtype, numel: int, order: str, *, wide: bool, lr_form: str = "number"
) -> None:
    """Compare with the reference, out of place and in place; `wide` asks for accesses of 16 bytes."""
    arguments = ops_cases.make(case, 3, numel, dtype, lr_form=lr_form, margin=0 if wide else MARGIN)
    expected = reference(case, arguments)
    width = 16 // dtype.itemsize if wide else 1
    overwrites = all(name in case.buffers for name in case.written)
    for function in (case.function, *([case.twin] if overwrites else [])):
        with cuda_as_ptx(cuda, order) as launcher:
            actual = ops_cases.call(function, ops_cases.clone(arguments))
        assert launcher.ran and all(f"ILi{width}E" in name for name in launcher.ran)
        check(case, actual, expected)
