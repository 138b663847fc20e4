"""Host side of `csrc/cuda/*.cu` for the PTX translator: arguments of `_core.cuda_*` as structs, launches.

The structs are those of `csrc/cuda/*.cuh`, members in their order there; ctypes lays them out as C++ does. `A` is the
arithmetic type. A launch may touch its operands' bytes only.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import ptx
from metagan_fast._native import buffers
from metagan_fast.ops import _dispatch
from metagan_fast.ops.clip_grad_norm import SHORT_ROW

NAMES = {torch.float32: "f", torch.float64: "d", torch.bfloat16: "NS_8BFloat16E"}
"""Mangled names of the storage types."""

Address = ctypes.c_uint64
Int64 = ctypes.c_int64
Matrix = tuple[int, int] | None
Number = float | tuple[int]
Rate = float | tuple[int, int, int, int, int, int]


def _struct(name: str, **members: Any) -> Any:
    return type(name, (ctypes.Structure,), {"_fields_": list(members.items())})


def _numbers(A: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), A)


@functools.cache
def structs(A: Any) -> dict[str, Any]:
    """Return the structs for one arithmetic type by their C++ names."""
    Input = _struct("Input", data=Address, stride=Int64)
    Buffer = _struct("Buffer", input=Input, out=Address, out_stride=Int64)
    strides = _numbers(Int64, "row_stride segment_stride element_stride")
    Rate = _struct("Rate", value=A, data=Address, **strides, segment_ends=Address, segments=Int64)
    Scalar = _struct("Scalar", value=A, data=Address)
    sgd = _struct("SgdUpdate", **_numbers(A, "momentum one_minus_dampening weight_decay"), nesterov=ctypes.c_bool)
    names = "beta1 one_minus_beta1 beta2 one_minus_beta2 inverse_bias1 inverse_bias2 eps eps_root weight_decay"
    adam = _struct("AdamUpdate", **_numbers(A, names), decoupled=ctypes.c_bool)
    rmsprop = _struct("RmspropUpdate", **_numbers(A, "alpha one_minus_alpha eps weight_decay momentum"))
    TaskSum = _struct("TaskSum", adapted=Input, tasks=Int64, weights=Address, scale=A)

    def step(name: str, buffers: str, update: Any, **more: Any) -> Any:
        return _struct(name, **_numbers(Buffer, buffers), grads=Input, lr=Rate, update=update, **more)

    AdamStep = step("AdamStep", "params exp_avg exp_avg_sq", adam, **_numbers(Scalar, "inverse_bias1 inverse_bias2"))
    of_ops = (
        step("SgdStep", "params momentum_buffer", sgd),
        AdamStep,
        step("RmspropStep", "params square_avg momentum_buffer grad_avg", rmsprop),
        _struct("ReptileInterpolate", initial=Buffer, tasks=TaskSum, step_size=Scalar),
        _struct("ReptileGradient", initial=Buffer, tasks=TaskSum),
        _struct("MetaAdamStep", adam=AdamStep, tasks=TaskSum),
        _struct("EmaUpdate", average=Buffer, params=Input, one_minus_decay=A),
    )
    return {x.__name__: x for x in (Input, Buffer, Rate, Scalar, TaskSum, sgd, adam, rmsprop, *of_ops)}


@dataclass
class Operands:
    """Convert the package's arguments to struct members, noting their memory and whether it is aligned to 16 bytes."""

    dtype: torch.dtype
    rows: int
    columns: int
    buffers: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.A = ctypes.c_double if self.dtype == torch.float64 else ctypes.c_float
        self.of = structs(self.A)
        self.aligned = self.columns * self.dtype.itemsize % 16 == 0

    def memory(self, address: int, size: int) -> int:
        """Allow `size` bytes from an address."""
        self.buffers.append(np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)))
        return address

    def input(self, matrix: Matrix, rows: int | None = None) -> Any:
        rows = self.rows if rows is None else rows
        if matrix is None:
            return self.of["Input"](0, 0)
        address, stride = matrix[0], matrix[1] if rows > 1 else 0
        size = self.dtype.itemsize
        self.aligned &= address % 16 == 0 and stride * size % 16 == 0
        if self.columns:
            self.memory(address, ((rows - 1) * stride + self.columns) * size)
        return self.of["Input"](address, stride)

    def buffer(self, matrix: Matrix, out: Matrix) -> Any:
        written = self.input(out)
        return self.of["Buffer"](self.input(matrix), written.data, written.stride)

    def numbers(self, address: int, count: int) -> int:
        """Allow `count` numbers of the arithmetic type."""
        return self.memory(address, count * ctypes.sizeof(self.A)) if address else 0

    def rate(self, lr: Rate) -> Any:
        if not isinstance(lr, tuple):
            return self.of["Rate"](lr, 0, 0, 0, 0, 0, 1)
        data, row, segment, element, ends, segments = lr
        last = (self.rows - 1) * row + (segments - 1) * segment + (self.columns - 1) * element
        self.numbers(data, last + 1)
        if element:
            size = ctypes.sizeof(self.A)
            self.aligned &= data % 16 == 0 and row * (self.rows > 1) * size % 16 == 0
        if ends:
            self.memory(ends, 8 * segments)
        return self.of["Rate"](0, *lr)

    def scalar(self, x: Number) -> Any:
        if not isinstance(x, tuple):
            return self.of["Scalar"](x, 0)
        return self.of["Scalar"](0, self.memory(x[0], 8))

    def tasks(self, adapted: Matrix, weights: int, count: int) -> Any:
        return self.of["TaskSum"](self.input(adapted, count), count, self.numbers(weights, count), 1 / count)


def _sgd_step(of: Operands, like: Tensor, *arguments: Any) -> Any:
    params, grads, momentum_buffer, params_out, buffer_out, lr, options = arguments
    momentum, dampening, decay, nesterov = options
    return of.of["SgdStep"](
        of.buffer(params, params_out),
        of.buffer(momentum_buffer, buffer_out),
        of.input(grads),
        of.rate(lr),
        of.of["SgdUpdate"](momentum, 1 - dampening, decay, nesterov),
    )


def _adam(of: Operands, beta1: float, beta2: float, bias1: Number, bias2: Number, *rest: Any) -> tuple[Any, ...]:
    scalars = of.scalar(bias1), of.scalar(bias2)
    update = of.of["AdamUpdate"](beta1, 1 - beta1, beta2, 1 - beta2, *(x.value for x in scalars), *rest)
    return update, *scalars


def _adam_step(of: Operands, like: Tensor, *arguments: Any) -> Any:
    params, grads, first, second, params_out, first_out, second_out, lr, options = arguments
    buffers = ((params, params_out), (first, first_out), (second, second_out))
    return of.of["AdamStep"](*(of.buffer(*x) for x in buffers), of.input(grads), of.rate(lr), *_adam(of, *options))


def _rmsprop_step(of: Operands, like: Tensor, *arguments: Any) -> Any:
    params, grads, *state, lr, (alpha, eps, decay, momentum) = arguments
    square, buffer, mean, params_out, square_out, buffer_out, mean_out = state
    buffers = ((params, params_out), (square, square_out), (buffer, buffer_out), (mean, mean_out))
    update = of.of["RmspropUpdate"](alpha, 1 - alpha, eps, decay, momentum)
    return of.of["RmspropStep"](*(of.buffer(*x) for x in buffers), of.input(grads), of.rate(lr), update)


def _reptile_interpolate(of: Operands, like: Tensor, *arguments: Any) -> Any:
    initial, adapted, weights, out, step_size = arguments
    of.rows = 1
    row = of.buffer((initial, 0), (out, 0))
    return of.of["ReptileInterpolate"](row, of.tasks(adapted, weights, len(like)), of.scalar(step_size))


def _reptile_gradient(of: Operands, like: Tensor, *arguments: Any) -> Any:
    initial, adapted, weights, out = arguments
    of.rows = 1
    return of.of["ReptileGradient"](of.buffer((initial, 0), (out, 0)), of.tasks(adapted, weights, len(like)))


def _meta_adam_step(of: Operands, like: Tensor, *arguments: Any) -> Any:
    params, adapted, weights, *state, lr, options = arguments
    of.rows = 1
    starts, outs = (params, *state[:2]), state[2:]
    rows = [of.buffer((start, 0), (out, 0)) for start, out in zip(starts, outs, strict=True)]
    adam = of.of["AdamStep"](*rows, of.input(None), of.rate(lr), *_adam(of, *options))
    return of.of["MetaAdamStep"](adam, of.tasks(adapted, weights, len(like)))


def _ema_update(of: Operands, like: Tensor, *arguments: Any) -> Any:
    average, params, out, decay = arguments
    return of.of["EmaUpdate"](of.buffer(average, out), of.input(params), 1 - decay)


OPS = {
    "sgd_step": ("updates", _sgd_step),
    "adam_step": ("updates", _adam_step),
    "rmsprop_step": ("updates", _rmsprop_step),
    "reptile_interpolate": ("tasks", _reptile_interpolate),
    "reptile_gradient": ("tasks", _reptile_gradient),
    "meta_adam_step": ("tasks", _meta_adam_step),
    "ema_update": ("updates", _ema_update),
}
"""File of each op's kernel, and the function that builds its struct."""


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
        source, pack = OPS[op]
        struct = pack(of, like, *arguments)
        width = 16 // like.dtype.itemsize if of.aligned else 1
        name = type(struct).__name__
        parts = (f"for_each_packILi{width}E", f"{len(name)}{name}I{NAMES[like.dtype]}E")
        self._launch(of, source, parts, (2, 2), (32, 2), [of.rows, of.columns, bytes(struct)])
        return None

    def _clip_grad_norm(self, of: Operands, grads: Matrix, out: Matrix, norms: int, max_norm: float, _: int) -> None:
        rows, columns = of.rows, of.columns
        buffer = of.buffer(grads, out)
        width = 16 // of.dtype.itemsize if of.aligned else 1
        parts = self.parts
        if parts is None:
            parts = 0 if columns <= SHORT_ROW else 3
        sums = np.full((rows, parts), np.nan)
        sizes = [rows, columns]
        of.numbers(norms, rows)

        def run(kernel: str, arguments: Sequence[Any]) -> None:
            name = (f"{len(kernel)}{kernel}ILi{width}E{NAMES[of.dtype]}E",)
            self._launch(of, "clip_grad_norm", name, (max(1, parts), 2), 256, [*sizes, *arguments])

        if parts == 0:
            return run("clip_short_rows", [bytes(buffer), norms, max_norm, grads == out])
        run("sum_of_squares", [bytes(buffer.input), sums])
        return run("scale_to_norm", [bytes(buffer), sums, parts, norms, max_norm, grads == out])

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
