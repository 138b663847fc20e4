"""`metagan-fast bench`: select cases, measure them, print and store the records."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from metagan_fast.benchmarks import busy, dropins, gpu_model, machine, memory, ops, quality, records, scaling, workloads
from metagan_fast.benchmarks.case import Case
from metagan_fast.benchmarks.contenders import CONTENDERS

from metagan_fast import plots
from metagan_fast._utils.argument_types import path, threads, whole

_GROUPS: dict[str, Sequence[Case]] = {
    "ops": ops.CASES,
    "workloads": workloads.CASES,
    "busy": busy.CASES,
    "memory": memory.CASES,
    "dropins": dropins.CASES,
    "quality": quality.CASES,
    "scaling": scaling.CASES,
}
GROUPS = {group: [case.name for case in cases] for group, cases in _GROUPS.items()}
CASES: dict[str, Case] = {case.name: case for cases in _GROUPS.values() for case in cases}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark command; return its exit status."""
    options = _parser().parse_args(arguments)
    if options.list:
        sys.stdout.writelines(f"{name}\n" for name in CASES)
        return 0
    if options.gpu_model:
        for line in gpu_model.sheet(_selected(options.cases)):
            print(line, flush=True)
        return 0
    environment = machine.describe()
    print(records.HEADER)
    failed, kept = False, []
    for name in _selected(options.cases):
        measured = CASES[name].measure(
            thread_counts=options.threads, quick=options.quick, rounds=options.rounds, contenders=options.contenders
        )
        try:
            for record in measured:
                print(records.row(record), flush=True)
                kept.append(record)
                if options.out:
                    records.append(options.out, [record], environment)
        except AssertionError as error:
            failed = True
            print(f"{name}: wrong result, not timed: {error}", file=sys.stderr)
    if options.plot:
        options.plot.write_bytes(plots.quality(kept))
    return 1 if failed else 0


def _selected(names: Sequence[str]) -> list[str]:
    return [case for name in names for case in GROUPS.get(name, [name])]


def _case(name: str) -> str:
    if name not in CASES and name not in GROUPS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join((*GROUPS, *CASES))}; got {name!r}")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="metagan-fast bench",
        description="Time the fused ops and whole inner loops against plain PyTorch and other libraries, or measure "
        "memory. Results are checked first, contenders timed in alternation. Keep the machine otherwise idle.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        type=_case,
        default=["ops", "workloads"],
        metavar="CASE",
        help="cases, or 'ops', 'workloads', 'dropins', 'busy' (beside a process that keeps all cores busy), 'memory', "
        "'quality' (KID against minutes; hours) or 'scaling' (processes that share the tasks)",
    )
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=tuple(CONTENDERS),
        metavar="NAME",
        help=f"contenders of the workloads, of {', '.join(CONTENDERS)}; each case has its own list",
    )
    parser.add_argument("--quick", action="store_true", help="few rounds and steps, no contender that has to compile")
    parser.add_argument(
        "--out",
        type=records.output(records.parse),
        metavar="FILE",
        help="append the records to this file as JSON lines",
    )
    parser.add_argument("--plot", type=path, metavar="FILE", help="draw KID against minutes of the quality case, a PNG")
    parser.add_argument(
        "--threads", nargs="+", type=threads, metavar="N", help="thread counts; ops: 1 and all, other cases: all"
    )
    parser.add_argument("--rounds", type=whole(1), help="timed calls of each contender; each case has its own number")
    parser.add_argument(
        "--gpu-model",
        action="store_true",
        help="time nothing; print modelled launches, bytes and GPU rooflines of the cases, not a measurement",
    )
    parser.add_argument("--list", action="store_true", help="list the cases and exit")
    return parser
