"""Normalisation by elementary operations, whose higher derivatives are exact.

In torch 2.13 the third derivatives of layer, batch and instance norm, and the second derivatives of weight norm, are
silently wrong: they differ from finite differences in float64 (group norm and RMS norm agree). MAML takes second
derivatives, and third ones through a gradient penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .overrides import FunctionOverrides


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    if tuple(normalized_shape) != input.shape[-len(normalized_shape) :]:
        return NotImplemented  # PyTorch raises the error
    return _affine(_normalise(input, range(-len(normalized_shape), 0), eps), weight, bias).to(input.dtype)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if running_mean is not None or running_var is not None or not training:
        return NotImplemented
    dims = [0, *range(2, input.ndim)]
    return _affine(_normalise(input, dims, eps), *_per_channel(input, weight, bias)).to(input.dtype)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if running_mean is not None or running_var is not None or not use_input_stats:
        return NotImplemented
    return _affine(_normalise(input, range(2, input.ndim), eps), *_per_channel(input, weight, bias)).to(input.dtype)


class ExactNorms(FunctionOverrides):
    """Overrides `F.layer_norm`, and `F.batch_norm` and `F.instance_norm` without running statistics."""

    overrides: ClassVar = {
        F.layer_norm: _layer_norm,
        F.batch_norm: _batch_norm,
        F.instance_norm: _instance_norm,
    }


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    dims = [d for d in range(v.ndim) if d != dim]  # all dims if dim is -1
    return v * (g / v.square().sum(dims, keepdim=dim != -1).sqrt())


class ExactWeightNorm(FunctionOverrides):
    """Overrides `torch._weight_norm`, which both forms of `weight_norm` call."""

    overrides: ClassVar = {torch._weight_norm: _weight_norm}


def _normalise(x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
    """Return x with mean 0 and variance 1 over `dims`, in float32 or float64."""
    x = x if x.dtype == torch.float64 else x.float()
    centred = x - x.mean(tuple(dims), keepdim=True)
    return centred / (centred.square().mean(tuple(dims), keepdim=True) + eps).sqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else weight * x
    return x if bias is None else x + bias


def _per_channel(input: Tensor, *parameters: Tensor | None) -> list[Tensor | None]:
    """Reshape per-channel parameters `[C]` to broadcast over dim 1 of an input."""
    shape = (-1, *(1,) * (input.ndim - 2))
    return [None if x is None else x.view(shape) for x in parameters]
