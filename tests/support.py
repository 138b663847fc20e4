"""Helpers that several test files share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from metagan_fast import _native
from tolerances import tolerance

ROOT = Path(__file__).resolve().parents[1]
"""Root of the source tree."""

ISAS: tuple[str, ...] = tuple(_native._core.available_isas()) if _native.is_available()[0] else ()
"""Instruction sets that the extension can use here, narrowest first; none without it."""

THREAD_COUNTS = (1, 2, 3, 7, 48, 64, 255, 1024)
"""Thread counts whose results must be the same bytes; most exceed a small network's channels."""


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Use an instruction set within a `with` block."""
    before = _native._core.isa()
    _native._core.set_isa(name)
    try:
        yield
    finally:
        _native._core.set_isa(before)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return |actual - expected| / |expected| in L2, computed in float64 (absolute if expected is 0)."""
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    difference, scale = (actual - expected).norm().item(), expected.norm().item()
    return difference / scale if scale else difference


def assert_close(actual: Tensor, expected: Tensor, name: str) -> None:
    """Assert that the relative L2 error is finite and within the tolerance called `name`."""
    error = relative_error(actual, expected)
    assert error <= tolerance(name), f"relative error {error:.3e} exceeds {name} = {tolerance(name):.1e}"


def join(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return all values of a mapping as one vector, in the order of their names."""
    return torch.cat([tensors[name].reshape(-1) for name in sorted(tensors)])
