"""`TaskSum`: the mean over the tasks of a meta-batch that are not all at hand at once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .._utils.pair import Pair
from ..ops.reference import widen


@dataclass
class TaskSum:
    """Running sum over the tasks of a meta-batch, added in their order whatever parts they come in.

    With the last task the sum becomes the mean. Additions and the final factor round as `reference.reptile_gradient`
    rounds them, so parts of any size give the bytes of one sum.

    Attributes:
        tasks: number of tasks in all.
        added: number of tasks added so far.
        sums: the sum, or from the last task on the mean, `[numel]` for each network, float32 for narrower parameters;
            None before the first task.
    """

    tasks: int
    added: int = 0
    sums: Pair[Tensor] | None = None

    def add(self, rows: Pair[Tensor]) -> None:
        """Add the next tasks' rows, `[n, numel]` for each network, in the dtype of sums or a narrower one."""
        for row in zip(*rows.map(Tensor.unbind), strict=True):
            wide = Pair(*row).map(widen)
            self.sums = wide.map(Tensor.clone) if self.sums is None else self.sums.map(Tensor.add_, wide)
        self.count(rows.generator.shape[0])
        if self.is_complete:
            self.value.map(lambda total: total.mul_(1.0 / self.tasks))

    def count(self, tasks: int) -> None:
        """Count tasks that an executor has added to `sums` itself.

        Raises:
            ValueError: they are more than the sum has.
        """
        self.added += tasks
        if self.added > self.tasks:
            raise ValueError(f"expected a sum over {self.tasks} tasks, got {self.added}; begin another TaskSum")

    @property
    def is_complete(self) -> bool:
        """Whether all tasks are added, so that `sums` is their mean."""
        return self.added == self.tasks

    @property
    def value(self) -> Pair[Tensor]:
        """The sum so far, or the mean if it is complete."""
        assert self.sums is not None
        return self.sums
