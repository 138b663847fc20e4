"""Small facts about tensors."""

from __future__ import annotations

from torch import Tensor


def ordinary(x: Tensor) -> Tensor:
    """Return a tensor that autograd can take: a copy where it was made under `torch.inference_mode()`."""
    return x.clone() if x.is_inference() else x
