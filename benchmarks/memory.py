"""Cases of memory: by how much a process grows, at its peak, while a contender runs a whole workload once.

Every contender has a process of its own, which has imported everything and drawn the problem before it is measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from metagan_fast.benchmarks import machine, workloads
from metagan_fast.benchmarks.contenders import BASELINE, CONTENDERS, OURS
from metagan_fast.benchmarks.records import Record
from metagan_fast.benchmarks.workloads import WorkloadCase

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class MemoryCase:
    """A workload, and the part of the baseline's memory that the package may take."""

    name: str
    work: WorkloadCase
    allowed: float


def _case(name: str, allowed: float) -> MemoryCase:
    work = workloads.against_baseline("memory", name)
    return MemoryCase(work.name, work, allowed)


CASES = (_case("maml-32", 0.25),)


def run(
    case: MemoryCase, *, thread_counts: Sequence[int], quick: bool = False, contenders: Sequence[str] | None = None
) -> Iterator[Record]:
    """Check every contender's result, then measure each in a process of its own, on one call.

    Arguments as for `workloads.run`; `quick` shortens the check alone, since a graph's memory is that of all steps.

    Raises:
        AssertionError: a result is further from float64 than design allows.
    """
    work = case.work.chosen(quick, contenders)
    problem = work.draw()
    for count in thread_counts:
        with machine.threads(count):
            baseline: int | None = None
            for record in workloads.admit(work, problem, count, quick):
                if record.skipped is None and not _STATUS.exists():
                    record = dataclasses.replace(record, skipped=f"no {_STATUS} here")
                if record.skipped is not None:
                    yield record
                    continue
                grown = _measure(case, record.contender, count)
                if record.contender == BASELINE:
                    baseline = grown
                yield dataclasses.replace(
                    record,
                    baseline=BASELINE,
                    memory_bytes=grown,
                    memory_ratio=None if baseline is None else grown / baseline,
                    memory_ratio_allowed=case.allowed if record.contender == OURS else None,
                )


def _measure(case: MemoryCase, contender: str, threads: int) -> int:
    # Spawned, not forked, so that it starts small; it imports from where this process does.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_grow, case, contender, threads).result()


def _bytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _grow(case: MemoryCase, contender: str, threads: int) -> int:
    """Run a contender once in this process and return by how many bytes it grew until its peak."""
    with machine.threads(threads):
        prepared = CONTENDERS[contender].prepare(case.work.draw())
        before = _bytes("VmRSS")
        prepared.run()
        return _bytes("VmHWM") - before
