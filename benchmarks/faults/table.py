"""Rows of the table of faults against outcomes, and their measurement."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from metagan_fast.benchmarks.faults.injection import BROKEN, FULL, KILLED, READ_ONLY, Ending, Fault, attempt
from metagan_fast.benchmarks.faults.saves import ERROR, FILES, RUNS, TOLD, Lost, Save
from metagan_fast.benchmarks.faults.scenes import SCENES

DISK_FAULTS = (KILLED, FULL, READ_ONLY, BROKEN)
"""Faults that each save meets at each of its calls."""

NOTHING = "nothing"


@dataclass(frozen=True)
class Row:
    """One fault at all of its injection points.

    Attributes:
        fault: its name.
        where: what met it.
        points: number of injections.
        outcome: what happened, with counts where it differs.
        lost: what is lost: "nothing", or `TOLD` on a disk that fails and goes on.
    """

    fault: str
    where: str
    points: int
    outcome: str
    lost: str = NOTHING


@dataclass(frozen=True)
class Case:
    """A row to measure."""

    fault: str
    where: str
    measure: Callable[[], Row]

    @property
    def title(self) -> str:
        """Name of the row."""
        return f"{self.fault}: {self.where}"


def cases(every: int = 1) -> list[Case]:
    """Return all rows to measure, those of the disk at each `every`-th call."""
    return [*saves(every), *(Case(fault, where, partial(_scene, fault, where, play)) for fault, where, play in SCENES)]


def saves(every: int = 1) -> Iterator[Case]:
    """Yield each save under each fault of the disk."""
    for save in (*FILES, *RUNS):
        for fault in DISK_FAULTS:
            yield Case(fault.name, save.name, partial(measure, save, fault, every))


def measure(save: Save, fault: Fault, every: int = 1) -> Row:
    """Let a save meet a fault at each call, or each `every`-th, check what is left each time, and return the row."""
    with tempfile.TemporaryDirectory() as scratch:
        before, after, work = (Path(scratch) / name for name in ("before", "after", "work"))
        work.mkdir()
        # In children, since saves may start threads, and in one place, since records hold paths.
        prepared = attempt(lambda: _prepare(save, work), work)
        shutil.copytree(work, before, symlinks=True)
        undisturbed = attempt(lambda: save.save(work), work, fault)
        work.rename(after)
        if prepared.code or undisturbed.code:
            raise RuntimeError(f"{save.name} fails without a fault: {prepared.output}{undisturbed.output}")
        outcomes: Counter[str] = Counter()
        lost: list[str] = []
        points = range(1, undisturbed.count + 1, every)
        for at in points:
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(before, work, symlinks=True)
            ending = attempt(lambda: save.save(work), work, fault, at)
            try:
                outcomes[_ended(ending)] += 1
                outcomes[save.check(work, before, after, ending.output)] += 1
            except Lost as loss:
                lost.append(f"at call {at}: {loss}")
    ends = sorted(outcomes.items(), key=lambda item: _order(item[0]))
    outcome = ", ".join(f"{name} ({count})" for name, count in ends)
    kept = TOLD if TOLD in outcome else NOTHING
    return Row(fault.name, save.name, len(points), outcome, "; ".join(lost) or kept)


def _scene(fault: str, where: str, play: Callable[[Path], tuple[int, str]]) -> Row:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            points, outcome = play(Path(scratch))
        except Lost as loss:
            return Row(fault, where, 0, "fails", str(loss))
    return Row(fault, where, points, outcome)


def _prepare(save: Save, folder: Path) -> int:
    save.prepare(folder)
    return 0


def _ended(ending: Ending) -> str:
    """Return how a save ended; Lost if it was by a traceback."""
    if ending.was_killed:
        return "killed"
    if ending.code == ERROR and len(ending.output.strip()) > 0 and "Traceback" not in ending.output:
        return "error"
    if ending.code:
        raise Lost(f"it ends with code {ending.code}: {ending.output}")
    return "done, a log line tells" if re.search("cannot write", ending.output) else "done"


def _order(outcome: str) -> tuple[str, int]:
    word, _, number = outcome.rpartition(" ")
    return (word, int(number)) if number.isdigit() else (outcome, 0)
