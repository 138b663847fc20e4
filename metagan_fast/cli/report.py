"""`metagan-fast report`: write the report of a run anew."""

from __future__ import annotations

import argparse
from typing import Any

from .._utils.argument_types import path
from ..training import report
from . import options, train
from .runs import add_checkpoint_option, open_run


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "report",
        help="write the report of a run anew, with its evaluation",
        description="Write report.html and its pictures as train does at its end.",
    )
    parser.add_argument("run_folder", metavar="RUN", type=path, help="a folder that train wrote")
    add_checkpoint_option(parser)
    for option in options.PLACES:
        option.add_to(parser, "as in training")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Write the report."""
    folder, record, learner = open_run(given.run_folder, given.checkpoint)
    folder.check_writable()
    _, tasks = train.reload_data(given, record)
    report.write(folder, learner, tasks)
    print(folder.report)
    return 0
