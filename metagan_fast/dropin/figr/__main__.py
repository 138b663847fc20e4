"""`python -m metagan_fast.dropin.figr`: the counterpart of FIGR's `python train.py`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from .options import OPTIONS
from .trainer import FIGR


def main(arguments: Sequence[str] | None = None) -> int:
    """Train with the command line's options; return the exit status: 0, or 2 after an error."""
    parser = argparse.ArgumentParser(
        prog="python -m metagan_fast.dropin.figr",
        description="Meta-train FIGR's GAN; output goes to Runs/, where a run with the same options is resumed.",
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
