"""Runs and sample options, common to several commands."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint
from .._utils.argument_types import path, seed, whole
from ..learner import MetaGAN
from ..training import config as configuration
from ..training.run_folder import RunFolder


def open_run(path: Path) -> tuple[RunFolder, dict[str, Any], MetaGAN]:
    """Return a run's folder, its record and its learner at the newest checkpoint."""
    folder = RunFolder.open(path)
    record = folder.read_config()
    with checkpoint.contents_of(folder.config):
        if not torch.cuda.is_available():
            record["settings"]["device"] = "cpu"
        learner = configuration.build_learner(record["settings"], record["image_shape"])
    learner.load_state(*folder.latest())
    return folder, record, learner


def add_sample_options(parser: argparse.ArgumentParser, count: int) -> None:
    """Add the options of a command that writes samples, `count` of them by default."""
    parser.add_argument(
        "--out",
        type=path,
        help="where the PNG files go, in place of those that this command wrote there (default: a folder in RUN)",
    )
    parser.add_argument("--samples", type=whole(1), default=count, help="images (default: %(default)s)")
    parser.add_argument("--seed", type=seed, default=0, help="of the latents (default: %(default)s)")
