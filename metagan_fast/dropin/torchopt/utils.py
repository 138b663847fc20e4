"""States of modules and optimizers: taken out, put back, cut from the graph.

A `MetaOptimizer` may also be one of TorchOpt's own.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..._utils.rebinding import check_rebindable, closed
from .._flat_module import Part
from .._originals import hand_on
from ._trees import containers, tree_map
from .optim import MetaOptimizer

logger = logging.getLogger(__name__)

__all__ = [
    "ModuleState",
    "extract_state_dict",
    "module_clone",
    "module_detach_",
    "recover_state_dict",
    "stop_gradient",
]
__getattr__, __dir__ = hand_on(__name__, "torchopt.utils")


class ModuleState(NamedTuple):
    """The tensors of a module, one dictionary a submodule that has any.

    Attributes:
        params: parameters by name.
        buffers: buffers by name.
        visual_contents: None; the place of annotations for a picture of the graph.
        detach_buffers: whether buffers are copied when they are put back, too.
    """

    params: tuple[dict[str, Tensor], ...]
    buffers: tuple[dict[str, Tensor], ...]
    visual_contents: dict[Any, Any] | None = None
    detach_buffers: bool = False


def stop_gradient(target: Any) -> None:
    """Cut tensors from the graph, in place; they require grad as before.

    Args:
        target: a module (its parameters), a `MetaOptimizer` (its states), what `extract_state_dict` returned, or a
            tree of tensors.
    """
    if isinstance(target, nn.Module):
        target = list(target.parameters())
    elif _is_meta_optimizer(target):
        target = target.state_dict()
    _stop(target)


def extract_state_dict(
    target: nn.Module | MetaOptimizer,
    *,
    by: str = "reference",
    device: torch.device | str | None = None,
    with_buffers: bool = True,
    detach_buffers: bool = False,
    enable_visual: bool = False,
    visual_prefix: str = "",
) -> Any:
    """Return the state of a module or an optimizer, for `recover_state_dict`.

    Args:
        target: a module or a `MetaOptimizer`.
        by: "reference" (or "ref") for the tensors themselves, "copy" ("clone") for copies that depend on them,
            "deepcopy" ("deepclone") for copies without a graph.
        device: where they go; by default where they are.
        with_buffers: a module's buffers, too.
        detach_buffers: copy the buffers without a graph, however the parameters are taken.
        enable_visual, visual_prefix: accepted; nothing is annotated, which is logged.

    Returns:
        A `ModuleState`, or a tuple of the optimizer's states.

    Raises:
        AssertionError: there is no such `by`.
        RuntimeError: the target is neither a module nor an optimizer.
    """
    replicate = _replicator(by, device)
    if enable_visual:
        logger.warning("enable_visual=True is ignored: no graph is annotated; draw it with the original, TorchOpt")
    if _is_meta_optimizer(target):
        return tree_map(lambda x: replicate(x) if isinstance(x, Tensor) else x, target.state_dict())
    if not isinstance(target, nn.Module):
        raise RuntimeError(f"expected a module or a MetaOptimizer, got {type(target).__name__}")
    of_buffers = _replicator("deepcopy", device) if detach_buffers else replicate
    params = _replicated(containers(target, "_parameters"), replicate)
    buffers = _replicated(containers(target, "_buffers"), of_buffers) if with_buffers else ()
    return ModuleState(params, buffers, detach_buffers=detach_buffers)


def recover_state_dict(target: nn.Module | MetaOptimizer, state: Any) -> None:
    """Put a state back: the tensors themselves, into the module's dictionaries or the optimizer.

    Args:
        target: what the state was taken from, or another of the same form.
        state: what `extract_state_dict` returned.

    Raises:
        RuntimeError: the target is neither a module nor an optimizer.
    """
    if _is_meta_optimizer(target):
        target.load_state_dict(state)
        return
    if not isinstance(target, nn.Module):
        raise RuntimeError(f"expected a module or a MetaOptimizer, got {type(target).__name__}")
    buffers = state.buffers
    if state.detach_buffers:
        buffers = _replicated(buffers, _replicator("deepcopy", None))
    for held, sources in (
        (containers(target, "_parameters"), state.params),
        (containers(target, "_buffers"), buffers),
    ):
        for container, source in zip(held, sources, strict=False):  # of a state without buffers there is none
            container.update(source)


def module_clone(
    target: Any, *, by: str = "reference", detach_buffers: bool = False, device: torch.device | str | None = None
) -> Any:
    """Return a copy of a module, or of a tree of tensors, whose tensors are taken as `extract_state_dict` does.

    Raises:
        AssertionError: there is no such `by`.
        TypeError: the target is an optimizer; make one for the cloned module, and give it the state.
        ValueError: a part computes with its own parameters, whatever takes their places.
    """
    if _is_meta_optimizer(target):
        raise TypeError(
            "module_clone() copies modules and trees; make an optimizer for the cloned module and recover its state"
        )
    if not isinstance(target, nn.Module):
        return tree_map(_replicator(by, device), target)
    check_rebindable(target, closed)
    state = extract_state_dict(target, by=by, detach_buffers=detach_buffers, device=device)
    held = (*containers(target, "_parameters"), *containers(target, "_buffers"))
    shared = {id(x): x for container in held for x in container.values()}
    cloned = copy.deepcopy(target, memo=shared)
    recover_state_dict(cloned, state)
    return cloned


def module_detach_(target: Any) -> Any:
    """Cut a module, an optimizer or a tree from the graph in place, and return it."""
    stop_gradient(target)
    return target


def _is_meta_optimizer(target: Any) -> bool:
    return not isinstance(target, nn.Module) and hasattr(target, "param_containers_groups")


def _replicated(held: Sequence[dict[str, Any]], replicate: Callable[[Tensor], Tensor]) -> tuple[dict[str, Tensor], ...]:
    return tuple(
        type(container)((name, replicate(x)) for name, x in container.items() if isinstance(x, Tensor))
        for container in held
    )


def _replicator(by: str, device: torch.device | str | None) -> Callable[[Tensor], Tensor]:
    kinds = {"reference": 0, "ref": 0, "copy": 1, "clone": 1, "deepcopy": 2, "deepclone": 2}
    if by not in kinds:
        raise AssertionError(f"by must be one of {', '.join(kinds)}, got {by!r}")

    def deep(x: Tensor) -> Tensor:
        copied = x.detach().clone().to(device=device)
        if isinstance(x, nn.Parameter):
            return nn.Parameter(copied, requires_grad=x.requires_grad)
        return copied.requires_grad_(x.requires_grad)

    if kinds[by] == 2:
        return deep
    if kinds[by] == 1:
        return lambda x: x.clone().to(device=device)
    return lambda x: x if device is None else x.to(device=device)


def _stop(target: Any) -> None:
    if isinstance(target, Part):  # its buffers may be views, which cannot be detached in place: replace them
        for name, x in target.state.items():
            target.state[name] = x.detach().requires_grad_(x.requires_grad)
    elif isinstance(target, dict):
        _stop(list(target.values()))
    elif isinstance(target, (list, tuple)):
        for child in target:
            _stop(child)
    elif isinstance(target, Tensor):
        wanted = target.requires_grad
        target.detach_().requires_grad_(wanted)
