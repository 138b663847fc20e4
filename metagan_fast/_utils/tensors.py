"""Helpers for tensors."""

from __future__ import annotations

from torch import Tensor


def ordinary(x: Tensor) -> Tensor:
    """Return a tensor usable by autograd: a copy if it was created under `torch.inference_mode()`."""
    return x.clone() if x.is_inference() else x
