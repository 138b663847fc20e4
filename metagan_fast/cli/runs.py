"""Runs and sample options, common to several commands."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

from .._utils.argument_types import path, seed, whole
from ..learner import MetaGAN
from ..training import pretrained
from ..training.run_folder import KID, RunFolder
from . import streams


def open_run(path: Path, which: str | int | None = None, **ranks: Any) -> tuple[RunFolder, dict[str, Any], MetaGAN]:
    """Return a run's folder, its record and its learner, with the averaged initialisation if the run keeps one.

    Args:
        path: the folder.
        which: checkpoint, as for `RunFolder.read_checkpoint`; if it is the best one, a line says so.
        ranks: as for `configuration.build_learner`.
    """
    folder = RunFolder.open(path)
    learner, record, metadata = pretrained.load(folder, which, **ranks)
    if KID in metadata:
        streams.say(
            f"checkpoint: the best by validation, after {learner.step} meta-steps (KID {metadata[KID]:.3f}); "
            "--checkpoint last takes the newest"
        )
    return folder, record, learner


def add_run_argument(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add the argument that takes a run or a GAN of the package; without a default it is required."""
    parser.add_argument(
        "run_folder",
        metavar="RUN",
        type=lambda text: pretrained.folder(path(text)),
        nargs=None if default is None else "?",
        default=default,
        help=f"a folder that train wrote, or a GAN of the package: {', '.join(pretrained.NAMES)}"
        + ("" if default is None else " (default: %(default)s)"),
    )


def output_root(run: Path) -> Path:
    """Return the folder under which a run's outputs go by default: its own, or here for a GAN of the package."""
    return Path() if pretrained.is_shipped(run) else run


def checkpoint_name(text: str) -> str | int:
    """Read `last`, `best` or a number of meta-steps."""
    with contextlib.suppress(argparse.ArgumentTypeError):
        return whole(0)(text)
    if text not in ("last", "best"):
        raise argparse.ArgumentTypeError(f"expected last, best or a number of meta-steps, got {text!r}")
    return text


def add_checkpoint_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses a run's checkpoint."""
    parser.add_argument(
        "--checkpoint",
        type=checkpoint_name,
        metavar="last|best|STEP",
        help="which of the run's (default: the best by validation if the run keeps it, else the last)",
    )


def add_sample_options(parser: argparse.ArgumentParser, count: int) -> None:
    """Add the options of a command that writes samples, `count` of them by default."""
    parser.add_argument(
        "--out",
        type=path,
        help="where the PNG files go, in place of those that this command wrote there (default: a folder in RUN, or "
        "here for a GAN of the package)",
    )
    parser.add_argument("--samples", type=whole(1), default=count, help="images (default: %(default)s)")
    parser.add_argument(
        "--best-of",
        type=whole(1),
        default=1,
        metavar="N",
        help="generate N times as many and keep those that the discriminator finds most real: cleaner images of less "
        "variety with losses that are not relativistic (default: %(default)s)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the latents (default: %(default)s)")
