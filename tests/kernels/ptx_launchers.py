"""Host side of `csrc/cuda/*.cu` for the PTX translator: arguments of `_core.cuda_*` as a launch, and its memory.

The package's launchers, compiled for the CPU, pack the operands of an op (`cuda_on_cpu.record`). A launch may touch its
operands' bytes only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import cuda_build
import ptx
from cuda_on_cpu import record
from metagan_fast._native import buffers
from metagan_fast._native.extension import DTYPES
from metagan_fast.ops import _dispatch
from metagan_fast.ops.clip_grad_norm import SHORT_ROW

NAMES = {torch.float32: "f", torch.float64: "d", torch.bfloat16: "NS_8BFloat16E"}
"""Mangled names of the storage types."""

Matrix = tuple[int, int] | None


@dataclass
class Operands:
    """Memory of a call's operands, and whether all of it is aligned to 16 bytes."""

    dtype: torch.dtype
    rows: int
    columns: int
    buffers: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.arithmetic_size = buffers.arithmetic(self.dtype).itemsize
        self.aligned = self.columns * self.dtype.itemsize % 16 == 0

    def memory(self, address: int, size: int) -> None:
        """Allow `size` bytes from an address."""
        if address and size:
            self.buffers.append(np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)))

    def matrix(self, matrix: Matrix, rows: int) -> None:
        """Allow `rows` rows."""
        if matrix is None:
            return
        address, stride = matrix[0], matrix[1] if rows > 1 else 0
        size = self.dtype.itemsize
        self.aligned &= address % 16 == 0 and stride * size % 16 == 0
        if self.columns:
            self.memory(address, ((rows - 1) * stride + self.columns) * size)

    def numbers(self, address: int, count: int) -> None:
        """Allow `count` numbers of the arithmetic type."""
        self.memory(address, count * self.arithmetic_size)

    def rate(self, lr: tuple[int, int, int, int, int, int], rows: int) -> None:
        """Allow a learning rate in memory."""
        data, row, segment, element, ends, segments = lr
        self.numbers(data, (rows - 1) * row + (segments - 1) * segment + (self.columns - 1) * element + 1)
        if element:
            self.aligned &= data % 16 == 0 and row * (rows > 1) * self.arithmetic_size % 16 == 0
        if ends:
            self.memory(ends, 8 * segments)

    def allow(self, signature: dict[str, str], arguments: Sequence[Any]) -> None:
        """Allow the operands of an op; an op that combines tasks has one row where no matrix is taken."""
        rows = 1 if "void*" in signature.values() else self.rows
        for (name, kind), value in zip(signature.items(), arguments, strict=True):
            if kind == "Matrix":
                self.matrix(value, self.rows)
            elif name == "weights":
                self.numbers(value, self.rows)
            elif kind == "void*":
                self.matrix((value, 0), 1)
            elif isinstance(value, tuple) and kind == "LearningRate":
                self.rate(value, rows)
            elif isinstance(value, tuple):  # options, or a number in memory
                for number in (value,) if kind == "Number" else value:
                    if isinstance(number, tuple):
                        self.memory(number[0], 8)


@dataclass
class Launcher:
    """Run ops as compiled PTX; `ran` has the mangled names of the kernels that ran.

    `parts`: of a row of `clip_grad_norm`, 0 for one launch; None: 0 for short rows, 3 for others.
    """

    build: Any
    order: str
    parts: int | None = None
    ran: list[str] = field(default_factory=list)

    def __call__(self, op: str, like: Tensor, *arguments: Any) -> None:
        """Stand in for `buffers.run`."""
        of = Operands(like.dtype, *buffers.sizes(like))
        if op == "clip_grad_norm":
            return self._clip_grad_norm(of, *arguments)
        of.allow(cuda_build.signatures()[op], arguments)
        kind, packed = record(op, (DTYPES[like.dtype], of.rows, of.columns, (0, 0)), *arguments)
        struct = kind.partition("4cuda")[2]
        parts = (f"for_each_packILi{self._width(of)}E", struct)
        sizes = [int.from_bytes(x, "little") for x in packed[:2]]
        self._launch(of, cuda_build.source_of(op), parts, (2, 2), (32, 2), [*sizes, packed[2]])
        return None

    def _clip_grad_norm(self, of: Operands, grads: Matrix, out: Matrix, norms: int, max_norm: float, _: int) -> None:
        rows, columns = of.rows, of.columns
        assert grads is not None and out is not None
        of.matrix(grads, rows)
        of.matrix(out, rows)
        read, buffer = (np.array(x, np.int64).tobytes() for x in (grads, (*grads, *out)))
        parts = self.parts
        if parts is None:
            parts = 0 if columns <= SHORT_ROW else 3
        sums = np.full((rows, parts), np.nan)
        sizes = [rows, columns]
        of.numbers(norms, rows)

        def run(kernel: str, arguments: Sequence[Any]) -> None:
            name = (f"{len(kernel)}{kernel}ILi{self._width(of)}E{NAMES[of.dtype]}E",)
            self._launch(of, "clip_grad_norm", name, (max(1, parts), 2), 256, [*sizes, *arguments])

        if parts == 0:
            return run("clip_short_rows", [buffer, norms, max_norm, grads == out])
        run("sum_of_squares", [read, sums])
        return run("scale_to_norm", [buffer, sums, parts, norms, max_norm, grads == out])

    def _width(self, of: Operands) -> int:
        """Return the elements of a pack."""
        return 16 // of.dtype.itemsize if of.aligned else 1

    def _launch(self, of: Operands, source: str, parts: Sequence[str], grid: Any, block: Any, arguments: Any) -> None:
        kernels = self.build.ptx(source)
        (name,) = (x for x in kernels if all(part in x for part in parts))
        run = ptx.load(kernels[name])[name]
        run.launch(grid, block, arguments, order=self.order, seed=2, buffers=of.buffers)
        self.ran.append(name)


@contextmanager
def cuda_as_ptx(build: Any, order: str, parts: int | None = None) -> Iterator[Launcher]:
    """Run the PTX of the CUDA kernels for ops on CPU tensors."""
    launcher = Launcher(build, order, parts)
    with (
        mock.patch.object(buffers, "run", launcher),
        mock.patch.object(_dispatch, "select", lambda op, *_: op.native),
    ):
        yield launcher
