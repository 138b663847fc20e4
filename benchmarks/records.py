"""Records of measurements: one JSON line each in a file, one row each on the terminal."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metagan_fast.benchmarks.timing import Timing

from metagan_fast._utils import argument_types


@dataclass(frozen=True)
class Record:
    """Figures of one contender on one case, with its baseline and its floor, all from the same run.

    `seconds` and `baseline_seconds` are the shortest of the rounds, `ratio` is baseline over contender.
    `floor_fraction` is the floor over `seconds`: 1 is the machine's peak, or the time to copy as many bytes through
    memory, which an op that reads more than it writes, or hits a cache, may beat. `skipped` is why a contender did not
    run.

    Beside a process that keeps all cores busy: `speed_kept` is the fraction of the undisturbed speed that is left (by
    medians), `undisturbed_seconds` the median without that process, `baseline_speed_kept` the baseline's fraction and
    `speed_kept_required` the fraction required of the package.

    For memory cases: `memory_bytes` is the process's growth at its peak, `memory_ratio` its ratio to the baseline's,
    and `memory_ratio_allowed` the largest ratio allowed for the package.

    For quality cases: `kid` on held-out classes, with its 95 % interval over classes, in the feature space `space`
    after `meta_step` meta-steps of the run of `seed`, which took `minutes`; `ratio` of times to equal quality, the
    median of seeds, with the least and the most.
    """

    case: str
    contender: str
    threads: int
    seconds: float | None = None
    median: float | None = None
    spread: float | None = None
    rounds: int = 0
    baseline: str | None = None
    baseline_seconds: float | None = None
    ratio: float | None = None
    ratio_of_medians: float | None = None
    floor_seconds: float | None = None
    floor_fraction: float | None = None
    floor: str | None = None
    first_call_seconds: float | None = None
    error: float | None = None
    error_allowed: float | None = None
    undisturbed_seconds: float | None = None
    speed_kept: float | None = None
    speed_kept_required: float | None = None
    baseline_speed_kept: float | None = None
    memory_bytes: int | None = None
    memory_ratio: float | None = None
    memory_ratio_allowed: float | None = None
    seed: int | None = None
    meta_step: int | None = None
    minutes: float | None = None
    space: str | None = None
    kid: float | None = None
    kid_low: float | None = None
    kid_high: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    skipped: str | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """Identity of the measurement across runs: case, contender, threads."""
        return self.case, self.contender, self.threads

    def to_json(self, environment: Mapping[str, Any]) -> str:
        """Return one JSON line: the figures and the environment."""
        figures = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        return json.dumps({**figures, **environment})

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Parse a line of `to_json`; unknown fields, of other versions, are dropped."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in json.loads(line).items() if k in known})


def timed(
    record: Record,
    timing: Timing,
    baseline: str,
    baseline_timing: Timing,
    floor_seconds: float | None = None,
    floor: str | None = None,
) -> Record:
    """Return the record with the figures of its timing and, if known, its floor."""
    return dataclasses.replace(
        record,
        seconds=timing.best,
        median=timing.median,
        spread=timing.spread,
        rounds=len(timing.seconds),
        baseline=baseline,
        baseline_seconds=baseline_timing.best,
        ratio=baseline_timing.best / timing.best,
        ratio_of_medians=baseline_timing.median / timing.median,
        floor_seconds=floor_seconds,
        floor_fraction=None if floor_seconds is None else floor_seconds / timing.best,
        floor=floor,
    )


_COLUMNS = ("case", "contender", "threads", "time", "spread", "ratio", "floor", "error", "kept")
HEADER = "{:<24} {:<14} {:>7} {:>11} {:>7} {:>8} {:>7}  {:>9} {:>6}".format(*_COLUMNS)


def row(record: Record) -> str:
    """Return a record as one line under `HEADER`."""
    start = f"{record.case:<24} {record.contender:<14} {record.threads:>7}"
    if record.memory_bytes is not None:
        return f"{start} {record.memory_bytes / 2**20:>8.1f} MiB {record.memory_ratio or 0:>14.1%}"
    if record.kid is not None:
        interval = f"[{record.kid_low or 0:.2f}, {record.kid_high or 0:.2f}]"
        where = f"seed {record.seed}, meta-step {record.meta_step}, {record.minutes or 0:.2f} min, {record.space}"
        return f"{start} KID {record.kid:>6.2f} {interval}  {where}"
    if record.ratio_low is not None:
        sooner = f"{record.ratio:.1f}x [{record.ratio_low:.1f}, {record.ratio_high or 0:.1f}]"
        return f"{start} reaches the last KID of {record.baseline} {sooner} sooner"
    if record.seconds is None or record.skipped is not None:
        return f"{start} skipped: {record.skipped}"
    error = "" if record.error is None else f"{record.error:.1e}"
    kept = "" if record.speed_kept is None else f"{record.speed_kept:.1%}"
    floor = "" if record.floor_fraction is None else f"{record.floor_fraction:.0%}"
    return (
        f"{start} {record.seconds * 1e3:>8.2f} ms {record.spread or 0:>7.0%} {record.ratio or 0:>7.2f}x "
        f"{floor:>7}  {error:>9} {kept:>6}".rstrip()
    )


def read(path: str | Path) -> list[Record]:
    """Read a file of JSON lines.

    Raises:
        ValueError: a line is not a record; the message names file and line.
    """
    return parse(Path(path).read_text(), path)


def parse(content: str, path: str | Path = "") -> list[Record]:
    """Return the records of a file's content; ValueError as `read`."""
    records = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            records.append(Record.from_json(line))
        except (ValueError, TypeError, AttributeError) as error:
            message = f"expected a benchmark record on line {number} of {path}, got {line[:60]!r} ({error})"
            raise ValueError(message) from None
    return records


def output(parse: Callable[[str], object]) -> Callable[[str], Path]:
    """Return an argparse type for an output file; it rejects an existing file of another kind.

    Args:
        parse: reads the content of such a file; raises ValueError, KeyError or TypeError for other content.
    """

    def checked(text: str) -> Path:
        path = argument_types.path(text)
        try:
            if path.is_file() and (content := path.read_text(encoding="utf-8")).strip():
                parse(content)
        except (ValueError, KeyError, TypeError):
            raise argparse.ArgumentTypeError(f"{path} holds something else, which stays: choose another file") from None
        return path

    return checked


def append(path: str | Path, records: Iterable[Record], environment: Mapping[str, Any]) -> None:
    """Append records to a file as JSON lines."""
    with Path(path).open("a") as file:
        file.writelines(record.to_json(environment) + "\n" for record in records)
