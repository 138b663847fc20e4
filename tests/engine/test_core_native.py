"""The compiled extension by itself: memory around the buffers, threads, forks, the choice of instruction set.

`tests/ops/test_parity.py` compares its results with the reference.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

from support import ROOT, THREAD_COUNTS

_core = pytest.importorskip("metagan_fast._core", reason="the compiled extension is not installed")

CANARY = 7.0
DTYPES = {
    torch.float32: _core.FLOAT32,
    torch.bfloat16: _core.BFLOAT16,
    torch.float64: _core.FLOAT64,
}


class Guarded:
    """A matrix with canaries in memory before, between and after its rows."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype, gap: int = 3) -> None:
        self.memory = torch.full((rows + 2, columns + gap), CANARY, dtype=dtype)
        self.values = self.memory[1 : rows + 1, :columns]
        self.values.uniform_(0.5, 1.5)

    @property
    def matrix(self) -> tuple[int, int]:
        return self.values.data_ptr(), self.values.stride(0)

    @property
    def address(self) -> int:
        return self.values.data_ptr()

    def assert_intact(self) -> None:
        outside = self.memory.clone()
        outside[1 : 1 + self.values.shape[0], : self.values.shape[1]] = CANARY
        assert bool((outside == CANARY).all())


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.bfloat16 else dtype


def run_all(rows: int, columns: int, dtype: torch.dtype, threads: int) -> list[Tensor]:
    """Run every op in place on guarded buffers, and return all of them."""
    torch.manual_seed(0)
    launch = (DTYPES[dtype], rows, columns, threads)
    matrices = [Guarded(rows, columns, dtype) for _ in range(5)]
    single = [Guarded(1, columns, dtype) for _ in range(4)]
    lr, weights, norms = (small := [Guarded(1, n, arithmetic(dtype)) for n in (columns, rows, rows)])
    lr.values.mul_(1e-3)
    p, g, m, v, b = (x.matrix for x in matrices)
    row, row_m, row_v, out = (x.address for x in single)
    ends = torch.tensor([columns // 3, columns // 3, columns], dtype=torch.int64)
    each = (lr.address, 0, 0, 1, 0, 1)
    by_segment = (lr.address, 0, 1, 0, ends.data_ptr(), 3) if columns >= 3 else 1e-3
    adam = (0.9, 0.999, 10.0, 1000.0, 1e-8)
    calls = (
        (_core.sgd_step, p, g, None, p, None, by_segment, (0.0, 0.0, 0.1, False)),
        (_core.sgd_step, p, g, m, p, m, each, (0.9, 0.1, 0.1, True)),
        (_core.adam_step, p, g, m, v, p, m, v, by_segment, (*adam, 0.0, 0.1, False)),
        (_core.adam_step, p, g, m, v, p, m, v, each, (*adam, 0.0, 0.1, True)),
        (_core.rmsprop_step, p, g, v, m, b, p, v, m, b, each, (0.99, 1e-8, 0.1, 0.9)),
        (_core.reptile_interpolate, row, p, weights.address, row, 0.1),
        (_core.reptile_gradient, row, p, 0, out),
        (_core.meta_adam_step, row, p, 0, row_m, row_v, row, row_m, row_v, each, (*adam, 0.0, 0.1, False)),
        (_core.clip_grad_norm, g, g, norms.address, 0.5, 0),
        (_core.ema_update, p, g, p, 0.9),
    )
    buffers = [*matrices, *single, *small]
    for op, *arguments in calls:
        op(launch, *arguments)
        for buffer in buffers:
            buffer.assert_intact()
    return [buffer.values.clone() for buffer in buffers]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (3, 17), (5, 31), (2, 67), (1, 129)])
def test_nothing_outside_the_buffers_is_written(rows: int, columns: int, dtype: torch.dtype, isa: str) -> None:
    for buffer in run_all(rows, columns, dtype, threads=1):
        assert bool(buffer.isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_for_every_instruction_set_and_thread_count(dtype: torch.dtype) -> None:
    before = _core.isa()
    try:
        results = []
        for isa in _core.available_isas():
            _core.set_isa(isa)
            results += [run_all(3, 40_003, dtype, threads) for threads in THREAD_COUNTS]
    finally:
        _core.set_isa(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (3, 0), (0, 0)])
def test_empty_buffers(rows: int, columns: int) -> None:
    norms = torch.full((rows,), CANARY)
    x = torch.empty(rows, columns)
    _core.ema_update((_core.FLOAT32, rows, columns, 2), (x.data_ptr(), columns), (x.data_ptr(), columns), (0, 0), 0.5)
    _core.clip_grad_norm((_core.FLOAT32, rows, columns, 2), (0, 0), (0, 0), norms.data_ptr(), 1.0, 0)
    assert bool((norms == 0).all())


def big_update(values: Tensor, threads: int = 2) -> None:
    matrix = (values.data_ptr(), values.stride(0))
    _core.ema_update((_core.FLOAT32, *values.shape, threads), matrix, matrix, matrix, 0.5)


def test_calls_from_several_threads_at_once() -> None:
    """A caller that finds the pool in use runs on its own thread alone."""
    values = [torch.full((4, 50_000), float(i)) for i in range(4)]
    halves = [torch.zeros(4, 50_000) for _ in range(4)]

    def work(i: int) -> None:
        target, source = halves[i], values[i]
        a, b = (target.data_ptr(), target.stride(0)), (source.data_ptr(), source.stride(0))
        for _ in range(20):
            _core.ema_update((_core.FLOAT32, 4, 50_000, 3), a, b, a, 0.5)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, half in enumerate(halves):
        torch.testing.assert_close(half, torch.full_like(half, i * (1 - 0.5**20)))


def update_in_child(queue: multiprocessing.Queue) -> None:
    values = torch.ones(4, 50_000)
    for _ in range(3):
        big_update(values)
    queue.put(float(values.sum()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own() -> None:
    big_update(torch.ones(4, 50_000))  # the parent's pool exists
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=update_in_child, args=(queue,), daemon=True)
    child.start()
    assert queue.get(timeout=60) == 200_000
    child.join(timeout=60)
    assert child.exitcode == 0
    big_update(torch.ones(4, 50_000))


def test_an_instruction_set_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"one that this processor has \(portable.*\), got 'mmx'"):
        _core.set_isa("mmx")
    assert _core.isa() in _core.available_isas()


LOAD_CORE = f"""
import sys; sys.path[:0] = {sys.path!r}
from importlib import util
spec = util.spec_from_file_location('metagan_fast._core', {_core.__file__!r})
core = util.module_from_spec(spec); spec.loader.exec_module(core)
"""


def run_alone(code: str, **environment: str) -> str:
    """Return the output of code in a process that has loaded the extension alone."""
    command = [sys.executable, "-c", LOAD_CORE + code]
    result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return result.stdout.strip()


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two processors"
)
def test_workers_keep_off_the_callers_processor_and_fill_the_others() -> None:
    """VM schedulers may wake workers on the caller's CPU. A caller with fewer CPUs than workers shares all of them."""
    code = """
import ctypes, os
n, allowed = 50_000, os.sched_getaffinity(0)
buffer = (ctypes.c_float * (4 * n))()
def places(threads):
    matrix = (ctypes.addressof(buffer), n)
    core.ema_update((core.FLOAT32, 4, n, threads), matrix, matrix, matrix, 0.5)
    return [os.sched_getaffinity(int(thread)) for thread in os.listdir('/proc/self/task')]
before = places(1)
assert before == [allowed], before
first, second = places(2)
assert allowed in (first, second) and len(first ^ second) == 1, (first, second, allowed)
assert len(places(1024)) == len(allowed)
fewer = set(list(allowed)[:-1])
os.sched_setaffinity(0, fewer)
assert places(1024) == [fewer] * len(allowed) or len(fewer) == 1
"""
    run_alone(code)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on the memory for threads' stacks")
def test_a_system_that_gives_no_threads() -> None:
    code = """
import ctypes, os, resource
n = 50_000
buffer = (ctypes.c_float * (4 * n))(*[1.0] * n)
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**20,) * 2)  # a stack takes 8 MiB
matrix, zero = (ctypes.addressof(buffer), n), (ctypes.addressof(buffer), 0)
core.ema_update((core.FLOAT32, 4, n, 1024), matrix, zero, matrix, 0.5)
assert len(os.listdir('/proc/self/task')) == 1
print(buffer[0], buffer[4 * n - 1])
"""
    assert run_alone(code) == "1.0 0.5"


@pytest.mark.parametrize("name", _core.available_isas())
def test_the_environment_chooses_the_instruction_set(name: str) -> None:
    assert run_alone("print(core.isa())", METAGAN_FAST_ISA=name) == name


def test_an_argument_of_a_wrong_type_is_refused() -> None:
    """So is a dtype code or element stride that there is not, and a number out of range."""
    x = torch.zeros(1, 4)
    launch, matrix, address = (_core.FLOAT32, 1, 4, 1), (x.data_ptr(), 4), x.data_ptr()
    options = (0.0, 0.0, 0.0, False)
    codes = [(code, *launch[1:]) for code in (-1, 3)]
    for wrong in (*codes, launch[:3], list(launch), None, (0, 1, 4.0, 1), (0, 1, 4, 2**31)):
        with pytest.raises(TypeError, match=re.escape("Launch(dtype, rows, columns, threads)")):
            _core.ema_update(wrong, matrix, matrix, matrix, 0.5)
    for wrong in (address, (address,), (address, "4"), (address, 4.0), (2**64, 4), list(matrix)):
        with pytest.raises(TypeError, match=re.escape("Matrix(address, row_stride) | None")):
            _core.ema_update(launch, wrong, matrix, matrix, 0.5)
    for rate in ((address, 0, 0, 2, 0, 1), (address, 0), "fast", (address, 0, 0, 2**64, 0, 1)):
        with pytest.raises(TypeError, match=re.escape("LearningRate(address, row_stride, segment_stride")):
            _core.sgd_step(launch, matrix, matrix, None, matrix, None, rate, options)
    items = [(0.0, 0.0, "0", False), (0.0, 0.0, 0.0, "no")]
    for wrong in (*items, options[:3], (*options, 0.0), list(options), None, 0.0):
        with pytest.raises(TypeError, match=re.escape("SgdOptions(momentum, dampening, weight_decay, nesterov)")):
            _core.sgd_step(launch, matrix, matrix, None, matrix, None, 0.1, wrong)
    for number in ((), (address, 0), "large", (2**64,), (0.5,)):
        with pytest.raises(TypeError, match=re.escape("Number(address,)")):
            _core.reptile_interpolate(launch, address, matrix, 0, address, number)
    for wrong in (matrix, None, 0.5, 2**64):
        with pytest.raises(TypeError):
            _core.reptile_interpolate(launch, wrong, matrix, 0, address, 0.5)
    with pytest.raises(TypeError):
        _core.ema_update(launch, matrix, matrix, matrix)
    assert not x.any()


def test_the_stub_has_the_options_of_every_op() -> None:
    """Each tuple in metagan_fast/_core.pyi has as many members as its struct in csrc/bindings/arguments.h."""
    bindings, stub = ROOT / "csrc" / "bindings" / "arguments.h", ROOT / "metagan_fast" / "_core.pyi"
    structs = re.findall(r"struct Argument<(\w+Options)> \{.*?std::tie\((.*?)\)", bindings.read_text(), re.DOTALL)
    tuples = re.findall(r"^(\w+Options): TypeAlias = tuple\[(.*)\]$", stub.read_text(), re.MULTILINE)
    assert structs
    described, bound = ({name: members.count(",") for name, members in found} for found in (tuples, structs))
    assert described == bound
