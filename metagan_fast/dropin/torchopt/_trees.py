"""Tensors in nested dicts, lists and tuples, and in the dictionaries of modules.

Dicts are read in the order of their sorted keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from metagan_fast._rebinding import check_rebindable, scripted
from metagan_fast.dropin._flat_module import Part


def leaves(tree: Any) -> list[Any]:
    """Return what is no dict, list or tuple, None included; a `Part` counts as its buffers."""
    found: list[Any] = []
    tree_map(found.append, tree)
    return found


def rebuild(tree: Any, values: Iterable[Any]) -> Any:
    """Return a tree of the same form with other leaves, in order."""
    iterator: Iterator[Any] = iter(values)
    return tree_map(lambda _: next(iterator), tree)


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return a tree of the same form with a function applied to each leaf."""
    if isinstance(tree, Part):
        return tree._replace(state=tree_map(function, tree.state))
    if isinstance(tree, dict):
        values = {key: tree_map(function, tree[key]) for key in _ordered(tree)}
        return type(tree)((key, values[key]) for key in tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(function, child) for child in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(tree_map(function, child) for child in tree)
    return function(tree)


def containers(module: nn.Module, kind: str) -> tuple[dict[str, Any], ...]:
    """Return the dictionaries in which a module and its submodules hold "_parameters" or "_buffers".

    Raises:
        RuntimeError: it is no module.
        ValueError: a part is scripted, and keeps them elsewhere.
    """
    if not isinstance(module, nn.Module):
        raise RuntimeError(f"expected a module, got {type(module).__name__}")
    check_rebindable(module, scripted)
    return tuple(held for child in module.modules() if (held := getattr(child, kind)))


def _ordered(keys: Iterable[Any]) -> list[Any]:
    keys = list(keys)
    try:
        return sorted(keys)
    except TypeError:  # keys of several types
        return keys
