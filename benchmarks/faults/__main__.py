"""Command that injects every fault and prints what came of it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from metagan_fast.benchmarks.faults import injection

_MODULE = "metagan_fast.benchmarks.faults"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if anything was lost, 2 where no faults can be injected."""
    given = _parser().parse_args(arguments)
    reason = injection.why_not()
    if reason is not None:
        print(f"faults: {reason}", file=sys.stderr)
        return 2
    if not injection.is_under_shim():
        return injection.rerun(["-m", _MODULE, *(sys.argv[1:] if arguments is None else arguments)])
    from metagan_fast.benchmarks.faults import table  # slow to import: in the process with the shim alone

    cases = [
        case for case in table.cases(given.every) if not given.only or any(text in case.title for text in given.only)
    ]
    if given.list:
        print("\n".join(case.title for case in cases))
        return 0
    import torch.utils.tensorboard  # noqa: F401  # once for all children

    if not given.json:
        print("| fault | where | injected | outcome | lost |\n|---|---|---|---|---|", flush=True)
    is_lost = False
    for case in cases:
        row = case.measure()
        is_lost |= row.lost not in (table.NOTHING, table.TOLD)
        if given.json:
            print(json.dumps(dataclasses.asdict(row)), flush=True)
        else:
            print(f"| {row.fault} | {row.where} | {row.points} | {row.outcome} | {row.lost} |", flush=True)
    return int(is_lost)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {_MODULE}",
        description="Inject every fault that training is to survive, below Python where it is one of the disk, and "
        "print a table of outcomes. Linux with a C compiler; minutes.",
    )
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="rows whose title, FAULT: WHERE, holds one of these")
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="inject at every N-th call alone (default: 1)"
    )
    parser.add_argument("--list", action="store_true", help="list the titles and exit")
    parser.add_argument("--json", action="store_true", help="a JSON object a row")
    return parser


if __name__ == "__main__":
    sys.exit(main())
