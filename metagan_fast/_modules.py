"""Copies of modules, and what tells whether a module has changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import replace_all_batch_norm_modules_
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_leaves

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_CONTAINERS = (dict, list, tuple, set, frozenset)

Snapshot = list[Any]
"""What a module was like at a time; `same` compares two."""


def copy_module(
    module: nn.Module, parameter: Callable[[nn.Parameter], Tensor] | None = None, *, share_buffers: bool = False
) -> nn.Module:
    """Copy a module, intermediate tensors that it keeps included (old `weight_norm` keeps the weight it computed).

    Args:
        module: left as it is.
        parameter: makes the copy's parameters; by default they are copies.
        share_buffers: whether the copy has the very buffers of the module.
    """
    memo: dict[int, Any] = {}
    for leaf in tree_leaves([vars(m) for m in module.modules()]):
        if isinstance(leaf, Tensor) and not leaf.is_leaf:
            memo[id(leaf)] = leaf.detach().clone()  # else deepcopy raises
    if parameter is not None:
        memo |= {id(p): nn.Parameter(parameter(p), requires_grad=p.requires_grad) for p in module.parameters()}
    if share_buffers:
        memo |= {id(buffer): buffer for buffer in module.buffers()}
    return copy.deepcopy(module, memo)


def use_batch_statistics(module: nn.Module) -> nn.Module:
    """Take the running statistics out of batch norm, and out of instance norm where it only writes them; in place."""
    for part in module.modules():
        if isinstance(part, _InstanceNorm) and part.training:
            part.running_mean = part.running_var = part.num_batches_tracked = None
    return replace_all_batch_norm_modules_(module)


def snapshot(module: nn.Module, *, versions: bool = False) -> Snapshot:
    """Return all that decides what a module computes, but for the values of its parameters and buffers.

    Numbers and strings go by value, in containers too; parts, functions, tensors and objects of one's own by identity.

    Args:
        module: left as it is.
        versions: tell apart how often each tensor has been written to.
    """
    entries: Snapshot = []
    for part in module.modules():
        entries.append(part)
        _enter(vars(part), entries)
    if versions:
        entries += [_version(entry) for entry in entries if isinstance(entry, Tensor)]
    return entries


def same(before: Snapshot, after: Snapshot) -> bool:
    """Return whether two snapshots are of one structure with the same attributes."""
    return len(before) == len(after) and all(
        a is b or (type(a) is type(b) and isinstance(a, _PLAIN) and a == b) for a, b in zip(before, after, strict=True)
    )


def buffer_versions(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the identity of each buffer, and how often it has been written to."""
    return {name: (id(buffer), _version(buffer)) for name, buffer in module.named_buffers()}


def _enter(container: Any, entries: Snapshot) -> None:
    """Append what a container holds, and what the containers in it hold."""
    held = [*container, *container.values()] if isinstance(container, dict) else [*container]
    entries += held
    for value in held:
        if isinstance(value, _CONTAINERS) and value:
            _enter(value, entries)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
