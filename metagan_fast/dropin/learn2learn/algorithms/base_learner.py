"""What the learners share: the module inside, and adaptation to many tasks side by side."""

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
    """A module around `module`, whose attributes it lends."""

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
        """Adapt one clone a task, all tasks side by side; not in learn2learn.

        The clones are those of this loop, to rounding, and so are their derivatives to any order:

            for each task:
                clone = learner.clone(**clone_options)
                for _ in range(steps):
                    clone.adapt(loss_fn(clone, data of the task))

        The forward passes run under `torch.func.vmap`, each task with parameters of its own. What vmap cannot carry
        (PyTorch's recurrent layers, random numbers such as dropout's, control flow that depends on data, `.item()`,
        buffers that a module writes, a derivative taken in `loss_fn`) runs as the loop above, and one log line says
        why. One thing differs from the loop: norms in training mode use batch statistics all the same, but leave their
        running statistics alone.

        Args:
            loss_fn: takes a learner, used as a clone is, and the data of one task; returns a loss of one element. It
                should have no side effects: it is called once for all tasks.
            data: a tensor `[tasks, ...]`, or lists, tuples and dictionaries of such tensors; what is no tensor goes
                to every task as it is.
            steps: gradient steps, at least 0.
            clone_options: those of `clone`.

        Returns:
            One adapted clone a task, in order. Their parameters are views of stacked tensors, so the memory of one
            is kept as long as any is; the graphs of all tasks are alive together.

        Raises:
            ValueError: no tensor in `data`, or sizes that differ.
            RuntimeError: as `adapt`; a loss of several elements.
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
            except Exception as error:  # loss_fn's fault or vmap's, as the loop will tell
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
    """Return each task's loss `[tasks]` for a learner with parameters `[tasks, ...]`."""
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
    """Return the learner of each task."""
    stacked = _stacked(stack)
    rows = zip(*(x.unbind(0) for x in stacked), strict=True) if stacked else [()] * tasks
    return [_with_tensors(stack, dict(zip(stacked, own, strict=True))) for own in rows]


def _with_tensors(learner: BaseLearner, substitutes: Mapping[Tensor, Tensor]) -> BaseLearner:
    """Copy a learner with other tensors in the places of some."""
    return replace_tensors(copy_structure(learner), lambda x: substitutes.get(x, x))


def _stacked(stack: BaseLearner) -> list[Tensor]:
    """Return the distinct tensors that have a row a task: those that require grad."""
    tensors = (x for x in (*stack.module.parameters(), *stack.module.buffers()) if x.requires_grad)
    return list(dict.fromkeys(tensors))


def _count(leaves: Sequence[Any]) -> int:
    """Return the number of tasks that the tensors of a batch agree on."""
    shapes = [list(x.shape) for x in leaves if isinstance(x, Tensor)]
    counts = {shape[0] if shape else 0 for shape in shapes}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"expected tensors [tasks, ...] with one number of tasks, at least 1, got shapes {shapes}")
    return counts.pop()
