"""Networks for GANs: `build` by name, or a function each; `workload` for those that speed is measured on.

Every generator maps latents `[n, latent_dim]` to images `[n, C, H, W]` in [-1, 1], every discriminator images
to scores `[n]`. All can be traced by torch.fx and mapped over by torch.func.vmap. Parameters start as torch's
layers do, from the global seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from .classic_dcgan import classic_dcgan
from .figr import dcgan, resnet
from .mlp import mlp

__all__ = ["NAMES", "WORKLOADS", "Workload", "build", "classic_dcgan", "dcgan", "mlp", "resnet", "workload"]

_BUILDERS: dict[str, Callable[..., tuple[nn.Sequential, nn.Sequential]]] = {
    "mlp": mlp,
    "dcgan": dcgan,
    "resnet": resnet,
    "classic-dcgan": classic_dcgan,
}

NAMES: tuple[str, ...] = tuple(_BUILDERS)
"""What `build` knows by name."""


def build(name: str, **options: Any) -> tuple[nn.Sequential, nn.Sequential]:
    """Return (generator, discriminator) of a named architecture, with the options of its function.

    Raises:
        ValueError: unknown name or option, or a size that does not fit.
    """
    if name not in _BUILDERS:
        raise ValueError(f"expected a model of {', '.join(NAMES)}; got {name!r}")
    try:
        return _BUILDERS[name](**options)
    except TypeError as error:
        raise ValueError(f"model {name!r} does not take these options: {error}") from None


class Workload(NamedTuple):
    """The networks of a workload and what they map between."""

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
}

WORKLOADS: tuple[str, ...] = tuple(_WORKLOADS)
"""What `workload` knows by name."""


def workload(name: str) -> Workload:
    """Return the networks of a workload of the benchmarks, freshly initialised; they unpack as a tuple.

    Raises:
        ValueError: unknown name.
    """
    if name not in _WORKLOADS:
        raise ValueError(f"expected a workload of {', '.join(WORKLOADS)}; got {name!r}")
    model, options = _WORKLOADS[name]
    image_shape = options.get("image_shape") or (1, options["image_size"], options["image_size"])
    return Workload(*build(model, **options), options.get("latent_dim", 100), image_shape)
