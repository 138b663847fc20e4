"""GAN architectures, by name through `build` or one function each; `workload` returns the benchmarks' networks.

Every generator maps latents `[n, latent_dim]` to images `[n, C, H, W]` in [-1, 1], every discriminator images
to scores `[n]`. All can be traced by torch.fx and mapped over by torch.func.vmap. Parameters are
initialised by torch's layers, from the global seed.

Example:
    >>> import torch
    >>> from metagan_fast import models
    >>> generator, discriminator = models.build("dcgan", image_size=16, width=4, blocks=2, latent_dim=8)
    >>> images = generator(torch.randn(3, 8))
    >>> images.shape, discriminator(images).shape
    (torch.Size([3, 1, 16, 16]), torch.Size([3]))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from .classic_dcgan import classic_dcgan
from .figr import dcgan, resnet
from .mlp import mlp

if TYPE_CHECKING:
    from ..benchmarks.workload_networks import WORKLOADS, Workload, workload

__all__ = ["NAMES", "WORKLOADS", "Workload", "build", "classic_dcgan", "dcgan", "mlp", "resnet", "workload"]

_OF_BENCHMARKS = ("WORKLOADS", "Workload", "workload")  # imported at first use

_BUILDERS: dict[str, Callable[..., tuple[nn.Sequential, nn.Sequential]]] = {
    "mlp": mlp,
    "dcgan": dcgan,
    "resnet": resnet,
    "classic-dcgan": classic_dcgan,
}

NAMES: tuple[str, ...] = tuple(_BUILDERS)
"""Names that `build` accepts."""


def build(name: str, **options: Any) -> tuple[nn.Sequential, nn.Sequential]:
    """Return (generator, discriminator) of a named architecture, built with the options of its function.

    Raises:
        ValueError: unknown name or option, or a size that does not fit.
    """
    if name not in _BUILDERS:
        raise ValueError(f"expected a model of {', '.join(NAMES)}; got {name!r}")
    try:
        return _BUILDERS[name](**options)
    except TypeError as error:
        raise ValueError(f"model {name!r} does not take these options: {error}") from None


def __getattr__(name: str) -> Any:
    """Return the networks of the benchmarks, which are defined there."""
    if name not in _OF_BENCHMARKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ..benchmarks import workload_networks

    return getattr(workload_networks, name)
