"""Dispatch table of the ops, read from the top: the first match wins.

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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _native, _triton
from .._utils.log import log_once
from . import _native as native_ops
from . import reference

if TYPE_CHECKING:
    from ..flat import FlatLayout

logger = logging.getLogger(__name__)

OPS = tuple(native_ops.OPS)
ANY = "any"


@dataclass(frozen=True)
class Implementation:
    """Row of the table: the function that runs `op` for buffers of `dtypes` on `device`.

    `is_available()` returns whether it can run here, and if not, why. `function` takes the op's tensors and
    options and `out`, a tuple of tensors to write (inputs among them), or None for new ones; it returns a
    tuple.
    """

    op: str
    backend: str
    device: str
    dtypes: frozenset[torch.dtype]
    is_available: Callable[[], tuple[bool, str]]
    function: Callable[..., tuple[Tensor, ...]]


def expand_rate(lr: float | Tensor, layout: FlatLayout | None) -> float | Tensor:
    """Return a learning rate that broadcasts against the buffers."""
    return layout.expand(lr) if layout is not None and isinstance(lr, Tensor) and lr.ndim > 0 else lr


def plain(op: str) -> Callable[..., tuple[Tensor, ...]]:
    """Return the op of `reference` with the signature of the table."""
    formula = getattr(reference, op)

    def run(*tensors: Any, out: tuple[Tensor, ...] | None = None, layout: Any = None, **options: Any) -> tuple:
        if layout is not None:
            tensors = (*tensors[:-1], expand_rate(tensors[-1], layout))
        results = formula(*tensors, **options)
        results = results if isinstance(results, tuple) else (results,)
        if out is None:
            return results
        for destination, result in zip(out, results[: len(out)], strict=True):
            destination.copy_(result)
        return (*out, *results[len(out) :])

    return run


def with_clipping(
    step: Callable[..., tuple[Tensor, ...]], clip: Callable[..., tuple[Tensor, ...]]
) -> Callable[..., tuple[Tensor, ...]]:
    """Return a step with `max_norm` and `zero_grads`, as separate passes before and after it."""

    def run(
        params: Tensor,
        grads: Tensor,
        *others: Any,
        max_norm: float | None = None,
        zero_grads: bool = False,
        **options: Any,
    ) -> tuple[Tensor, ...]:
        direction = grads if max_norm is None else clip(grads, max_norm, out=None)[0]
        results = step(params, direction, *others, **options)
        if zero_grads:
            grads.zero_()
        return results

    return run


FLOATING = frozenset(_native.DTYPES)
CLIPPING = ("sgd_step", "adam_step")
"""Ops with `max_norm` and `zero_grads`; only Triton's kernels fuse them."""
NATIVE = dict(native_ops.OPS)
PLAIN = {op: plain(op) for op in OPS}
for forms in (NATIVE, PLAIN):
    forms |= {op: with_clipping(forms[op], forms["clip_grad_norm"]) for op in CLIPPING}

IMPLEMENTATIONS: tuple[Implementation, ...] = (
    *(Implementation(op, "native", "cpu", FLOATING, _native.is_available, NATIVE[op]) for op in OPS),
    *(Implementation(op, "triton", "cuda", FLOATING, _triton.is_available, _triton.implementation(op)) for op in OPS),
    *(Implementation(op, "cuda", "cuda", FLOATING, _native.cuda_is_available, NATIVE[op]) for op in OPS),
    *(Implementation(op, "reference", ANY, FLOATING, lambda: (True, ""), PLAIN[op]) for op in OPS),
    # After the reference, so reached by name only: Triton's slow interpreter, for tests.
    *(Implementation(op, "triton", "cpu", FLOATING, _triton.is_interpreted, _triton.implementation(op)) for op in OPS),
)
BACKENDS = tuple(dict.fromkeys(row.backend for row in IMPLEMENTATIONS))

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
    if name is not None and name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; expected one of {', '.join(BACKENDS)}")
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def dispatch(op: str, first: Tensor, *others: Any, **options: Any) -> tuple[Tensor, ...]:
    """Run an op on the first implementation that fits its first buffer and the requested backend."""
    return select(op, first.device.type, first.dtype, _requested.get())(first, *others, **options)


@functools.cache
def select(op: str, device: str, dtype: torch.dtype, backend: str | None) -> Callable[..., tuple[Tensor, ...]]:
    """Return the function of the first row that fits.

    Raises:
        RuntimeError: `backend` is given and cannot run; says why.
    """
    reasons = []
    for row in IMPLEMENTATIONS:
        if row.op != op or backend not in (None, row.backend):
            continue
        if row.device not in (ANY, device):
            reasons.append(f"it runs on {row.device}, not on {device}")
            continue
        if dtype not in row.dtypes:
            reasons.append(f"it does not take {dtype}")
            continue
        available, reason = row.is_available()
        if available:
            return row.function
        reasons.append(reason)
        if backend is None:
            log_once(logger, logging.WARNING, f"backend {row.backend!r} is not used, expect less speed: {reason}")
    raise RuntimeError(f"{op}: no backend {backend or ''!r} for this call: {'; '.join(reasons)}")
