"""Initialisations in the package: run folders that `tools/pretrained` made with the presets.

Each holds `config.json`, the run's record without the classes of its split, and one checkpoint, whose parameters are
the run's best moving average; `SHA256SUMS` lists the files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ... import checkpoint
from ...learner import MetaGAN
from .. import config
from ..run_folder import RunFolder

_FOLDER = Path(__file__).parent

NAMES: tuple[str, ...] = tuple(sorted(path.parent.name for path in _FOLDER.glob("*/config.json")))
"""Names that `pretrained` accepts."""


def pretrained(name: str | os.PathLike[str]) -> MetaGAN:
    """Return a meta-trained GAN, ready to adapt to a few images of a class.

    Args:
        name: "glyphs", 32x32 grey characters, white strokes on black; or the path of a folder that `train` or
            `metagan-fast publish` wrote, of which the best initialisation is taken.

    Raises:
        ValueError: unknown name.
        FileNotFoundError: a folder that holds no run.
        CheckpointError: its checkpoint cannot be read.

    Example:
        >>> import torch
        >>> import metagan_fast as mgf
        >>> learner = mgf.pretrained("glyphs")
        >>> images = mgf.tasks.load("glyphs").test.sample(tasks=1, shots=4).support[0]
        >>> learner.adapt(images, steps=1).sample(2).shape
        torch.Size([2, 1, 32, 32])
    """
    place = _FOLDER / name if name in NAMES else Path(name)
    if not place.is_dir():
        raise ValueError(f"expected a pretrained GAN of {', '.join(NAMES)}, or the folder of a run; got {str(name)!r}")
    return load(RunFolder.open(place))[0]


def load(
    run: RunFolder, which: str | int | None = None, **ranks: Any
) -> tuple[MetaGAN, dict[str, Any], dict[str, Any]]:
    """Return a run's learner, with the averaged initialisation if it keeps one, its record and the checkpoint's own.

    Args:
        run: the run; of one on a GPU the learner is on the CPU where there is none.
        which: checkpoint, as for `RunFolder.read_checkpoint`.
        ranks: as for `config.build_learner`.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be read.
    """
    record = run.read_config()
    tensors, metadata = run.read_checkpoint(which)
    with checkpoint.contents_of(run.config):
        config.check_size(record["settings"], record["image_shape"], tensors)
    learner = build(run, record, **ranks)
    learner.load_state(tensors, metadata, average=True)
    return learner, record, metadata


def build(run: RunFolder, record: dict[str, Any], **ranks: Any) -> MetaGAN:
    """Return a run's learner before any training; of a run on a GPU it is on the CPU where there is none.

    Args:
        run: the run.
        record: its record, in which the device is changed.
        ranks: as for `config.build_learner`.

    Raises:
        CheckpointError: the record is damaged.
    """
    with checkpoint.contents_of(run.config):
        if not torch.cuda.is_available():
            record["settings"]["device"] = "cpu"
        return config.build_learner(record["settings"], record["image_shape"], **ranks)


def folder(source: str | os.PathLike[str]) -> Path:
    """Return the path of a run: `source` itself if it exists or names no run of the package."""
    return Path(source) if os.path.lexists(source) or str(source) not in NAMES else _FOLDER / source


def is_shipped(path: Path) -> bool:
    """Return whether a run's folder is the package's, where nothing may be written."""
    return path.parent == _FOLDER
