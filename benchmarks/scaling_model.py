"""`python -m metagan_fast.benchmarks.scaling_model`: meta-steps a second against ranks, modelled from a few constants.

`docs/scale.md` derives the terms and gives the constants that were measured.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from metagan_fast._utils.argument_types import whole

RANKS = tuple(2**power for power in range(11))


@dataclass(frozen=True)
class Machine:
    """Constants of the model, in seconds and bytes.

    Attributes:
        task: time of one task's inner loops on one rank.
        whole: time of what every rank does: drawing the batch, the meta-update.
        spread: standard deviation of a rank's time over its mean.
        reduced: bytes of the all-reduce.
        latency: time of a short message between two ranks.
        bandwidth: bytes a second between two ranks.
        tree: True for a tree's latency (NCCL), else a ring's (gloo).
    """

    task: float
    whole: float
    spread: float
    reduced: float
    latency: float
    bandwidth: float
    tree: bool

    def busy(self, tasks: int, ranks: int) -> float:
        """Return the time of the inner loops of the rank with the most tasks."""
        return math.ceil(tasks / ranks) * self.task

    def waiting(self, tasks: int, ranks: int) -> float:
        """Return the expected time by which the slowest of equally loaded ranks is behind the mean."""
        return self.busy(tasks, ranks) * self.spread * math.sqrt(2 * math.log(ranks))

    def reducing(self, ranks: int) -> float:
        """Return the time of the all-reduce."""
        hops = math.ceil(math.log2(ranks)) if self.tree else ranks - 1
        return 2 * hops * self.latency + 2 * (ranks - 1) / ranks * self.reduced / self.bandwidth

    def meta_step(self, tasks: int, ranks: int) -> float:
        """Return the time of a meta-step."""
        return self.whole + self.busy(tasks, ranks) + self.waiting(tasks, ranks) + self.reducing(ranks)


def rows(machine: Machine, tasks: int | None) -> Iterator[str]:
    """Yield a Markdown table; `tasks` None: one task a rank."""
    yield "| ranks | tasks | meta-steps a second | tasks a second | of ideal | all-reduce |"
    yield "|---|---|---|---|---|---|"
    ideal = machine.whole + machine.task
    for ranks in RANKS:
        count = ranks if tasks is None else tasks
        seconds = machine.meta_step(count, ranks)
        rate = count / seconds
        yield (
            f"| {ranks:,} | {count:,} | {1 / seconds:.3g} | {rate:.3g} | {rate * ideal / ranks:.0%} "
            f"| {machine.reducing(ranks) / seconds:.1%} |"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of the constants given."""
    parser = argparse.ArgumentParser(prog="python -m metagan_fast.benchmarks.scaling_model", description=__doc__)
    for flag, default, text in (
        ("--task", 1.0, "seconds of a task's inner loops on a rank"),
        ("--whole", 0.0, "seconds of work that every rank does"),
        ("--spread", 0.02, "standard deviation of a rank's time over its mean"),
        ("--reduced", 1147904.0, "bytes of the all-reduce"),
        ("--latency", 30e-6, "seconds of a short message"),
        ("--bandwidth", 1.25e9, "bytes a second between two ranks"),
    ):
        parser.add_argument(flag, type=float, default=default, help=f"{text} (default: %(default)s)")
    parser.add_argument("--tasks", type=whole(1), help="of a meta-step (default: one a rank)")
    parser.add_argument("--tree", action="store_true", help="latency of a tree, as NCCL has, in place of a ring's")
    given = vars(parser.parse_args(arguments))
    tasks = given.pop("tasks")
    for line in rows(Machine(**given), tasks):
        print(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
