"""Cases of drop-ins: the original's loop and the same loop with the import changed, checked, timed in alternation."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence

from metagan_fast.benchmarks import machine
from metagan_fast.benchmarks.dropin_cases import DropInCase, figr, higher, learn2learn, optim, torchopt
from metagan_fast.benchmarks.records import Record, timed
from metagan_fast.benchmarks.timing import alternate

CASES: tuple[DropInCase, ...] = (*figr.CASES, *higher.CASES, *learn2learn.CASES, *optim.CASES, *torchopt.CASES)


def run(
    case: DropInCase, *, thread_counts: Sequence[int], quick: bool = False, rounds: int | None = None
) -> Iterator[Record]:
    """Check the contenders' results against the original's, then time all of them together.

    Raises:
        AssertionError: a result is further from the original's than the case allows.
    """
    if case.package is not None and importlib.util.find_spec(case.package) is None:
        yield Record(case.name, "all", 0, skipped=f"{case.package} is not installed")
        return
    for count in thread_counts:
        with machine.threads(count):
            yield from _run(case, count, quick, 2 if quick else rounds or case.rounds)


def _run(case: DropInCase, count: int, quick: bool, rounds: int) -> Iterator[Record]:
    prepared = case.prepare(quick)
    original, *_ = prepared
    records: dict[str, Record] = {}
    expected = prepared[original].collect(prepared[original].run()).double()
    for name, contender in prepared.items():
        record = Record(case.name, name, count)
        if name != original:
            actual = contender.collect(contender.run()).double()
            error = ((actual - expected).norm() / expected.norm()).item()
            assert error <= case.allowed, f"{name} on {case.name}: {error:.1e} away, allowed {case.allowed:.1e}"
            record = dataclasses.replace(record, error=error, error_allowed=case.allowed)
        records[name] = record
    runs = {name: contender.run for name, contender in prepared.items()}
    timings = alternate(runs, rounds=rounds, settle=0.03)
    for name, timing in timings.items():
        yield timed(records[name], timing, original, timings[original])
