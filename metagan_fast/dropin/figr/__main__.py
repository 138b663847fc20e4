"""`python -m metagan_fast.dropin.figr` is FIGR's `python train.py`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from .options import OPTIONS
from .trainer import FIGR


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; returns the exit code: 0, or 2 for what cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m metagan_fast.dropin.figr",
        description="Meta-train FIGR's GAN; everything goes to Runs/, where a run of the same options is taken up.",
    )
    for name, option in OPTIONS.items():
        parser.add_argument(name, default=option.default, help=f"{option.help} (default: {option.default})")
    given = vars(parser.parse_args(arguments))
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        FIGR({name: given[name.removeprefix("--")] for name in OPTIONS}).training()
    except (ValueError, OSError, ArithmeticError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
