"""Batches of the next meta-steps, drawn while the present one trains."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

from ..tasks import TaskBatch

_AHEAD = 2  # meta-steps


class Prefetcher:
    """Draws batches in a thread of its own, a few meta-steps ahead; they are those that a call in turn draws.

    A context manager: the thread ends with it. An error of a draw is raised where its batch is asked for.

    Args:
        draw: returns the batch of a meta-step.
        end: number of meta-steps; none is drawn from there on.
        device: of the learner; for a GPU the images are put into pinned memory, from where copies are fast.

    Attributes:
        seconds: time that calls waited for batches.
    """

    def __init__(self, draw: Callable[[int], TaskBatch], end: int, device: torch.device) -> None:
        self._draw = draw
        self._end = end
        self._is_pinned = device.type == "cuda"
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._drawn: dict[int, Future[TaskBatch]] = {}
        self.seconds = 0.0

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __call__(self, step: int) -> TaskBatch:
        """Return the batch of a meta-step; the draws of the next ones begin."""
        begun = time.perf_counter()
        last = min(step + 1 + _AHEAD, self._end)
        self._drawn = {
            wanted: self._drawn.get(wanted) or self._thread.submit(self._batch, wanted)
            for wanted in (step, *range(step + 1, last))
        }
        batch = self._drawn.pop(step).result()
        self.seconds += time.perf_counter() - begun
        return batch

    def _batch(self, step: int) -> TaskBatch:
        batch = self._draw(step)
        if not self._is_pinned:
            return batch
        query = None if batch.query is None else batch.query.pin_memory()
        return dataclasses.replace(batch, support=batch.support.pin_memory(), query=query)
