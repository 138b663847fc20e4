"""Copies of modules, and snapshots that detect changes."""

from __future__ import annotations

import copy
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import replace_all_batch_norm_modules_
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_leaves

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_CONTAINERS = {dict, OrderedDict, list, tuple, set, frozenset, torch.Size}


def copy_module(
    module: nn.Module, parameter: Callable[[nn.Parameter], Tensor] | None = None, *, share: bool = False
) -> nn.Module:
    """Copy a module, including non-leaf tensors in its attributes (old `weight_norm` stores the computed weight).

    Args:
        module: unchanged.
        parameter: maps a parameter to the copy's; by default a copy.
        share: whether the copy shares buffers and other tensors that are not parameters with the module.
    """
    memo: dict[int, Any] = {}
    for leaf in tree_leaves([vars(part) for part in module.modules()]):
        if isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter):
            if not leaf.is_leaf:
                memo[id(leaf)] = leaf.detach().clone()  # else deepcopy raises
            elif share:
                memo[id(leaf)] = leaf
    if parameter is not None:
        memo |= {id(p): nn.Parameter(parameter(p), requires_grad=p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, memo)


def use_batch_statistics(module: nn.Module) -> nn.Module:
    """Remove the running statistics of batch norm, and of instance norm that only writes them; in place."""
    for part in module.modules():
        if isinstance(part, _InstanceNorm) and part.training:
            part.running_mean = part.running_var = part.num_batches_tracked = None
    return replace_all_batch_norm_modules_(module)


class Snapshot:
    """Snapshot of all that a module's computation depends on, except the values of its parameters and buffers.

    Numbers and strings are compared by value, in containers too; submodules, functions, tensors and other objects by
    identity. A copied or pickled snapshot refers to the copied module.

    Args:
        module: unchanged.
        versions: also compare the version counter of each tensor.
    """

    def __init__(self, module: nn.Module, *, versions: bool = False) -> None:
        self._module = module
        self._versions = versions
        self._entries = self._take()

    def is_current(self) -> bool:
        """Return whether the module is unchanged."""
        before, now = self._entries, self._take()
        if len(before) != len(now):
            return False
        return all(map(operator.is_, before, now)) or all(
            a is b or (type(a) is type(b) and isinstance(a, _PLAIN) and a == b)
            for a, b in zip(before, now, strict=True)
        )

    def _take(self) -> list[Any]:
        entries: list[Any] = []
        for part in self._module.modules():
            entries.append(part)
            _enter(vars(part).values(), entries)
        if self._versions:
            entries += [_version(entry) for entry in entries if isinstance(entry, Tensor)]
        return entries

    def __reduce__(self) -> tuple[Any, ...]:
        return _snapshot_of, (self._module, self._versions, self.is_current())


def _snapshot_of(module: nn.Module, versions: bool, is_current: bool) -> Snapshot:
    snapshot = Snapshot(module, versions=versions)
    if not is_current:
        snapshot._entries = []
    return snapshot


def buffer_versions(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the identity and the version counter of each buffer."""
    return {name: (id(buffer), _version(buffer)) for name, buffer in module.named_buffers()}


def _enter(values: Iterable[Any], entries: list[Any]) -> None:
    """Append values, and recursively the contents of containers among them."""
    values = list(values)
    entries += values
    for value in values:
        if value.__class__ in _CONTAINERS and value:
            _enter([*value, *value.values()] if isinstance(value, dict) else value, entries)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
