"""Work on many items by all processors that the process may use."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from ...distributed import job
from .archives import Progress

logger = logging.getLogger(__name__)

MOST_PROCESSES = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(function: Callable[[Item], Result], items: Sequence[Item], stage: str, progress: Progress) -> Iterator[Result]:
    """Yield the function's results in the items' order; both travel between processes.

    The ranks of a job share the items, and each yields all results.
    """
    ranks = job.ranks()
    if ranks is None:
        yield from _each_here(function, items, stage, progress)
        return
    own = [items[index] for index in ranks.part(len(items))]
    for results in ranks.gather_objects(list(_each_here(function, own, stage, progress))):
        yield from results


def _each_here(
    function: Callable[[Item], Result], items: Sequence[Item], stage: str, progress: Progress
) -> Iterator[Result]:
    processes = min(MOST_PROCESSES, len(items), max(1, _processors() // job.local_size()))
    if processes <= 1:
        yield from _counted(map(function, items), len(items), stage, progress)
        return
    try:
        # Spawned ones: forked ones would inherit the locks of threads that they do not have.
        pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    except OSError as error:  # a full /dev/shm has no room for semaphores
        logger.warning("cannot start other processes (%s); one does all the work", error.strerror or error)
        yield from _counted(map(function, items), len(items), stage, progress)
        return
    try:
        yield from _counted(pool.map(function, items), len(items), stage, progress)
    finally:
        pool.shutdown(cancel_futures=True)


def _counted(results: Iterator[Result], count: int, stage: str, progress: Progress) -> Iterator[Result]:
    progress(stage, 0, count)
    for done, result in enumerate(results, 1):
        progress(stage, done, count)
        yield result


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
