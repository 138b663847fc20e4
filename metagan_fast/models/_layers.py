"""Building blocks of the networks: named sequences, the score layer, checks of sizes."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from .._utils.coerce import count, sides


def sequence(**layers: nn.Module) -> nn.Sequential:
    """Return a sequence of named layers."""
    return nn.Sequential(OrderedDict(layers))


def score(in_features: int) -> nn.Sequential:
    """Return the last layer of a discriminator: `[n, in_features]` -> `[n]`."""
    return sequence(linear=nn.Linear(in_features, 1), scores=nn.Flatten(0))


def check_sizes(**sizes: int) -> tuple[int, ...]:
    """Return sizes as ints, in order; ValueError unless every one is at least 1."""
    return tuple(count(name, size, least=1) for name, size in sizes.items())


def image_sides(image_size: int | tuple[int, int], blocks: int) -> tuple[int, int]:
    """Return (height, width) of an image that can be halved `blocks` times, or raise ValueError."""
    height, width = sides("image_size", image_size)
    multiple = 2**blocks
    if height % multiple or width % multiple:
        raise ValueError(
            f"expected an image_size divisible by 2**blocks = {multiple}, got {image_size}; "
            "choose fewer blocks or resize the images"
        )
    return height, width
