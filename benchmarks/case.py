"""The protocol of benchmark cases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from metagan_fast.benchmarks.records import Record


class Case(Protocol):
    """A named measurement of several contenders, one of them the baseline."""

    @property
    def name(self) -> str:
        """The case's name on the command line and in the records."""
        ...

    def measure(
        self,
        *,
        thread_counts: Sequence[int] | None = None,
        quick: bool = False,
        rounds: int | None = None,
        contenders: Sequence[str] | None = None,
    ) -> Iterator[Record]:
        """Check every contender's result, then measure all contenders in alternation.

        Args:
            thread_counts: numbers of threads to measure with; None: the case's default, torch's number as a rule.
            quick: take few rounds and steps, and skip contenders that have to compile.
            rounds: timed calls of each contender; None: the case's own number.
            contenders: names of `contenders.CONTENDERS` that run beside the baseline; None: the case's own. Cases
                whose contenders are fixed ignore it.

        Raises:
            AssertionError: a contender's result is further from the reference than the case allows.
        """
        ...
