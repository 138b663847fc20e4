"""Cases of drop-ins: the original's loop and the same loop with the import changed, checked, timed in alternation."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from . import machine
from .contenders import Prepared
from .records import Record, timed
from .timing import alternate


@dataclass(frozen=True)
class DropInCase:
    """One loop as an original's user writes it.

    Attributes:
        name: as it stands in the records.
        prepare: given whether the case is to be short, sets up the contenders by name, the original first.
            `Prepared.collect` makes of a result one flat tensor.
        package: what must be installed for the original.
        rounds: timed calls of each contender.
        allowed: distance (L2, relative) of a contender's result from the original's.
    """

    name: str
    prepare: Callable[[bool], dict[str, Prepared[Tensor]]]
    package: str | None = None
    rounds: int = 5
    allowed: float = 1e-4


from .dropin_cases import figr  # noqa: E402  (cases are made of the class above)

CASES: tuple[DropInCase, ...] = (*figr.CASES,)


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
