"""Cases beside another process that keeps every core busy: how much of their own speed contenders keep.

The plain loop loses nearly all of it: its threads meet at a barrier after every operation and wait for whichever was
displaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from metagan_fast.benchmarks import machine, workloads
from metagan_fast.benchmarks.contenders import BASELINE, CONTENDERS, OURS, Prepared, Result
from metagan_fast.benchmarks.problem import Problem
from metagan_fast.benchmarks.records import Record, timed
from metagan_fast.benchmarks.timing import Timing, alternate
from metagan_fast.benchmarks.workloads import WorkloadCase

REQUIRED = 0.4
"""The fraction of its own speed that the package must keep."""


@dataclass(frozen=True)
class BusyCase:
    """A workload that is timed undisturbed and then beside the other process.

    The baseline takes one task after another, so it is timed on one inner step of one task and its seconds are
    multiplied. After `seconds` beside the other process no third round begins.
    """

    name: str
    work: WorkloadCase
    seconds: float = 60.0


def _case(name: str, *, steps: int, rounds: int) -> BusyCase:
    work = workloads.against_baseline("busy", name)
    return BusyCase(work.name, dataclasses.replace(work, steps=steps, rounds=rounds))


CASES = (_case("dcgan-32", steps=3, rounds=5), _case("dcgan-16", steps=10, rounds=7))


def run(
    case: BusyCase,
    *,
    thread_counts: Sequence[int],
    quick: bool = False,
    rounds: int | None = None,
    contenders: Sequence[str] | None = None,
) -> Iterator[Record]:
    """Check every contender's result, then time all of them in alternation, first undisturbed.

    Arguments as for `workloads.run`.

    Raises:
        AssertionError: a result is further from float64 than design allows.
    """
    work = case.work.chosen(quick, contenders)
    problem = work.draw()
    for count in thread_counts:
        with machine.threads(count):
            yield from _run(work, problem, count, quick, rounds or work.rounds, case.seconds)


def _run(
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
    """Return the times with the baseline's as for all tasks and steps."""
    whole = Timing(tuple(work.tasks * work.steps * seconds for seconds in timings[BASELINE].seconds))
    return {**timings, BASELINE: whole}
