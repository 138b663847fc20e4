"""Initialisations in the package: run folders that `tools/pretrained` made with the presets.

Each holds `config.json`, the run's record without the classes of its split, and one checkpoint, whose parameters are
the run's best moving average; `SHA256SUMS` lists the files.
"""

from __future__ import annotations

import os
from pathlib import Path

from ...learner import MetaGAN
from .. import config
from ..run_folder import RunFolder

_FOLDER = Path(__file__).parent

NAMES: tuple[str, ...] = tuple(sorted(path.parent.name for path in _FOLDER.glob("*/config.json")))
"""Names that `pretrained` accepts."""


def pretrained(name: str) -> MetaGAN:
    """Return a meta-trained GAN of the package, ready to adapt to a few images of a class.

    Args:
        name: "glyphs", 32x32 grey characters, white strokes on black.

    Raises:
        ValueError: unknown name.

    Example:
        >>> import torch
        >>> import metagan_fast as mgf
        >>> learner = mgf.pretrained("glyphs")
        >>> images = mgf.tasks.load("glyphs").test.sample(tasks=1, shots=4).support[0]
        >>> learner.adapt(images, steps=1).sample(2).shape
        torch.Size([2, 1, 32, 32])
    """
    if name not in NAMES:
        raise ValueError(f"expected a pretrained GAN of {', '.join(NAMES)}; got {name!r}")
    run = RunFolder.open(_FOLDER / name)
    record = run.read_config()
    learner = config.build_learner(record["settings"], record["image_shape"])
    learner.load_state(*run.read_checkpoint())
    return learner


def folder(source: str | os.PathLike[str]) -> Path:
    """Return the path of a run: `source` itself if it exists or names no run of the package."""
    return Path(source) if os.path.lexists(source) or str(source) not in NAMES else _FOLDER / source


def is_shipped(path: Path) -> bool:
    """Return whether a run's folder is the package's, where nothing may be written."""
    return path.parent == _FOLDER
