"""Compare two benchmark runs: `python -m metagan_fast.benchmarks.compare old.jsonl new.jsonl`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from metagan_fast.benchmarks import records
from metagan_fast.benchmarks.records import Record

from metagan_fast._utils.argument_types import path


@dataclass(frozen=True)
class Change:
    """Change of a contender's ratio to its baseline between two runs."""

    old: Record
    new: Record

    @property
    def factor(self) -> float:
        """New ratio over old; above 1 is faster. The baseline cancels most differences between machines."""
        assert self.old.ratio is not None and self.new.ratio is not None
        return self.new.ratio / self.old.ratio

    @property
    def noise(self) -> float:
        """Larger of the two spreads."""
        return max(self.old.spread or 0.0, self.new.spread or 0.0)


def changes(old: Sequence[Record], new: Sequence[Record]) -> list[Change]:
    """Pair the measurements present in both runs; the last of repeated ones counts."""
    before = {record.key: record for record in old if record.ratio is not None}
    after = {record.key: record for record in new if record.ratio is not None}
    pairs = [Change(before[key], after[key]) for key in after if key in before]
    return [change for change in pairs if change.new.contender != change.new.baseline]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the changes; return 1 if a contender became slower by more than the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=path, help="JSON lines of the run before")
    parser.add_argument("new", type=path, help="JSON lines of the run after")
    parser.add_argument("--tolerance", type=float, default=0.1, help="loss of speed that passes (default: 0.1)")
    options = parser.parse_args(arguments)
    try:
        found = changes(records.read(options.old), records.read(options.new))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if not found:
        print("the two files share no measurement", file=sys.stderr)
        return 2
    print(f"{'case':<24} {'contender':<14} {'threads':>7} {'old':>8} {'new':>8} {'change':>8}")
    slower = False
    for change in found:
        record = change.new
        allowed = max(options.tolerance, change.noise)
        verdict = "  slower" if change.factor < 1 - allowed else ""
        slower = slower or bool(verdict)
        print(
            f"{record.case:<24} {record.contender:<14} {record.threads:>7} {change.old.ratio:>7.2f}x "
            f"{record.ratio:>7.2f}x {change.factor - 1:>+8.0%}{verdict}"
        )
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
