"""The CUDA launchers and kernels, compiled for the CPU with the shim, in place of the native backend's."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import cuda_build
from metagan_fast._native import buffers
from metagan_fast._native.extension import DTYPES

ORDERS = ("forward", "reverse", "shuffled")

_int64, _double, _address = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class _Launch(ctypes.Structure):
    _fields_ = (
        *(("dtype", ctypes.c_int), ("rows", _int64), ("columns", _int64)),
        *(("device", ctypes.c_int), ("stream", _address)),
    )


class _Matrix(ctypes.Structure):
    _fields_ = (("data", _address), ("row_stride", _int64))


class _Rate(ctypes.Structure):
    _fields_ = (
        *(("value", _double), ("data", _address), ("row_stride", _int64), ("segment_stride", _int64)),
        *(("element_stride", _int64), ("segment_ends", _address), ("segments", _int64)),
    )


class _Number(ctypes.Structure):
    _fields_ = (("value", _double), ("data", _address))


class _AdamOptions(ctypes.Structure):
    _fields_ = (
        *((name, _double) for name in ("beta1", "beta2")),
        *((name, _Number) for name in ("inverse_bias1", "inverse_bias2")),
        *((name, _double) for name in ("eps", "eps_root", "weight_decay")),
        ("decoupled", ctypes.c_bool),
    )


@functools.cache
def library() -> ctypes.CDLL:
    """Return the compiled kernels."""
    loaded = ctypes.CDLL(str(cuda_build.compile_for_host("library.cpp", "-shared", "-fPIC")))
    loaded.shim_clip_grad_norm_parts.restype = _int64
    loaded.shim_clip_grad_norm_parts.argtypes = (_int64,)
    return loaded


@contextmanager
def kernels_on_cpu(order: str = "forward", seed: int = 0, parts: int | None = None) -> Iterator[None]:
    """Let the native backend run the CUDA kernels, their threads in some order.

    `parts`: of a row of `clip_grad_norm`, 0 for one launch; None: as many as its length asks for.
    """
    library().shim_order(ORDERS.index(order), seed)
    with mock.patch.object(buffers, "run", functools.partial(_run, parts)):
        yield


def _run(parts: int | None, op: str, like: Tensor, *arguments: Any) -> None:
    """Stand in for `buffers.run`."""
    rows, columns = buffers.sizes(like)
    launch = _Launch(DTYPES[like.dtype], rows, columns, 0, None)
    function, more = f"shim_{op}", []
    if op == "clip_grad_norm":
        if parts is not None:
            function, more = "shim_clip_in_parts", [_int64(parts)]
        count = library().shim_clip_grad_norm_parts(columns) if parts is None else parts
        sums = torch.full((rows, count), torch.nan, dtype=torch.float64)
        arguments = (*arguments, sums.data_ptr())
    message = ctypes.create_string_buffer(256)
    if getattr(library(), function)(message, ctypes.byref(launch), *_converted(op, arguments), *more):
        raise RuntimeError(message.value.decode())


def _converted(op: str, arguments: tuple[Any, ...]) -> list[Any]:
    """Convert the arguments of `_core` to those of tests/kernels/cuda_shim/library.cpp."""
    if op == "adam_step":
        return [_matrices(arguments[:7]), _rate(arguments[7]), _adam(*arguments[8:])]
    if op in ("sgd_step", "rmsprop_step"):
        count = {"sgd_step": 5, "rmsprop_step": 9}[op]
        numbers = arguments[count + 1 :]
        flags = [ctypes.c_bool(numbers[-1])] if op != "rmsprop_step" else []
        numbers = numbers[:-1] if flags else numbers
        return [_matrices(arguments[:count]), _rate(arguments[count]), (_double * len(numbers))(*numbers), *flags]
    if op == "reptile_interpolate" or op == "reptile_gradient":
        initial, adapted, weights, out, *step_size = arguments
        addresses = _address(initial), _matrices([adapted]), _address(weights), _address(out)
        return [*addresses, *(ctypes.byref(_number(x)) for x in step_size)]
    if op == "meta_adam_step":
        params, adapted, weights, *rest = arguments
        buffers, lr, (*corrections, eps, decay, decoupled) = rest[:5], rest[5], rest[6:]
        head = _address(params), _matrices([adapted]), _address(weights), (_address * 5)(*buffers)
        return [*head, _rate(lr), _adam(*corrections, eps, 0.0, decay, decoupled)]
    if op == "clip_grad_norm":
        grads, out, norms, max_norm, sums = arguments
        return [_matrices([grads, out]), _address(norms), _double(max_norm), _address(sums)]
    *matrices, decay = arguments
    return [_matrices(matrices), _double(decay)]


def _matrices(matrices: Any) -> ctypes.Array:
    return (_Matrix * len(matrices))(*(_Matrix(*(matrix or (None, 0))) for matrix in matrices))


def _number(x: float | tuple[int]) -> _Number:
    return _Number(0.0, *x) if isinstance(x, tuple) else _Number(x, None)


def _adam(beta1: float, beta2: float, bias1: Any, bias2: Any, *rest: Any) -> Any:
    return ctypes.byref(_AdamOptions(beta1, beta2, _number(bias1), _number(bias2), *rest))


def _rate(lr: float | tuple[int, ...]) -> Any:
    return ctypes.byref(_Rate(0.0, *lr) if isinstance(lr, tuple) else _Rate(lr, None, 0, 0, 0, None, 1))
