"""Substitution of a module's parameters: parts that do not support it, and attributes to rebind.

Adaptation substitutes other tensors for a module's parameters, usually in a copy. A scripted part keeps its parameters
outside Python and never reads the substitutes. A copy that shares attributes with the original shares their bindings: a
compiled call or an assigned method still computes with the original's parameters.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Unbindable = Callable[[nn.Module, frozenset[int]], "str | None"]
"""Check of a part, given the ids of all parts: why its parameters cannot be replaced and what to do, or None."""


def check_rebindable(module: nn.Module, *kinds: Unbindable, name: str = "module", recurse: bool = True) -> None:
    """Raise ValueError if a module has parts of these kinds.

    Args:
        module: the module to adapt.
        *kinds: of `scripted`, `compiled` and `closed`.
        name: name of the module in the message.
        recurse: check its submodules too.

    Raises:
        ValueError: with such a part; the message names the part, its type and what to do.
    """
    parts = dict(module.named_modules()) if recurse else {"": module}
    members = frozenset(map(id, parts.values()))
    for path, part in parts.items():
        for kind in kinds:
            if (problem := kind(part, members)) is not None:
                where = f"its part {path!r}" if path else "the module itself"
                raise ValueError(
                    f"expected a {name} whose parameters can be replaced, but {where}, of type {type(part).__name__}, "
                    f"{problem}"
                )


def scripted(part: nn.Module, members: frozenset[int]) -> str | None:
    """Return the problem of a part that `torch.jit` scripted or traced, or None."""
    if not isinstance(part, torch.jit.ScriptModule):
        return None
    return "is scripted and computes with its own: use the module that torch.jit.script or torch.jit.trace was given"


def compiled(part: nn.Module, members: frozenset[int]) -> str | None:
    """Return the problem of a part that `torch.compile(module)` returned, or None; `module.compile()` is allowed."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # imported if any compiled module exists
    if dynamo is None or not isinstance(part, dynamo.OptimizedModule):
        return None
    return "was made by torch.compile and computes with its own: use the module that torch.compile was given"


def closed(part: nn.Module, members: frozenset[int]) -> str | None:
    """Return the problem of a part with an assigned function that is bound to its own parameters, or None.

    Such functions are one assigned to `forward`, and a compiled method of any part.
    """
    if compiled(part, members) or next(part.parameters(), None) is None:
        return None
    for name, value in vars(part).items():
        if type(value) is not types.FunctionType or name == "_compiled_call_impl":
            continue
        owner = getattr(getattr(value, "_torchdynamo_orig_callable", None), "__self__", None)
        if name == "forward" or id(owner) in members:
            return (
                f"was assigned the function {name!r}, which computes with its own: define the method in the class, "
                "under @torch.compile if it is to be compiled"
            )
    return None


def rebind_attributes(copy: nn.Module, copy_of: Callable[[nn.Module], nn.Module]) -> None:
    """Bind the attributes that a copy shares with its original to the copy, in place.

    Assigned methods, and lists and tuples of modules. The compiled call of `module.compile()` is dropped, as
    `copy.deepcopy` does: the copy runs uncompiled.

    Args:
        copy: a module with an attribute dictionary of its own.
        copy_of: maps a module to its copy, or to itself if it has none.
    """
    attributes = vars(copy)
    attributes.pop("_compiled_call_impl", None)
    for name in attributes.keys() - _MODULE_STATE:
        attributes[name] = _rebound(attributes[name], copy_of)


_MODULE_STATE = frozenset(vars(nn.Module()))


def _rebound(value: Any, copy_of: Callable[[nn.Module], nn.Module]) -> Any:
    if isinstance(value, nn.Module):
        return copy_of(value)
    if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
        return types.MethodType(value.__func__, copy_of(value.__self__))
    if type(value) is functools.partial:
        function, *args = (_rebound(x, copy_of) for x in (value.func, *value.args))
        return functools.partial(function, *args, **{key: _rebound(x, copy_of) for key, x in value.keywords.items()})
    if type(value) in (list, tuple) and value and isinstance(value[0], nn.Module):
        return type(value)(_rebound(x, copy_of) for x in value)
    return value
