"""Helpers that several test files share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tolerances import tolerance


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
