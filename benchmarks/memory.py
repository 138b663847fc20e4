"""Memory cases: the peak growth of a process while a contender runs a whole workload once.

Each contender has its own process, which imports everything and draws the problem before the measurement.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from metagan_fast.benchmarks import machine, workloads
from metagan_fast.benchmarks.contenders import BASELINE, CONTENDERS, OURS
from metagan_fast.benchmarks.records import Record
from metagan_fast.benchmarks.workloads import WorkloadCase

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class MemoryCase:
    """A workload, and the fraction of the baseline's memory that the package may take."""

    name: str
    work: WorkloadCase
    allowed: float

    def measure(
        self,
        *,
        thread_counts: Sequence[int] | None = None,
        quick: bool = False,
        rounds: int | None = None,
        contenders: Sequence[str] | None = None,
    ) -> Iterator[Record]:
        """Measure one call of each contender in a separate process; see `case.Case.measure`.

        `rounds` is ignored; `quick` shortens only the check, since a graph's memory grows with every step.
        """
        work = self.work.chosen(quick, contenders)
        problem = work.draw()
        for count in thread_counts or [torch.get_num_threads()]:
            with machine.threads(count):
                baseline: int | None = None
                for record in workloads.admit(work, problem, count, quick):
                    if record.skipped is None and not _STATUS.exists():
                        record = dataclasses.replace(record, skipped=f"no {_STATUS} here")
                    if record.skipped is not None:
                        yield record
                        continue
                    grown = _measure(self, record.contender, count)
                    if record.contender == BASELINE:
                        baseline = grown
                    yield dataclasses.replace(
                        record,
                        baseline=BASELINE,
                        memory_bytes=grown,
                        memory_ratio=None if baseline is None else grown / baseline,
                        memory_ratio_allowed=self.allowed if record.contender == OURS else None,
                    )


def _case(name: str, allowed: float) -> MemoryCase:
    work = workloads.against_baseline("memory", name)
    return MemoryCase(work.name, work, allowed)


CASES = (_case("maml-32", 0.25),)


def _measure(case: MemoryCase, contender: str, threads: int) -> int:
    # Spawned, not forked, so that the process starts small; it inherits the import path.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_grow, case, contender, threads).result()


def status_bytes(field: str) -> int:
    """Return a field of `/proc/self/status`, such as `VmHWM`, in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _grow(case: MemoryCase, contender: str, threads: int) -> int:
    """Run a contender once in this process; return the bytes by which the process grew at its peak."""
    with machine.threads(threads):
        prepared = CONTENDERS[contender].prepare(case.work.draw())
        before = status_bytes("VmRSS")
        prepared.run()
        return status_bytes("VmHWM") - before
