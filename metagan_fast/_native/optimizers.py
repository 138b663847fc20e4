"""Gathering of an optimizer's many tensors for one call of the extension, through DLPack's C interface."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .extension import _core, is_available


@functools.cache
def can_gather() -> tuple[bool, str]:
    """Return whether the extension can read an optimizer's tensors, and if not, why."""
    available, reason = is_available()
    if not available:
        return False, reason
    if not hasattr(Tensor, "__dlpack_c_exchange_api__"):
        return False, f"PyTorch {torch.__version__} has no C interface of DLPack"
    return True, ""


@functools.cache
def _tensor_reader() -> _core.TensorReader:
    return _core.TensorReader(Tensor.__dlpack_c_exchange_api__, Tensor, torch.nn.Parameter)


def gather(
    params: Sequence[Tensor], state: dict[Tensor, Any], keys: tuple[str | None, ...], counted: bool
) -> _core.OptimizerBatch:
    """Return the tensors of a parameter group that the native step updates; see `_core.TensorReader.gather`.

    Requires `can_gather()`.
    """
    return _tensor_reader().gather(list(params), state, keys, counted)
