"""Base of the learners: a wrapped module, and adaptation to a batch of tasks under vmap."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ...._utils.log import log_once
from ....executors.torch.layers.fusion import Fusion, materialized
from ....executors.torch.layers.layer_mode import task_layers
from ..utils import copy_structure, replace_tensors

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)


class BaseLearner(nn.Module):
    """Wrapper of `module` that forwards attribute lookups to it."""

    module: nn.Module
    clone: Callable[..., Self]
    adapt: Callable[..., None]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            module = self.__dict__.get("_modules", {}).get("module")
            if module is None:
                raise
            return getattr(module, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def adapt_batch(
        self, loss_fn: Callable[[Self, Any], Tensor], data: Any, steps: int = 1, **clone_options: Any
    ) -> list[Self]:
        """Adapt one clone per task, all tasks at once; an extension of learn2learn.

        The clones and their derivatives of any order equal this loop's to rounding:

            for each task:
                clone = learner.clone(**clone_options)
                for _ in range(steps):
                    clone.adapt(loss_fn(clone, data of the task))

        The forward passes run under `torch.func.vmap` with per-task parameters. Code that vmap does not support
        (PyTorch's recurrent layers, random numbers such as dropout's, data-dependent control flow, `.item()`, buffers
        written by a module, derivatives taken in `loss_fn`) runs as the loop above, and one log line says why. One
        difference from the loop: norms in training mode use batch statistics but leave their running statistics.

        Args:
            loss_fn: takes a learner (used like a clone) and the data of one task; returns a loss of one element. It
                should have no side effects: it is called once for all tasks.
            data: a tensor `[tasks, ...]`, or lists, tuples and dictionaries of such tensors; other objects are passed
                to every task unchanged.
            steps: gradient steps, at least 0.
            clone_options: arguments of `clone`.

        Returns:
            One adapted clone per task, in order. Their parameters are views of stacked tensors, which live as long as
            any clone; the graphs of all tasks are alive together.

        Raises:
            ValueError: `data` holds no tensor, or its numbers of tasks differ.
            RuntimeError: as `adapt`, or the loss has several elements.
        """
        if steps < 0:
            raise ValueError(f"expected steps >= 0, got {steps}")
        leaves, structure = tree_flatten(data)
        tasks = _count(leaves)
        stack = self.clone(**clone_options)
        replace_tensors(stack.module, lambda x: x.expand(tasks, *x.shape) if x.requires_grad else x)
        fusion = Fusion()
        for _ in range(steps):
            try:
                losses = _losses(stack, loss_fn, leaves, structure, fusion)
            except Exception as error:  # the loop below raises again if loss_fn is at fault
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                break
            if losses.numel() != tasks:
                raise RuntimeError(f"expected loss_fn to return one element a task, got shape {list(losses.shape[1:])}")
            stack.adapt(losses.sum())
        else:
            return _unstack(stack, tasks)

        clones = []
        for task in range(tasks):
            own = tree_unflatten([x[task] if isinstance(x, Tensor) else x for x in leaves], structure)
            clones.append(self.clone(**clone_options))
            for _ in range(steps):
                clones[task].adapt(loss_fn(clones[task], own))
        log_once(logger, logging.WARNING, f"adapt_batch ran task by task, since vmap cannot carry it: {reason}")
        return clones


def _losses(
    stack: BaseLearner, loss_fn: Callable[..., Tensor], leaves: Sequence[Any], structure: TreeSpec, fusion: Fusion
) -> Tensor:
    """Return the losses `[tasks]` of a learner with stacked parameters `[tasks, ...]`."""
    stacked = _stacked(stack)

    def of_task(params: list[Tensor], tensors: list[Tensor]) -> Tensor:
        learner = _with_tensors(stack, dict(zip(stacked, params, strict=True)))
        for norm in learner.modules():
            if isinstance(norm, _NormBase) and norm.training:
                norm._buffers.update(running_mean=None, running_var=None, num_batches_tracked=None)
        given = iter(tensors)
        own = tree_unflatten([next(given) if isinstance(x, Tensor) else x for x in leaves], structure)
        return materialized(loss_fn(learner, own))

    with task_layers(stacked[0].device, fusion):
        return vmap(of_task)(stacked, [x for x in leaves if isinstance(x, Tensor)])


def _unstack(stack: BaseLearner, tasks: int) -> list[Any]:
    """Return one learner per task."""
    stacked = _stacked(stack)
    rows = zip(*(x.unbind(0) for x in stacked), strict=True) if stacked else [()] * tasks
    return [_with_tensors(stack, dict(zip(stacked, own, strict=True))) for own in rows]


def _with_tensors(learner: BaseLearner, substitutes: Mapping[Tensor, Tensor]) -> BaseLearner:
    """Copy a learner, with some of its tensors replaced."""
    return replace_tensors(copy_structure(learner), lambda x: substitutes.get(x, x))


def _stacked(stack: BaseLearner) -> list[Tensor]:
    """Return the distinct stacked tensors: parameters and buffers that require grad."""
    tensors = (x for x in (*stack.module.parameters(), *stack.module.buffers()) if x.requires_grad)
    return list(dict.fromkeys(tensors))


def _count(leaves: Sequence[Any]) -> int:
    """Return the common number of tasks of a batch's tensors."""
    shapes = [list(x.shape) for x in leaves if isinstance(x, Tensor)]
    counts = {shape[0] if shape else 0 for shape in shapes}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"expected tensors [tasks, ...] with one number of tasks, at least 1, got shapes {shapes}")
    return counts.pop()
