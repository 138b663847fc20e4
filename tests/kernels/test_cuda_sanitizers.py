"""The CUDA kernels under AddressSanitizer and ThreadSanitizer, with broken ones that must be caught."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import cuda_build

pytestmark = pytest.mark.skipif(cuda_build.HOST_COMPILER is None, reason="no g++ to compile the kernels with")

ADDRESS = ("-DSHIM_THREADS", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
THREAD = ("-DSHIM_THREADS", "-g", "-fsanitize=thread")


def run(source: str, flags: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Compile and run; skip where this system lacks the sanitizer."""
    try:
        program: Path = cuda_build.compile_for_host(source, *flags)
    except subprocess.CalledProcessError:
        if not flags:
            raise
        cuda_build.compile_for_host(source, "-DSHIM_THREADS")  # raises, unless the sanitizer is missing
        pytest.skip(f"g++ has no {flags[-1]} here")
    result = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=120)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("ThreadSanitizer does not run under this kernel's address layout")
    return result


@pytest.mark.slow
@pytest.mark.parametrize("flags", [ADDRESS, THREAD], ids=["address", "thread"])
def test_no_op_reads_or_writes_beyond_its_buffers_or_races(flags: tuple[str, ...]) -> None:
    result = run("sanitized.cpp", flags)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n"


@pytest.mark.parametrize("flags", [(), ADDRESS, THREAD], ids=["fibers", "address", "thread"])
def test_a_sound_kernel_passes(flags: tuple[str, ...]) -> None:
    result = run("broken.cpp", flags, "sound")
    assert (result.returncode, result.stdout) == (0, "reversed\n"), result.stderr


def test_a_missing_barrier_is_a_race() -> None:
    result = run("broken.cpp", THREAD, "missing_barrier")
    assert result.returncode != 0
    assert "data race" in result.stderr


def test_a_missing_barrier_shows_in_the_result() -> None:
    assert run("broken.cpp", (), "missing_barrier").stdout == "not reversed\n"


def test_an_overrun_by_one_is_an_error() -> None:
    result = run("broken.cpp", ADDRESS, "overrun")
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr


@pytest.mark.parametrize("flags", [(), ADDRESS], ids=["fibers", "threads"])
@pytest.mark.parametrize("kernel", ["divergent_barrier", "two_barriers"])
def test_a_divergent_barrier_is_an_error(kernel: str, flags: tuple[str, ...]) -> None:
    result = run("broken.cpp", flags, kernel)
    assert result.returncode == 2
    assert "divergent barrier" in result.stderr
