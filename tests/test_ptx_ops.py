"""The package's kernels as Triton and nvcc compile them for a GPU, run on a CPU, against the reference."""

from __future__ import annotations

import ctypes
import itertools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

import ops_cases
import ptx
from metagan_fast import _backends, functional
from ops_cases import CASES, CLIP_CASES, MARGIN, Case, same_bits
from support import assert_close
from tolerances import tolerance

pytestmark = pytest.mark.skipif(ptx.COMPILER is None, reason="needs g++")

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def memory(x: Tensor) -> np.ndarray:
    """Return the bytes from a tensor's first element to its last: what a kernel may touch."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    size = (last + 1) * x.element_size() if x.numel() else 0
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(x.data_ptr()))


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
def triton_as_ptx(aot: Any, order: str) -> Iterator[list[str]]:
    """Have the ops on CPU tensors compile their Triton kernels for sm_80 and run the PTX; yields the names run."""
    ran: list[str] = []
    count = itertools.count()

    def start(kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        names = [name for name in kernel.arg_names if name not in constants]
        launch = aot.Launch(
            f"ptx{id(ran)}-{next(count)}", kernel, programs, dict(zip(names, arguments, strict=True)), constants
        )
        compiled = launch.compile("sm_80")
        run = ptx.load(compiled.asm["ptx"])[launch.name]
        values = [launch.arguments[name] for name in launch.passed]
        buffers = [memory(x) for x in values if isinstance(x, Tensor)]
        passed = [struct.pack("<Q", x.data_ptr()) if isinstance(x, Tensor) else x for x in values]
        threads = run.kernel.bounds["reqntid"]
        scratch = [0] * (len(run.kernel.parameters) - len(passed))  # of the GPU's memory: the kernels use none
        shared = compiled.metadata.shared
        run.launch(programs, threads, [*passed, *scratch], shared, order=order, seed=1, buffers=buffers)
        ran.append(launch.name)

    with (
        mock.patch.object(aot._launch, "start", start),
        mock.patch.object(_backends, "select", lambda op, *_: aot._triton.implementation(op)),
    ):
        yield ran


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", list({c.op: c for c in (*CASES, CLIP_CASES[0])}.values()), ids=str)
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


# ---- CUDA


@pytest.fixture(scope="module")
def cuda() -> Any:
    build = pytest.importorskip("cuda_build", reason="the package has no CUDA kernels", exc_type=ImportError)
    if build.NVCC is None:
        pytest.skip("needs nvcc")
    return build


C_NAMES = {torch.float32: "f", torch.float64: "d", torch.bfloat16: "NS_8BFloat16E"}


def rows_of(x: Tensor | None) -> bytes:
    """Return `Input<T>`: address and row stride."""
    return struct.pack("<Qq", 0 if x is None else x.data_ptr(), 0 if x is None or x.ndim < 2 else x.stride(0))


def aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def for_each_pack(
    cuda: Any, source: str, op: str, width: int, shape: tuple[int, int], data: bytes, used: list[Tensor]
) -> None:
    kernels = cuda.ptx(source)
    dtype = C_NAMES[used[0].dtype]
    (name,) = (x for x in kernels if f"for_each_packILi{width}E" in x and f"{len(op)}{op}I{dtype}E" in x)
    run = ptx.load(kernels[name])[name]
    buffers = [memory(x) for x in used]
    run.launch((2, 2), (32, 2), [*shape, aligned(data)], order="random", seed=2, buffers=buffers)


@pytest.mark.parametrize(
    ("dtype", "wide"), [(torch.float32, True), (torch.bfloat16, True), (torch.float64, False)], ids=str
)
@pytest.mark.parametrize("op", ["ema_update", "reptile_gradient", "reptile_interpolate"])
def test_cuda_kernels_give_the_reference_bits(cuda: Any, op: str, wide: bool, dtype: torch.dtype) -> None:
    case = next(case for case in CASES if case.op == op)
    numel = 2080 if wide else 333
    arguments = ops_cases.make(case, 3, numel, dtype, margin=0 if wide else MARGIN)
    start = arguments[case.buffers[0]]
    out = torch.empty_like(start)
    real = "<d" if dtype == torch.float64 else "<f"
    data = rows_of(start) + rows_of(out)
    if op == "ema_update":
        other = arguments["params"]
        data += rows_of(other) + struct.pack(real, 1 - arguments["decay"])
    else:
        other = arguments["adapted"]
        data += rows_of(other) + struct.pack("<qQ", len(other), 0) + aligned(struct.pack(real, 1 / len(other)))
        if op == "reptile_interpolate":
            data += struct.pack(real, arguments["step_size"])
    source = "updates" if op == "ema_update" else "tasks"
    width = 16 // dtype.itemsize if wide else 1
    shape = (3, numel) if start.ndim == 2 else (1, numel)
    name = "".join(part.title() for part in op.split("_"))
    for_each_pack(cuda, source, name, width, shape, data, [start, out, other])
    check(case, (out,), reference(case, arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ptx.ORDERS)
def test_cuda_sum_of_squares(cuda: Any, dtype: torch.dtype, order: str) -> None:
    kernels = cuda.ptx("clip_grad_norm")
    (name,) = (x for x in kernels if f"sum_of_squaresILi1E{C_NAMES[dtype]}E" in x)
    grads = torch.randn(3, 1111, dtype=torch.float64).to(dtype)
    sums = np.full((3, 2), np.nan)
    run = ptx.load(kernels[name])[name]
    run.launch((2, 3), 256, [3, 1111, rows_of(grads), sums], order=order, seed=3, buffers=[memory(grads)])
    expected = grads.double().square().sum(1).numpy()
    np.testing.assert_allclose(sums.sum(1), expected, rtol=tolerance("float64-rounding"))
