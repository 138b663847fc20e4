"""`metagan-fast publish`: write an initialisation for Hugging Face's hub."""

from __future__ import annotations

import argparse
from typing import Any

from .._utils.argument_types import path
from ..training.publish import publish
from ..training.run_folder import RunFolder
from . import streams
from .runs import add_checkpoint_option, add_run_argument


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "publish",
        help="write an initialisation and its model card for Hugging Face's hub",
        description="Write model.safetensors, config.json and a model card to a folder; nothing is uploaded.",
    )
    add_run_argument(parser)
    parser.add_argument("folder", metavar="FOLDER", type=path, help="where the files go; its name is the card's title")
    parser.add_argument(
        "--license", dest="licence", required=True, help="of the weights, as the hub names it, such as apache-2.0"
    )
    add_checkpoint_option(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Write the folder, and print what to do with it."""
    learner = publish(RunFolder.open(given.run_folder), given.folder, licence=given.licence, which=given.checkpoint)
    files = ", ".join(sorted(file.name for file in given.folder.iterdir() if file.is_file()))
    streams.say(f"{given.folder}: the initialisation after {learner.step} meta-steps; {files}")
    streams.say(f"read README.md, then upload: hf upload USER/NAME {given.folder}")
    return 0
