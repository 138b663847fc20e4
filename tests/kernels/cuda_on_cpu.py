"""The CUDA launchers and kernels, compiled for the CPU with the shim, in place of the native backend's."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import cuda_build
from metagan_fast._native import buffers
from metagan_fast._native.extension import DTYPES

ORDERS = ("forward", "reverse", "shuffled")


@functools.cache
def library() -> ModuleType:
    """Return the compiled launchers, a module like `metagan_fast._core` with the ops of a GPU alone."""
    path = str(cuda_build.compile_for_host("module.cpp", *cuda_build.module_flags()))
    spec = spec_from_loader("cuda_shim", ExtensionFileLoader("cuda_shim", path))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def kernels_on_cpu(order: str = "forward", seed: int = 0, parts: int | None = None) -> Iterator[None]:
    """Let the native backend run the CUDA kernels, their threads in some order.

    `parts`: of a row of `clip_grad_norm`, 0 for one launch; None: as many as its length asks for.
    """
    library().set_order(ORDERS.index(order), seed)
    with mock.patch.object(buffers, "run", functools.partial(_run, parts)):
        yield


def record(op: str, launch: tuple[Any, ...], *arguments: Any) -> tuple[str, list[bytes]]:
    """Return the launch of an op's kernel instead of running it: the kernel's mangled type, the bytes of arguments."""
    library().set_recording(True)
    try:
        getattr(library(), op)(launch, *arguments)
        return library().recorded()
    finally:
        library().set_recording(False)


def _run(parts: int | None, op: str, like: Tensor, *arguments: Any) -> None:
    """Stand in for `buffers.run`."""
    rows, columns = buffers.sizes(like)
    launch = (DTYPES[like.dtype], rows, columns, (0, 0))
    if op != "clip_grad_norm":
        return getattr(library(), op)(launch, *arguments)
    count = library().clip_grad_norm_parts(columns) if parts is None else parts
    sums = torch.full((rows, count), torch.nan, dtype=torch.float64)
    arguments = (*arguments[:-1], sums.data_ptr())  # a CPU passes no sums
    if parts is None:
        return library().clip_grad_norm(launch, *arguments)
    return library().clip_in_parts(launch, *arguments, parts)
