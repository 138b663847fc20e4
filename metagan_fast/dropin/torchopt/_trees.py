"""Trees of tensors: nested dicts, lists and tuples, and the dictionaries of modules.

Dicts are traversed in the order of their sorted keys. `Part`, the element of optimizer states, is registered as a node
of PyTorch's pytrees and, if installed, optree's; its children are its flat buffers. So states pass through
`torch.func.vmap`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree

from ..._utils.rebinding import check_rebindable, scripted
from .._flat_module import Layout, Part


def leaves(tree: Any) -> list[Any]:
    """Return the leaves of a tree, None included; a `Part`'s leaves are its buffers."""
    found: list[Any] = []
    tree_map(found.append, tree)
    return found


def rebuild(tree: Any, values: Iterable[Any]) -> Any:
    """Return a tree of the same structure with the given leaves, in order."""
    iterator: Iterator[Any] = iter(values)
    return tree_map(lambda _: next(iterator), tree)


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a function to each leaf of a tree."""
    if isinstance(tree, Part):
        return replace(tree, state=tree_map(function, tree.state))
    if isinstance(tree, dict):
        values = {key: tree_map(function, tree[key]) for key in _ordered(tree)}
        return type(tree)((key, values[key]) for key in tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(function, child) for child in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(tree_map(function, child) for child in tree)
    return function(tree)


def aligned(found: Sequence[Any], like: Any) -> Sequence[Any]:
    """Return the leaves `found`, checked against the number of leaves of another tree.

    Raises:
        ValueError: the numbers differ.
    """
    expected = len(leaves(like))
    if len(found) != expected:
        raise ValueError(f"expected trees of the same form; one has {expected} leaves, the other {len(found)}")
    return found


def containers(module: nn.Module, kind: str) -> tuple[dict[str, Any], ...]:
    """Return the dictionaries in which a module and its submodules hold "_parameters" or "_buffers".

    Raises:
        RuntimeError: `module` is not a module.
        ValueError: the module or a submodule is scripted, so its tensors are stored elsewhere.
    """
    if not isinstance(module, nn.Module):
        raise RuntimeError(f"expected a module, got {type(module).__name__}")
    check_rebindable(module, scripted)
    return tuple(held for child in module.modules() if (held := getattr(child, kind)))


def _ordered(keys: Iterable[Any]) -> list[Any]:
    keys = list(keys)
    try:
        return sorted(keys)
    except TypeError:  # keys of mixed types
        return keys


_Static = tuple[tuple[int, ...], Layout, int, tuple[str, ...]]


def _flatten_part(part: Part) -> tuple[list[Tensor], _Static]:
    return list(part.state.values()), (part.positions, part.layout, part.step, tuple(part.state))


def _unflatten_part(static: _Static, children: Iterable[Any]) -> Part:
    positions, layout, step, names = static
    return Part(positions, layout, step, dict(zip(names, children, strict=True)))


def _flatten_part_with_keys(part: Part) -> tuple[list[tuple[_pytree.KeyEntry, Tensor]], _Static]:
    children, static = _flatten_part(part)
    return [(_pytree.MappingKey(name), x) for name, x in zip(part.state, children, strict=True)], static


_pytree.register_pytree_node(
    Part,
    _flatten_part,
    lambda children, static: _unflatten_part(static, children),
    flatten_with_keys_fn=_flatten_part_with_keys,
)
with suppress(ImportError, AttributeError):  # TorchOpt's functions use this namespace, whose name is private
    _optree: Any = importlib.import_module("optree.registry")
    _optree.register_pytree_node(Part, _flatten_part, _unflatten_part, namespace=_optree.__GLOBAL_NAMESPACE)
