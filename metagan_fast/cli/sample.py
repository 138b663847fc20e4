"""`metagan-fast sample`: generate images from the initialisation or from adapted networks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint
from .._utils.argument_types import path
from ..display import image_grids
from ..learner import MetaGAN
from ..training.output_folder import OutputFolder
from .runs import add_checkpoint_option, add_run_argument, add_sample_options, open_run, output_root


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "sample",
        help="generate images from the initialisation or from adapted networks",
        description="Write images of a run's initialisation, or of networks that adapt --save-weights wrote.",
    )
    add_run_argument(parser)
    parser.add_argument("--weights", type=path, help="adapted networks (default: the initialisation)")
    add_checkpoint_option(parser)
    add_sample_options(parser, 64)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Write generated images."""
    default = "initialisation" if given.weights is None else f"sampled-{given.weights.stem}"
    out = OutputFolder(given.out or output_root(given.run_folder) / default, "sample")
    out.check(image_grids.sample_names(given.samples))
    _, record, learner = open_run(given.run_folder, given.checkpoint)
    if given.weights is not None:
        load_weights(learner, given.weights)
    blank = torch.zeros(1, *record["image_shape"])
    samples = learner.adapt(blank, steps=0).sample(given.samples, seed=given.seed, best_of=given.best_of)
    out.write(image_grids.sample_files(samples))
    print(f"{len(samples)} images in {out.path}, all in {out.path / image_grids.SAMPLE_GRID}")
    return 0


def load_weights(learner: MetaGAN, path: Path) -> None:
    """Replace the initialisation by adapted networks.

    Raises:
        CheckpointError: the file is not what `adapt --save-weights` wrote for these networks.
    """
    tensors, metadata = checkpoint.read(path)
    with checkpoint.contents_of(f"{path}, which should be what adapt --save-weights wrote for this run"):
        if "adapted" not in metadata:
            raise ValueError("it holds no adapted networks")
        learner.load_networks(tensors)
