"""Extract, recover and detach the states of modules and optimizers.

Every function also accepts TorchOpt's own meta-optimizers.
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
from .._originals import fall_back_to
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
__getattr__, __dir__ = fall_back_to(__name__, "torchopt.utils")


class ModuleState(NamedTuple):
    """Tensors of a module, one dictionary per submodule that has any.

    Attributes:
        params: parameters by name.
        buffers: buffers by name.
        visual_contents: None; TorchOpt's field for graph annotations.
        detach_buffers: whether recovering the state copies the buffers as well.
    """

    params: tuple[dict[str, Tensor], ...]
    buffers: tuple[dict[str, Tensor], ...]
    visual_contents: dict[Any, Any] | None = None
    detach_buffers: bool = False


def stop_gradient(target: Any) -> None:
    """Detach tensors from the graph in place; `requires_grad` is kept.

    Args:
        target: a module (its parameters), a `MetaOptimizer` (its states), a result of `extract_state_dict`, or a tree
            of tensors.
    """
    if isinstance(target, nn.Module):
        target = list(target.parameters())
    elif _is_meta_optimizer(target):
        target = target.state_dict()
    _detach(target)


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
    """Extract the state of a module or an optimizer for `recover_state_dict`.

    Args:
        target: a module or a `MetaOptimizer`.
        by: "reference" ("ref") for the tensors themselves, "copy" ("clone") for differentiable copies, "deepcopy"
            ("deepclone") for copies without a graph.
        device: device of the tensors; by default unchanged.
        with_buffers: include a module's buffers.
        detach_buffers: copy the buffers without a graph, for any `by`.
        enable_visual, visual_prefix: accepted and ignored, with a warning in the log.

    Returns:
        A `ModuleState`, or a tuple of the optimizer's states.

    Raises:
        AssertionError: `by` is unknown.
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
    params = _replicate_all(containers(target, "_parameters"), replicate)
    buffers = _replicate_all(containers(target, "_buffers"), of_buffers) if with_buffers else ()
    return ModuleState(params, buffers, detach_buffers=detach_buffers)


def recover_state_dict(target: nn.Module | MetaOptimizer, state: Any) -> None:
    """Restore a state: its tensors themselves are put into the module's dictionaries or the optimizer.

    Args:
        target: the state's source, or another target of the same structure.
        state: a result of `extract_state_dict`.

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
        buffers = _replicate_all(buffers, _replicator("deepcopy", None))
    for held, sources in (
        (containers(target, "_parameters"), state.params),
        (containers(target, "_buffers"), buffers),
    ):
        for container, source in zip(held, sources, strict=False):  # a state may hold no buffers
            container.update(source)


def module_clone(
    target: Any, *, by: str = "reference", detach_buffers: bool = False, device: torch.device | str | None = None
) -> Any:
    """Copy a module or a tree of tensors; `by` as in `extract_state_dict`.

    Raises:
        AssertionError: `by` is unknown.
        TypeError: the target is an optimizer; create one for the cloned module and recover its state.
        ValueError: the parameters of the module or a submodule cannot be replaced.
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
    """Detach a module, an optimizer or a tree from the graph in place, and return it."""
    stop_gradient(target)
    return target


def _is_meta_optimizer(target: Any) -> bool:
    return not isinstance(target, nn.Module) and hasattr(target, "param_containers_groups")


def _replicate_all(
    held: Sequence[dict[str, Any]], replicate: Callable[[Tensor], Tensor]
) -> tuple[dict[str, Tensor], ...]:
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


def _detach(target: Any) -> None:
    if isinstance(target, Part):  # replaced, since views cannot be detached in place
        for name, x in target.state.items():
            target.state[name] = x.detach().requires_grad_(x.requires_grad)
    elif isinstance(target, dict):
        _detach(list(target.values()))
    elif isinstance(target, (list, tuple)):
        for child in target:
            _detach(child)
    elif isinstance(target, Tensor):
        wanted = target.requires_grad
        target.detach_().requires_grad_(wanted)
