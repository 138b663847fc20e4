"""Presets of a run's settings, as data: each lists its changes of `DEFAULT`.

Another choice of `model.name`, `loss.name` or `meta.algorithm` starts from that choice's own defaults.
"""

from __future__ import annotations

from typing import Any

DEFAULT: dict[str, Any] = {
    "data": {
        "source": "glyphs-latin",
        "image_size": 16,
        "channels": None,
        "invert": False,
        "rotations": False,
        "min_images": 12,
        "split": None,
        "split_by": None,
        "seed": 0,
    },
    "latent_dim": 32,
    "model": {"name": "dcgan", "width": 4, "blocks": 2},
    # Lowest per-class KID of the validation classes (docs/tuning.md#presets-default-loss-and-optimizers).
    "loss": {"name": "r1"},
    "inner": {"optimizer": "adam", "lr": 2e-3, "betas": [0.0, 0.9], "steps": 10},
    "meta": {
        "algorithm": "reptile",
        "optimizer": "sgd",
        "lr": {"schedule": "linear", "initial": 0.3, "final": 0.02},
    },
    "training": {
        "meta_steps": 500,
        "tasks": 8,
        "shots": 4,
        "query": None,
        "validate_every": 100,
        "validation_tasks": 8,
        "checkpoint_every": 100,
        "keep": 3,
        "log_every": 1,
    },
    "executor": "auto",
    "precision": "float32",
    "device": "cpu",
    "seed": 0,
    "threads": None,
}

_FIGR: dict[str, Any] = {
    "data": {"image_size": 32},
    "latent_dim": 100,
    "loss": {"name": "figr"},
    "inner": {"optimizer": "sgd", "lr": 1e-3, "steps": 10},
    "meta": {"algorithm": "reptile", "optimizer": "adam", "lr": 1e-4},
    "training": {"meta_steps": 100_000, "tasks": 1, "validate_every": 1000, "checkpoint_every": 1000},
}

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "quick": {
        "data": {"source": "digits", "image_size": None},
        "model": {"name": "mlp", "hidden": [64, 64]},
        "training": {"meta_steps": 40, "tasks": 4, "validate_every": 20, "checkpoint_every": 20},
    },
    "figr": {**_FIGR, "model": {"name": "dcgan", "width": 64, "blocks": 4}},
    "figr-resnet": {**_FIGR, "model": {"name": "resnet"}},
}
