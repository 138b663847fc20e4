"""Helpers for tensors."""

from __future__ import annotations

from torch import Tensor


def ordinary(x: Tensor) -> Tensor:
    """Return a tensor usable by autograd: a copy if it was created under `torch.inference_mode()`."""
    return x.clone() if x.is_inference() else x


def every(count: int, most: int) -> slice:
    """Return a slice of at most `most` evenly spaced of `count` elements."""
    return slice(None, None, -(-count // most))
