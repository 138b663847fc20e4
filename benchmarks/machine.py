"""The machine: measured peak rates, and a description for the records."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from metagan_fast.benchmarks.timing import Run, alternate
from torch import Tensor

from metagan_fast import _native
from metagan_fast._utils import machine

_PACKAGES = ("metagan_fast", "torch", "numpy", "triton", "higher", "torchopt", "jax")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Set the number of threads of torch, and so of the package, to `count`."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def copy_runs(source: Tensor, destination: Tensor) -> dict[str, Run]:
    """Return functions that copy a contiguous tensor with torch's number of threads; the fastest sets the floor."""
    count = torch.get_num_threads()
    size = source.numel() * source.element_size()
    bounds = [size * part // count for part in range(count + 1)]
    pool = ThreadPoolExecutor(count)
    addresses = destination.data_ptr(), source.data_ptr()

    def copy_part(part: int) -> None:
        start, stop = bounds[part], bounds[part + 1]
        ctypes.memmove(addresses[0] + start, addresses[1] + start, stop - start)  # releases the GIL

    def memmove() -> None:
        if count == 1:
            copy_part(0)
        else:
            list(pool.map(copy_part, range(count)))

    return {"copy: torch": lambda: destination.copy_(source), "copy: memmove": memmove}


# Exits when its parent exits.
_SPIN = """
import os, sys
print(flush=True)
while os.getppid() == int(sys.argv[1]):
    for _ in range(10**5):
        pass
"""


@contextmanager
def busy_cores(count: int | None = None) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep `count` cores busy, by default all usable ones, with one child process each; yield the children."""
    if count is None:
        count = machine.usable_processors()
    command = [sys.executable, "-I", "-S", "-c", _SPIN, str(os.getpid())]
    with ExitStack() as stack:
        children = []
        for _ in range(count):
            children.append(stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE)))
            stack.callback(children[-1].kill)
        for child in children:
            assert child.stdout is not None
            if not child.stdout.read(1):
                raise RuntimeError("a process that was to keep a core busy did not start; its error is above")
        yield children


def multiply_add_rate(rounds: int = 5, seconds: float = 0.05, size: int = 1536) -> float:
    """Measure peak float32 multiply-adds a second with torch's number of threads; return the best round.

    The extension issues them from registers for `seconds` a round, the processor's peak. Without the extension a matrix
    product of `size` is timed; it reaches 75 to 85 % of the peak, so fractions of the floor come out higher.
    """
    if _native.is_available()[0]:
        from metagan_fast import _core

        return max(_core.multiply_add_rate(torch.get_num_threads(), seconds) for _ in range(rounds))
    a, b, out = (torch.randn(size, size) for _ in range(3))
    timing = alternate({"matmul": lambda: torch.mm(a, b, out=out)}, rounds=rounds)
    return size**3 / timing["matmul"].best


def copy_bandwidth(megabytes: int = 64, rounds: int = 5) -> float:
    """Measure copy bandwidth in bytes a second, reads plus writes, with torch's number of threads."""
    source, destination = (torch.ones(megabytes * 2**20 // 4) for _ in range(2))
    timings = alternate(copy_runs(source, destination), rounds=rounds)
    return 2 * source.numel() * 4 / min(timing.best for timing in timings.values())


def describe() -> dict[str, Any]:
    """Return package versions, the processor and its load."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "machine": {
            "processor": machine.processor(),
            "cpus": os.cpu_count(),
            "system": platform.platform(),
            "load": os.getloadavg()[0],
        },
    }
