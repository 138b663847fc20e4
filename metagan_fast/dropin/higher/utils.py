"""Nested hyper-parameters, and copies of a module's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._flat_module import flat_copies
from .._originals import fall_back_to

__getattr__, __dir__ = fall_back_to(__name__, "higher.utils")


def flatten(x: Any) -> list[Any]:
    """Return the leaves of nested lists, tuples, sets and dicts, in order."""
    if isinstance(x, dict):
        x = list(x.values())
    if isinstance(x, (list, tuple, set)):
        return [leaf for child in x for leaf in flatten(child)]
    return [x]


def map_leaves(x: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to each leaf of nested lists, tuples, sets and dicts."""
    if isinstance(x, dict):
        return type(x)({key: map_leaves(child, function) for key, child in x.items()})
    if isinstance(x, (list, tuple, set)):
        return type(x)([map_leaves(child, function) for child in x])
    return function(x)


def get_func_params(module: nn.Module, device: torch.device | None = None, safe_copy: bool = True) -> list[Tensor]:
    """Return a module's parameters detached from any graph, each with its `requires_grad`.

    Args:
        module: any module.
        device: device of the result; by default unchanged.
        safe_copy: copy them into one buffer; False: share the parameters' memory.
    """
    if safe_copy:
        return flat_copies(module.parameters(), device=device, detach=True)
    shared = [p.detach().requires_grad_(p.requires_grad) for p in module.parameters()]
    return shared if device is None else [p.to(device) for p in shared]
