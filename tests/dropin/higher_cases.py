"""A network, data and the original library for tests of the stand-in for `higher`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def original() -> Any:
    """Return the library `higher`; skip where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("higher", reason="the original, higher, is not installed")


def network() -> nn.Module:
    shared = nn.Linear(4, 4)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), shared, nn.BatchNorm1d(4), nn.Tanh(), shared, nn.Linear(4, 2))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(6, 4).double(), torch.randn(6, 2).double()) for _ in range(count)]


def mse(module: Callable[..., Tensor], batch: tuple[Tensor, Tensor], **options: Any) -> Tensor:
    return (module(batch[0], **options) - batch[1]).square().mean()


def flat(tensors: Any) -> Tensor:
    return torch.cat([x.detach().reshape(-1) for x in tensors])
