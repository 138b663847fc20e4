"""Dispatch of the ops: a row a backend, read from the top; the first match wins.

A backend chosen by name (`use_backend`) that cannot run raises and says why. Automatic choice skips a matching backend
that is not available, and logs that once.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import _native, _triton
from .._utils.log import log_once

if TYPE_CHECKING:
    from ._op import Function, Op

logger = logging.getLogger(__name__)

ANY = "any"
FLOATING = frozenset(_native.DTYPES)


@dataclass(frozen=True)
class Backend:
    """Row of the table: a backend that runs every op for buffers of `dtypes` on `device`.

    `is_available()` returns whether it can run here, and if not, why. `function(op)` returns its function of an op.
    """

    name: str
    device: str
    dtypes: frozenset[torch.dtype]
    is_available: Callable[[], tuple[bool, str]]
    function: Callable[[Op], Function]


def _native_function(op: Op) -> Function:
    return op.native


def _triton_function(op: Op) -> Function:
    return _triton.implementation(op.name)


BACKENDS = (
    Backend("native", "cpu", FLOATING, _native.is_available, _native_function),
    Backend("triton", "cuda", FLOATING, _triton.is_available, _triton_function),
    Backend("cuda", "cuda", FLOATING, _native.cuda_is_available, _native_function),
    Backend("reference", ANY, FLOATING, lambda: (True, ""), lambda op: op.plain),
    # After the reference, so reached by name only: Triton's slow interpreter, for tests.
    Backend("triton", "cpu", FLOATING, _triton.is_interpreted, _triton_function),
)
NAMES = tuple(dict.fromkeys(row.name for row in BACKENDS))

_requested: ContextVar[str | None] = ContextVar("metagan_fast_backend", default=None)


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run the fused ops on one backend within a `with` block, in this thread.

    Under torch.compile, and where an op without an `autograd.Function` is differentiated, ops are plain
    PyTorch whatever the backend.

    Args:
        name: "native" (CPU), "triton" or "cuda" (GPU), "reference", or None for the best that is available.

    Raises:
        ValueError: no such backend.
    """
    if name is not None and name not in NAMES:
        raise ValueError(f"unknown backend {name!r}; expected one of {', '.join(NAMES)}")
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def dispatch(op: Op, like: Tensor) -> Function:
    """Return the function of an op for buffers of the dtype and device of `like`, on the requested backend."""
    return select(op, like.device.type, like.dtype, _requested.get())


@functools.cache
def select(op: Op, device: str, dtype: torch.dtype, backend: str | None) -> Function:
    """Return an op's function on the first backend that fits.

    Raises:
        RuntimeError: `backend` is given and cannot run; says why.
    """
    reasons = []
    for row in BACKENDS:
        if backend not in (None, row.name):
            continue
        if row.device not in (ANY, device):
            reasons.append(f"it runs on {row.device}, not on {device}")
            continue
        if dtype not in row.dtypes:
            reasons.append(f"it does not take {dtype}")
            continue
        available, reason = row.is_available()
        if available:
            return row.function(op)
        reasons.append(reason)
        if backend is None:
            log_once(logger, logging.WARNING, f"backend {row.name!r} is not used, expect less speed: {reason}")
    raise RuntimeError(f"{op.name}: no backend {backend or ''!r} for this call: {'; '.join(reasons)}")
