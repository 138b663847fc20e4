"""Networks of the workloads that speed is measured on."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from metagan_fast import models


class Workload(NamedTuple):
    """Networks of a workload, and the shapes between which they map."""

    generator: nn.Sequential
    discriminator: nn.Sequential
    latent_dim: int
    image_shape: tuple[int, int, int]


_DCGAN_32: tuple[str, dict[str, Any]] = ("dcgan", {"image_size": 32, "width": 16, "blocks": 3})
_WORKLOADS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp-8": ("mlp", {"image_shape": (1, 8, 8), "latent_dim": 32, "hidden": (128, 128)}),
    "dcgan-16": ("dcgan", {"image_size": 16, "width": 4, "blocks": 2}),
    "dcgan-32": _DCGAN_32,
    "figr": ("dcgan", {"image_size": 32, "width": 64, "blocks": 4}),
    "figr-resnet": ("resnet", {"image_size": 32, "width": 64, "blocks": 4}),
    "maml-32": _DCGAN_32,
    "glyphs-32": ("dcgan", {"image_size": 32, "width": 8, "blocks": 3, "latent_dim": 64}),  # the default run's
    "rgb-64": ("dcgan", {"image_size": 64, "channels": 3, "width": 16, "blocks": 4, "latent_dim": 64}),
}

WORKLOADS: tuple[str, ...] = tuple(_WORKLOADS)
"""Names that `workload` accepts."""


def workload(name: str) -> Workload:
    """Return the networks of a workload, freshly initialised; the result unpacks as a tuple.

    Raises:
        ValueError: unknown name.
    """
    if name not in _WORKLOADS:
        raise ValueError(f"expected a workload of {', '.join(WORKLOADS)}; got {name!r}")
    model, options = _WORKLOADS[name]
    side = options.get("image_size", 0)
    image_shape = options.get("image_shape") or (options.get("channels", 1), side, side)
    return Workload(*models.build(model, **options), options.get("latent_dim", 100), image_shape)
