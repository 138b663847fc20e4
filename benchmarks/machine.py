"""What the machine can do at best, measured, and what it is, for the record."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .timing import Run, alternate

_PACKAGES = ("metagan_fast", "torch", "numpy", "triton", "higher", "torchopt", "jax")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch, and the package with it, use `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def copy_runs(source: Tensor, destination: Tensor) -> dict[str, Run]:
    """Return ways to copy a contiguous tensor with torch's number of threads; the fastest sets the floor."""
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


def multiply_add_rate(size: int = 1536, rounds: int = 5) -> float:
    """Measure multiply-adds a second of a float32 matrix product with torch's number of threads."""
    a, b, out = (torch.randn(size, size) for _ in range(3))
    timing = alternate({"matmul": lambda: torch.mm(a, b, out=out)}, rounds=rounds)
    return size**3 / timing["matmul"].best


def copy_bandwidth(megabytes: int = 64, rounds: int = 5) -> float:
    """Measure bytes a second, each read and each written counted, with torch's number of threads."""
    source, destination = (torch.ones(megabytes * 2**20 // 4) for _ in range(2))
    timings = alternate(copy_runs(source, destination), rounds=rounds)
    return 2 * source.numel() * 4 / min(timing.best for timing in timings.values())


def describe() -> dict[str, Any]:
    """Return versions of what is installed, the processor and how busy it is."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "machine": {
            "processor": _processor(),
            "cpus": os.cpu_count(),
            "system": platform.platform(),
            "load": os.getloadavg()[0],
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
