"""Copies of modules, and what tells whether a module has changed."""

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
    """Copy a module, intermediate tensors that it keeps included (old `weight_norm` keeps the weight it computed).

    Args:
        module: left as it is.
        parameter: makes the copy's parameters; by default they are copies.
        share: whether the copy has the very buffers of the module, and other tensors that are no parameters.
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
    """Take the running statistics out of batch norm, and out of instance norm where it only writes them; in place."""
    for part in module.modules():
        if isinstance(part, _InstanceNorm) and part.training:
            part.running_mean = part.running_var = part.num_batches_tracked = None
    return replace_all_batch_norm_modules_(module)


class Snapshot:
    """All that decides what a module computes at a time, but for the values of its parameters and buffers.

    Numbers and strings count by value, in containers too; parts, functions, tensors and objects of one's own by
    identity. A copied or pickled snapshot is one of the copied module.

    Args:
        module: left as it is.
        versions: tell apart how often each tensor has been written to.
    """

    def __init__(self, module: nn.Module, *, versions: bool = False) -> None:
        self._module = module
        self._versions = versions
        self._entries = self._take()

    def is_current(self) -> bool:
        """Return whether the module still is as it was."""
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
    """Return the identity of each buffer, and how often it has been written to."""
    return {name: (id(buffer), _version(buffer)) for name, buffer in module.named_buffers()}


def _enter(values: Iterable[Any], entries: list[Any]) -> None:
    """Append values, and what the containers among them hold."""
    values = list(values)
    entries += values
    for value in values:
        if value.__class__ in _CONTAINERS and value:
            _enter([*value, *value.values()] if isinstance(value, dict) else value, entries)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
