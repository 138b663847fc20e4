"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from ._layers import check_sizes, score, sequence


def mlp(
    image_shape: tuple[int, int, int], latent_dim: int, hidden: Sequence[int] = (128, 128)
) -> tuple[nn.Sequential, nn.Sequential]:
    """Return (generator, discriminator), fully connected with LeakyReLU(0.2).

    Args:
        image_shape: (C, H, W).
        latent_dim: size of the latents.
        hidden: sizes of the generator's hidden layers; the discriminator has them in reverse order.

    Returns:
        generator `[n, latent_dim]` -> `[n, C, H, W]` in [-1, 1], discriminator `[n, C, H, W]` -> `[n]`.
    """
    channels, height, width = image_shape
    channels, height, width, latent_dim = check_sizes(
        channels=channels, height=height, width=width, latent_dim=latent_dim
    )
    hidden = check_sizes(**{f"hidden[{i}]": size for i, size in enumerate(hidden)})
    pixels = channels * height * width
    generator = sequence(
        hidden=_hidden((latent_dim, *hidden)),
        linear=nn.Linear((latent_dim, *hidden)[-1], pixels),
        activation=nn.Tanh(),
        image=nn.Unflatten(1, (channels, height, width)),
    )
    backwards = (pixels, *reversed(hidden))
    discriminator = sequence(pixels=nn.Flatten(), hidden=_hidden(backwards), final=score(backwards[-1]))
    return generator, discriminator


def _hidden(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)
