"""`metagan-fast bench`: run the benchmarks, which parse their own options."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser("bench", help="time this machine against plain PyTorch", add_help=False)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Run the benchmarks."""
    from ..benchmarks import main

    return main(given.arguments) or 0
