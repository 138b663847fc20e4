"""A training run of a second, for faults to meet: its data, its commands, and what must remain of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metagan_fast import cli
from metagan_fast.training.run_folder import RunFolder

_CLASSES, _IMAGES, _SIDE = 8, 6, 8
_OPTIONS = (
    "--model mlp hidden=[8] --latent-dim 4 --image-size 8 --min-images 6 --split 0.6 0.2 0.2 --inner-steps 2 "
    "--batch-size none --generated none --warm-up 0 --warm-up-batch-size none --tasks 2 --shots 2 "
    "--validation-shots 2 --validation-tasks 1 --checkpoint-every 1 --threads 1"
)

ANEW = re.compile(r"holds no checkpoint|is not a run")
"""Errors of `train --resume` where a run was killed before its first checkpoint."""


def write_data(path: Path) -> None:
    """Write the images, random ones."""
    drawn = np.random.default_rng(0)
    images = drawn.integers(0, 256, (_CLASSES * _IMAGES, _SIDE, _SIDE), dtype=np.uint8)
    np.savez(path, images=images, labels=np.repeat(np.arange(_CLASSES), _IMAGES))


def train(data: Path, out: Path, steps: int, options: Sequence[str] = (), *, resume: bool = False) -> int:
    """Run `metagan-fast train`, or go on with the run; return its exit code."""
    settings = ["--resume"] if resume else ["--data", str(data), *_OPTIONS.split()]
    return cli.main(["train", "--out", str(out), *settings, "--steps", str(steps), *options])


def state(out: Path) -> dict[str, bytes]:
    """Return the files that a run of these settings always ends with the same bytes of, by name."""
    names = ["metrics.jsonl", *(f"checkpoints/{path.name}" for path in sorted((out / "checkpoints").glob("[bs]*")))]
    names += [f"samples/{path.name}" for path in RunFolder(out).pictures()]
    return {name: (out / name).read_bytes() for name in names}


def leftovers(folder: Path) -> list[str]:
    """Return the temporary files in a folder, which none may remain of after a run has ended well."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.tmp"))
