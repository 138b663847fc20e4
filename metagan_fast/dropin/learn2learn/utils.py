"""Clone, update and detach modules differentiably: their parameters are tensors with a graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..._utils.rebinding import check_rebindable, closed, compiled, rebind_attributes, scripted
from .._originals import fall_back_to

logger = logging.getLogger(__name__)

__getattr__, __dir__ = fall_back_to(__name__, "learn2learn.utils")

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def magic_box(x: Any) -> Any:
    """Return 1 with the derivative of `x`: `exp(x - stop_gradient(x))`, for stochastic graphs.

    Other objects are returned unchanged. Source: DiCE (Foerster et al. 2018, arXiv:1802.05098).
    """
    return torch.exp(x - x.detach()) if isinstance(x, Tensor) else x


def clone_parameters(param_list: Sequence[Tensor]) -> list[Tensor]:
    """Clone tensors; each clone depends on its original."""
    return [x.clone() for x in param_list]


def clone_named_parameters(param_dict: MutableMapping[str, Tensor]) -> dict[str, Tensor]:
    """Clone the tensors of a mapping; each clone depends on its original."""
    return {name: x.clone() for name, x in param_dict.items()}


def clone_module(module: T, memo: MutableMapping[Any, Any] | None = None) -> T:
    """Copy a module with parameters that are functions of the original's, so that a loss of the copy reaches those.

    All parameters, and buffers that require grad, are cloned; other buffers, hooks and attributes are shared with the
    original, so batch norm in a clone updates the original's running statistics. Tied parameters stay tied, and a
    submodule that occurs several times is copied once.

    Args:
        module: any module; other objects are returned unchanged.
        memo: clones by original, read and extended by this call; pass the same dictionary to several calls for modules
            that share parameters.

    Returns:
        The copy, of the same class. Its parameters are tensors with a graph, not `nn.Parameter`s.
    """
    if not isinstance(module, nn.Module):
        return module
    memo = {} if memo is None else memo
    return replace_tensors(copy_structure(module, memo), torch.clone, memo)


def detach_module(module: nn.Module | None, keep_requires_grad: bool = False) -> None:
    """Detach a cloned module from the graph in place.

    Args:
        module: the module; other objects are ignored.
        keep_requires_grad: turn tensors that required grad into leaves that do; False: no tensor requires grad.
    """

    def detached(x: Tensor) -> Tensor:
        if not x.requires_grad:
            return x
        x = x.detach() if x._is_view() else x.detach_()  # PyTorch cannot detach views in place
        return x.requires_grad_(keep_requires_grad)

    if isinstance(module, nn.Module):
        replace_tensors(module, detached)


def update_module(
    module: M, updates: Sequence[Tensor | None] | None = None, memo: MutableMapping[Any, Any] | None = None
) -> M:
    """Add updates to a module's parameters: they are replaced by their differentiable sums.

    Args:
        module: module whose parameters are replaced; the tensors themselves are not written to.
        updates: one update per parameter in its shape, None to skip a parameter. If omitted, the updates are taken
            from the attribute `update` of parameters and buffers, which is reset to None.
        memo: updated tensors by original, read and extended by this call.

    Returns:
        The module. If the numbers of updates and parameters differ, the excess is ignored and a warning is logged.
    """
    if updates is not None:
        parameters = list(module.parameters())
        if len(updates) != len(parameters):
            logger.warning("expected one update a parameter, %d, got %d", len(parameters), len(updates))
        for x, update in zip(parameters, updates, strict=False):
            x.update = update  # type: ignore[attr-defined]

    def updated(x: Tensor) -> Tensor:
        update = getattr(x, "update", None)
        if update is None:
            return x
        x.update = None  # type: ignore[attr-defined]
        return x + update

    return replace_tensors(module, updated, memo)


def accuracy(preds: Tensor, targets: Tensor) -> Tensor:
    """Return the fraction of rows of `preds [n, classes]` whose largest entry is at `targets [n]`."""
    return (preds.argmax(dim=1) == targets).sum().float() / preds.size(0)


def copy_structure(module: M, memo: MutableMapping[Any, Any] | None = None) -> M:
    """Copy a module and its submodules; tensors, and attributes not bound to the module, are shared.

    Raises:
        ValueError: the parameters of the module or a submodule cannot be replaced.
    """
    check_rebindable(module, scripted, compiled, closed)
    memo = {} if memo is None else memo
    copies: list[nn.Module] = []
    copied = _copied(module, memo, copies)
    for part in copies:
        rebind_attributes(part, lambda original: memo.get(original, original))
    return copied


def _copied(module: M, memo: MutableMapping[Any, Any], copies: list[nn.Module]) -> M:
    if module in memo:
        return memo[module]
    memo[module] = copied = object.__new__(type(module))  # a GraphModule's __new__ makes a class without forward
    copies.append(copied)
    copied.__dict__ = module.__dict__.copy()
    for name in ("_parameters", "_buffers", "_modules"):
        copied.__dict__[name] = module.__dict__[name].copy()
    for name, child in module._modules.items():
        copied._modules[name] = _copied(child, memo, copies) if isinstance(child, nn.Module) else child
    return copied


def replace_tensors(module: M, replace: Callable[[Tensor], Tensor], memo: MutableMapping[Any, Any] | None = None) -> M:
    """Replace each parameter, and each buffer that requires grad or has an update, by `replace(x)`.

    Args:
        module: changed in place.
        replace: called once per distinct tensor, so tied tensors stay tied.
        memo: replacements by original, read and extended by this call.

    Returns:
        The module.
    """
    memo = {} if memo is None else memo
    for part in _distinct_modules(module):
        for tensors in (part._parameters, part._buffers):
            for name, x in tensors.items():
                if x is None or (tensors is part._buffers and not _is_replaceable(x)):
                    continue
                if x not in memo:
                    memo[x] = replace(x)
                tensors[name] = memo[x]
    return module


def _distinct_modules(module: nn.Module) -> list[nn.Module]:
    """Return a module and its submodules, each once; faster than `modules()`, which builds names."""
    found = {module: None}
    for part in (queue := [module]):
        new = [child for child in part._modules.values() if isinstance(child, nn.Module) and child not in found]
        found.update(dict.fromkeys(new))
        queue += new
    return list(found)


def _is_replaceable(buffer: Tensor) -> bool:
    return buffer.requires_grad or getattr(buffer, "update", None) is not None
