"""Cases beside a process that keeps every core busy: the fraction of its undisturbed speed that a contender keeps.

The plain loop loses nearly all of its speed: its threads meet at a barrier after every operation, so each one waits for
any that was preempted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from metagan_fast.benchmarks import machine, workloads
from metagan_fast.benchmarks.contenders import BASELINE, CONTENDERS, OURS, Prepared, Result
from metagan_fast.benchmarks.problem import Problem
from metagan_fast.benchmarks.records import Record, timed
from metagan_fast.benchmarks.timing import Timing, alternate
from metagan_fast.benchmarks.workloads import WorkloadCase

REQUIRED = 0.4
"""Fraction of its undisturbed speed that the package must keep."""


@dataclass(frozen=True)
class BusyCase:
    """A workload timed undisturbed, then beside the busy process.

    The baseline runs tasks one after another, so it is timed on one inner step of one task and its time is scaled.
    Beside the busy process at least two rounds run; no third one begins after `seconds`.
    """

    name: str
    work: WorkloadCase
    seconds: float = 60.0

    def measure(
        self,
        *,
        thread_counts: Sequence[int] | None = None,
        quick: bool = False,
        rounds: int | None = None,
        contenders: Sequence[str] | None = None,
    ) -> Iterator[Record]:
        """Time every contender undisturbed, then beside the busy process; see `case.Case.measure`."""
        work = self.work.chosen(quick, contenders)
        problem = work.draw()
        for count in thread_counts or [torch.get_num_threads()]:
            with machine.threads(count):
                yield from _measure(work, problem, count, quick, rounds or work.rounds, self.seconds)


def _case(name: str, *, steps: int, rounds: int) -> BusyCase:
    work = workloads.against_baseline("busy", name)
    return BusyCase(work.name, dataclasses.replace(work, steps=steps, rounds=rounds))


CASES = (_case("dcgan-32", steps=3, rounds=5), _case("dcgan-16", steps=10, rounds=7))


def _measure(
    work: WorkloadCase, problem: Problem, count: int, quick: bool, rounds: int, seconds: float
) -> Iterator[Record]:
    prepared: dict[str, Prepared[Result]] = {}
    records: dict[str, Record] = {}
    for record in workloads.admit(work, problem, count, quick):
        if record.skipped is not None:
            yield record
            continue
        name = record.contender
        records[name] = record
        prepared[name] = CONTENDERS[name].prepare(problem.first(tasks=1, steps=1) if name == BASELINE else problem)
    runs = {name: ready.run for name, ready in prepared.items()}
    floor = workloads.floor(work, problem)
    undisturbed = _scaled(alternate(runs, rounds=rounds), work)
    with machine.busy_cores():
        disturbed = _scaled(alternate(runs, rounds=rounds, seconds=seconds, warm_up=0), work)
    kept = {name: undisturbed[name].median / timing.median for name, timing in disturbed.items()}
    for name, timing in disturbed.items():
        yield dataclasses.replace(
            timed(records[name], timing, BASELINE, disturbed[BASELINE], *floor),
            undisturbed_seconds=undisturbed[name].median,
            speed_kept=kept[name],
            speed_kept_required=REQUIRED if name == OURS else None,
            baseline_speed_kept=kept[BASELINE],
        )


def _scaled(timings: dict[str, Timing], work: WorkloadCase) -> dict[str, Timing]:
    """Scale the baseline's times from one task and step to all of them."""
    whole = Timing(tuple(work.tasks * work.steps * seconds for seconds in timings[BASELINE].seconds))
    return {**timings, BASELINE: whole}
