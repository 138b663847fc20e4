"""`metagan-fast data`: data sets made of packages that are downloaded when asked for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .._utils.argument_types import path, whole
from ..distributed import job
from ..tasks import data_sets
from . import ranks, streams

SMALLEST, LARGEST = 8, 256  # pixels a side


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "data",
        help="make a larger data set from free icons, emoji or fonts",
        description="Make a data set from packages under free licences, which are downloaded and kept in a cache.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="show the data sets", description="Show the data sets.")
    listing.set_defaults(run=show)
    get = actions.add_parser(
        "get",
        help="make one, as an .npz for train --data",
        description="Make a data set: an .npz file with images, labels, groups, and each image's source and licence.",
        epilog=f"The cache is ${data_sets.CACHE_VARIABLE}, else metagan_fast in $XDG_CACHE_HOME or ~/.cache.",
    )
    get.add_argument("name", choices=tuple(data_sets.SETS), metavar="NAME", help=", ".join(data_sets.SETS))
    get.add_argument("--out", type=path, help="the file (default: NAME.npz here)")
    get.add_argument("--size", type=whole(SMALLEST, LARGEST), help="pixels a side (default: the set's own)")
    get.add_argument("--from", dest="folder", type=path, metavar="FOLDER", help="a folder with the packages' archives")
    ranks.add_option(get, "the drawing")
    get.set_defaults(run=ranks.shared(run))


def show(given: argparse.Namespace) -> int:
    """Print a table of the data sets."""
    print(data_sets.listing())
    return 0


def run(given: argparse.Namespace) -> int:
    """Make a data set, and print what it holds."""
    out = given.out or Path(f"{given.name}.npz")
    if out.suffix.lower() != ".npz":
        raise ValueError(f"expected a file whose name ends in .npz for --out, got {out}")
    if out.is_dir():
        raise ValueError(f"expected a file for --out, got the folder {out}")
    display = ranks.progress()
    try:
        made = data_sets.make(given.name, given.size, given.folder, display.part)
    finally:
        display.close()
    if not job.is_first():
        return 0
    written = made.save(out)
    streams.say(f"{made.name}: {made.summary()}\n\n{made.table()}\n\n{out}: {written / 1e6:.1f} MB")
    streams.say(f"train on it with: metagan-fast train --data {out}")
    return 0
