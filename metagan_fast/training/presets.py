"""Presets of a run's settings, as data: each lists its changes of `DEFAULT`.

Another choice of `model.name`, `loss.name` or `meta.algorithm` starts from that choice's own defaults.
"""

from __future__ import annotations

from typing import Any

DEFAULT: dict[str, Any] = {
    "data": {
        "source": "glyphs",
        "image_size": 32,
        "channels": None,
        "invert": False,
        "rotations": False,
        "min_images": 12,
        "split": None,
        "split_by": None,
        "seed": 0,
    },
    # Recipe: lowest KID of validation scripts in its time (docs/recipes.md).
    "latent_dim": 64,
    "model": {"name": "dcgan", "width": 8, "blocks": 3},
    "loss": {
        "name": "relativistic-paired",
        "penalty": {"name": "zero-centered", "weight": 10.0, "location": "both"},
    },
    "inner": {
        "optimizer": "adam",
        "lr": {"schedule": "linear", "initial": 3e-3, "final": 3e-4},
        "discriminator_lr": {"schedule": "linear", "initial": 6e-3, "final": 6e-4},
        "betas": [0.0, 0.9],
        "steps": 25,
        "batch_size": 8,
        "generated": 24,
    },
    "meta": {
        "algorithm": "reptile",
        "optimizer": "sgd",
        "lr": {"schedule": "linear", "initial": 0.35, "final": 0.01},
    },
    "training": {
        "meta_steps": 48,
        "warm_up": 16,
        "warm_up_batch_size": 32,
        "warm_up_lr": 2e-3,
        "tasks": 2,
        "shots": 12,
        "query": None,
        "validate_every": 24,
        "validation_tasks": 4,
        "validation_shots": 4,
        "checkpoint_every": 24,
        "keep": 3,
        "log_every": 1,
        "ema": 0.99,
        "keep_best": True,
    },
    "executor": "auto",
    "precision": "float32",
    "device": "cpu",
    "seed": 0,
    "threads": None,
}

_PLAIN_INNER = {"batch_size": None, "generated": None, "discriminator_lr": None, "steps": 10}
"""Inner loop with one rate, on all images at once."""

_PLAIN_TRAINING = {
    "tasks": 8,
    "shots": 4,
    "validation_shots": None,
    "ema": None,
    "keep_best": False,
    "warm_up": 0,
    "warm_up_batch_size": None,
    "warm_up_lr": None,
}
"""Outer loop without warm-up and average, trained as it is used."""

_FIGR: dict[str, Any] = {
    "latent_dim": 100,
    "loss": {"name": "figr"},
    "inner": {**_PLAIN_INNER, "optimizer": "sgd", "lr": 1e-3},
    "meta": {"algorithm": "reptile", "optimizer": "adam", "lr": 1e-4},
    "training": {
        **_PLAIN_TRAINING,
        "meta_steps": 100_000,
        "tasks": 1,
        "validate_every": 1000,
        "checkpoint_every": 1000,
    },
}

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "quick": {
        "data": {"source": "digits", "image_size": None},
        "latent_dim": 32,
        "model": {"name": "mlp", "hidden": [64, 64]},
        "loss": {"name": "r1"},
        "inner": {**_PLAIN_INNER, "lr": 2e-3},
        "meta": {"lr": {"schedule": "linear", "initial": 0.3, "final": 0.02}},
        "training": {
            **_PLAIN_TRAINING,
            "meta_steps": 40,
            "tasks": 4,
            "validate_every": 20,
            "checkpoint_every": 20,
        },
    },
    "figr": {**_FIGR, "model": {"name": "dcgan", "width": 64, "blocks": 4}},
    "figr-resnet": {**_FIGR, "model": {"name": "resnet"}},
}
