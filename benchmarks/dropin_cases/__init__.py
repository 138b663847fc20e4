"""Training loops as users of the originals write them, run with the original and with the drop-in."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from metagan_fast.benchmarks import machine
from metagan_fast.benchmarks.contenders import Prepared
from metagan_fast.benchmarks.records import Record, timed
from metagan_fast.benchmarks.timing import alternate
from torch import Tensor


@dataclass(frozen=True)
class DropInCase:
    """One training loop as a user of the original writes it.

    Attributes:
        name: the case's name in the records.
        prepare: takes `quick`, returns the contenders by name, the original first; `Prepared.collect` flattens a
            result into one tensor.
        package: the package that the original needs, or None.
        rounds: timed calls of each contender.
        allowed: largest relative L2 distance of a contender's result from the original's.
    """

    name: str
    prepare: Callable[[bool], dict[str, Prepared[Tensor]]]
    package: str | None = None
    rounds: int = 5
    allowed: float = 1e-4

    def measure(
        self,
        *,
        thread_counts: Sequence[int] | None = None,
        quick: bool = False,
        rounds: int | None = None,
        contenders: Sequence[str] | None = None,
    ) -> Iterator[Record]:
        """Time every contender against the original; see `case.Case.measure`. `contenders` is ignored."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            yield Record(self.name, "all", 0, skipped=f"{self.package} is not installed")
            return
        for count in thread_counts or [torch.get_num_threads()]:
            with machine.threads(count):
                yield from self._measure(count, quick, 2 if quick else rounds or self.rounds)

    def _measure(self, count: int, quick: bool, rounds: int) -> Iterator[Record]:
        prepared = self.prepare(quick)
        original, *_ = prepared
        records: dict[str, Record] = {}
        expected = prepared[original].collect(prepared[original].run()).double()
        for name, contender in prepared.items():
            record = Record(self.name, name, count)
            if name != original:
                actual = contender.collect(contender.run()).double()
                error = ((actual - expected).norm() / expected.norm()).item()
                assert error <= self.allowed, f"{name} on {self.name}: {error:.1e} away, allowed {self.allowed:.1e}"
                record = dataclasses.replace(record, error=error, error_allowed=self.allowed)
            records[name] = record
        runs = {name: contender.run for name, contender in prepared.items()}
        timings = alternate(runs, rounds=rounds, settle=0.03)
        for name, timing in timings.items():
            yield timed(records[name], timing, original, timings[original])
