"""Trees of hyper-parameters, and copies of a module's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._flat_module import flat_copies
from .._originals import hand_on

__getattr__, __dir__ = hand_on(__name__, "higher.utils")


def flatten(x: Any) -> list[Any]:
    """Return the leaves of nested lists, tuples, sets and dicts, in order."""
    if isinstance(x, dict):
        x = list(x.values())
    if isinstance(x, (list, tuple, set)):
        return [leaf for child in x for leaf in flatten(child)]
    return [x]


def map_leaves(x: Any, function: Callable[[Any], Any]) -> Any:
    """Return nested lists, tuples, sets and dicts with a function applied to each leaf."""
    if isinstance(x, dict):
        return type(x)({key: map_leaves(child, function) for key, child in x.items()})
    if isinstance(x, (list, tuple, set)):
        return type(x)([map_leaves(child, function) for child in x])
    return function(x)


def get_func_params(module: nn.Module, device: torch.device | None = None, safe_copy: bool = True) -> list[Tensor]:
    """Return a module's parameters cut from any graph, as tensors that require grad where the parameters do.

    Args:
        module: any module.
        device: where they go; by default where they are.
        safe_copy: copy them, into one buffer; with False they share memory with the parameters.
    """
    if safe_copy:
        return flat_copies(module.parameters(), device=device, detach=True)
    shared = [p.detach().requires_grad_(p.requires_grad) for p in module.parameters()]
    return shared if device is None else [p.to(device) for p in shared]
