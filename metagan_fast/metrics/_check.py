"""Checks of feature sets."""

from __future__ import annotations

from torch import Tensor


def same_kind(first: Tensor, second: Tensor) -> None:
    """Raise ValueError unless two sets agree in all but their sizes."""
    if first.shape[-1] != second.shape[-1] or first.shape[:-2] != second.shape[:-2]:
        raise ValueError(f"expected two sets of the same kind, got {list(first.shape)} and {list(second.shape)}")


def finite(*sets: Tensor) -> None:
    """Raise ValueError if a feature is NaN or infinite."""
    if not all(features.isfinite().all() for features in sets):
        raise ValueError("expected finite features, got NaN or infinite ones; has the network that made them diverged?")
