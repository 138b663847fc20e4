"""Compilation of a module's C++, and launches of its kernels on numpy arrays."""

from __future__ import annotations

import ctypes
import functools
import math
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import generate
from .operands import c_name, layout
from .parser import Kernel, PtxError, Variable, parse

COMPILER = shutil.which("g++")
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-fno-gnu-unique", "-w")
ORDERS = ("forward", "reverse", "random")
_HERE = Path(__file__).resolve().parent
_SOURCES = ("runtime", "matrix", "wgmma", "mbarrier", "tcgen05")
_FORMATS = {"f32": "<f", "f64": "<d"}
_BLOCK_LIMIT = 1024


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for build products, deleted at exit."""
    return tempfile.TemporaryDirectory(prefix="ptx_")


def _compile(*arguments: str) -> None:
    if COMPILER is None:
        raise PtxError("needs g++ to compile what it translates")
    result = subprocess.run(
        [COMPILER, *FLAGS, f"-I{Path(_folder().name)}", f"-I{_HERE}", *arguments], capture_output=True, text=True
    )
    if result.returncode:
        raise PtxError(f"the translated C++ does not compile:\n{result.stderr[:2000]}")


@functools.cache
def _runtime() -> tuple[str, ...]:
    folder = Path(_folder().name)
    _compile("-x", "c++-header", str(_HERE / "runtime.h"), "-o", str(folder / "runtime.h.gch"))
    targets = tuple(str(folder / f"{name}.o") for name in _SOURCES)
    for name, target in zip(_SOURCES, targets, strict=True):
        _compile("-c", str(_HERE / f"{name}.cpp"), "-o", target)
    return targets


@functools.cache
def _library(source: str) -> ctypes.CDLL:
    stem = Path(_folder().name) / f"module{_library.cache_info().misses}"
    stem.with_suffix(".cpp").write_text(source)
    runtime = _runtime()
    _compile("-shared", str(stem.with_suffix(".cpp")), *runtime, "-o", str(stem.with_suffix(".so")))
    return ctypes.CDLL(str(stem.with_suffix(".so")))


class Launchable:
    """A kernel that can be launched."""

    def __init__(self, kernel: Kernel, module: Module, shared_bytes: int):
        self.kernel = kernel
        self.name = kernel.name
        self._module = module
        self._shared_bytes = shared_bytes

    def launch(
        self,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence[Any],
        shared_bytes: int = 0,
        order: str = "forward",
        seed: int = 0,
        buffers: Iterable[np.ndarray] = (),
    ) -> None:
        """Run every thread of every block; arrays are changed in place.

        `args` are in the kernel's order: contiguous arrays for pointers, numbers, bytes for structs. Kernels may use
        the memory of these arrays, and of `buffers` for addresses in structs, and no other. `shared_bytes` are
        added to what the kernel declares. `order` is that of a block's threads between barriers: one of `ORDERS`.
        Raises PtxError, with the line of the PTX, when a thread leaves its memory, when accesses are misaligned,
        race in shared memory, or barriers diverge.
        """
        grid, block = _dimensions(grid), _dimensions(block)
        self._check(block)
        if len(args) != len(self.kernel.parameters):
            raise PtxError(f"{self.name} takes {len(self.kernel.parameters)} arguments, not {len(args)}")
        arrays = [*buffers, *(x for x in args if isinstance(x, np.ndarray))]
        offsets, size = layout(self.kernel)
        data = bytearray(size)
        for parameter, value in zip(self.kernel.parameters, args, strict=True):
            packed = _pack(parameter, value)
            data[offsets[parameter.name] : offsets[parameter.name] + len(packed)] = packed
        limits = (ctypes.c_uint64 * (2 * len(arrays)))()
        for i, array in enumerate(arrays):
            limits[2 * i : 2 * i + 2] = [array.ctypes.data, array.ctypes.data + array.nbytes]
        library = self._module.library()
        message = ctypes.create_string_buffer(400)
        failed = library.ptx_launch(
            ctypes.cast(library[c_name(self.name)], ctypes.c_void_p),
            (ctypes.c_uint32 * 3)(*grid),
            (ctypes.c_uint32 * 3)(*block),
            bytes(data),
            ctypes.c_uint32(size),
            ctypes.c_uint32(self._shared_bytes + shared_bytes),
            limits,
            ctypes.c_uint64(len(arrays)),
            ORDERS.index(order),
            ctypes.c_uint32(seed),
            message,
        )
        if failed:
            raise PtxError(f"{self.name}, {message.value.decode()}")

    def _check(self, block: tuple[int, ...]) -> None:
        threads = math.prod(block)
        if not 0 < threads <= _BLOCK_LIMIT:
            raise PtxError(f"a block of {threads} threads")
        required, most = self.kernel.bounds.get("reqntid"), self.kernel.bounds.get("maxntid")
        if required and _dimensions(required) != block:
            raise PtxError(f"{self.name} requires blocks of {required}, not {block}")
        if most and threads > math.prod(most):
            raise PtxError(f"{self.name} allows {math.prod(most)} threads a block, not {threads}")


class Module:
    """A module's kernels by name; translated at once, compiled at the first launch."""

    def __init__(self, text: str):
        parts, self._kernels = ['#include "runtime.h"\nusing namespace ptx;'], {}
        for kernel in parse(text).values():
            code, shared_bytes = generate.source(kernel)
            parts.append(code)
            self._kernels[kernel.name] = Launchable(kernel, self, shared_bytes)
        self.source = "\n".join(parts)

    def __getitem__(self, name: str) -> Launchable:
        return self._kernels[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the kernels, in order."""
        return tuple(self._kernels)

    def library(self) -> ctypes.CDLL:
        """Return the compiled module."""
        return _library(self.source)


def load(text: str) -> Module:
    """Translate the text of a PTX module. Raises PtxError with the line of unknown syntax."""
    return Module(text)


def _dimensions(of: int | Sequence[int]) -> tuple[int, ...]:
    given = (of,) if isinstance(of, int) else tuple(of)
    return (*given, 1, 1, 1)[:3]


def _pack(parameter: Variable, value: Any) -> bytes:
    kind, size = parameter.type, parameter.size
    assert size is not None
    if isinstance(value, bytes):
        if len(value) != size:
            raise PtxError(f"{parameter.name} has {size} bytes, not {len(value)}")
        return value
    if isinstance(value, np.ndarray):
        if not value.flags.c_contiguous or size != 8:
            raise PtxError(f"{parameter.name}: {'not a pointer' if size != 8 else 'the array is not contiguous'}")
        return struct.pack("<Q", value.ctypes.data)
    if kind in _FORMATS:
        return struct.pack(_FORMATS[kind], value)
    if isinstance(value, float):
        raise PtxError(f"{parameter.name} is of type {kind}, not a float")
    return int(value).to_bytes(size, "little", signed=value < 0)
