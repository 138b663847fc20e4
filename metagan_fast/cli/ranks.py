"""Commands whose work several processes share: the option that starts them, and the output of one of them."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable

from .._utils.argument_types import whole
from ..display.progress import NullProgress, Progress, make
from ..distributed import job, launch

Run = Callable[[argparse.Namespace], int]


def add_option(parser: argparse.ArgumentParser, shared: str) -> None:
    """Add `--nproc` to a command whose ranks share `shared`."""
    parser.add_argument(
        "--nproc",
        type=whole(1, 4096),
        metavar="N",
        help=f"processes on this machine that share {shared}, and its threads (default: 1; torchrun -m metagan_fast "
        "starts them on several machines)",
    )


def progress() -> Progress:
    """Return the display of this process: the first rank's shows the work of all."""
    return make() if job.is_first() else NullProgress()


def shared(run: Run) -> Run:
    """Let ranks share a command: as a rank of torch's launcher join the others, else start `--nproc` of them.

    The first rank prints, the others print errors of their own alone.
    """

    def run_as_rank(given: argparse.Namespace) -> int:
        if not job.is_started():
            if given.nproc is not None and given.nproc > 1:
                return launch.start(given.nproc, given.command_line, threads=getattr(given, "threads", None))
            return run(given)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if given.nproc not in (None, local):
            raise ValueError(f"expected --nproc {local}, as many as torchrun has started here, got {given.nproc}")
        with job.joined():
            if not job.is_first():
                sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
                logging.getLogger().setLevel(logging.ERROR)
            return run(given)

    return run_as_rank
