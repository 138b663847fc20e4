"""Profile the engine by kind of work: `python -m metagan_fast.benchmarks.profile figr dcgan-32 dcgan-16`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence

from metagan_fast.benchmarks import machine, records, workloads

from metagan_fast import _core, _native

CASES = {case.name: case for case in workloads.CASES}
DEFAULT = ("figr", "dcgan-32", "dcgan-16")


def profile(case: workloads.WorkloadCase, rounds: int = 3) -> dict[str, float]:
    """Run a case on the native executor and profile its threads.

    Returns:
        Each kind of work's share of all threads' time, with "idle" for the rest; "seconds" a call; "floor", the time
        of the multiply-adds at the machine's peak as a fraction of the call.
    """
    problem = case.draw()
    learner = problem.learner("native")
    work = learner.meta_gradient if case.algorithm == "maml" else learner.inner_loop
    work(problem.batch, noise=problem.noise)
    _core.set_profiling(True)
    before = time.perf_counter()
    for _ in range(rounds):
        work(problem.batch, noise=problem.noise)
    seconds = time.perf_counter() - before
    _core.set_profiling(False)
    available = seconds * _native.threads()
    shares = {name: spent / available for name, spent in _core.profile().items()}
    floor = workloads.floor(case, problem)[0] * rounds / seconds
    return {**shares, "idle": 1 - sum(shares.values()), "seconds": seconds / rounds, "floor": floor}


def table(profiles: Mapping[str, Mapping[str, float]]) -> str:
    """Format profiles as text, one column a case."""
    first = next(iter(profiles.values()))
    lines = ["".join([f"{'':16}", *(f"{name:>12}" for name in profiles)])]
    for key in first:
        cells = (f"{row[key]:12.3f}" if key == "seconds" else f"{row[key]:12.1%}" for row in profiles.values())
        lines.append(f"{key:16}" + "".join(cells))
    return "\n".join(lines)


def _case(name: str) -> str:
    if name not in CASES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(CASES)}; got {name!r}")
    return name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m metagan_fast.benchmarks.profile", description=__doc__)
    parser.add_argument(
        "cases", nargs="*", type=_case, default=list(DEFAULT), metavar="CASE", help=f"of {', '.join(CASES)}"
    )
    parser.add_argument(
        "--out",
        type=records.output(lambda content: [json.loads(line)["profile"] for line in content.splitlines()]),
        metavar="FILE",
        help="append the figures to this file as a JSON line",
    )
    options = parser.parse_args(arguments)
    profiles = {name: profile(CASES[name]) for name in options.cases}
    print(table(profiles))
    if options.out:
        with open(options.out, "a") as file:
            file.write(json.dumps({"profile": profiles, **machine.describe()}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
