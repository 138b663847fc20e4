"""The DCGAN of Radford et al. 2015 (arXiv:1511.06434)."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from .._utils.coerce import count, flag
from ._layers import check_sizes, sequence


def classic_dcgan(
    image_size: int = 32, channels: int = 1, width: int = 64, latent_dim: int = 100, batch_norm: bool = True
) -> tuple[nn.Sequential, nn.Sequential]:
    """Return (generator, discriminator) with strided and transposed 4x4 convolutions.

    ReLU in the generator, LeakyReLU(0.2) in the discriminator, BatchNorm everywhere except at the images
    and the scores; convolution weights start as N(0, 0.02^2). BatchNorm keeps no running statistics: it normalises by
    the batch in training and sampling alike, as per-task networks need. Use a loss with
    `separate_batches=True`.

    Args:
        image_size: height and width, a power of two of at least 8.
        channels: of the images.
        width: channels at half resolution, doubled at each lower one down to 4x4.
        latent_dim: size of the latents.
        batch_norm: False: no BatchNorm, and convolutions with a bias.

    Returns:
        generator `[n, latent_dim]` -> `[n, C, H, W]` in [-1, 1], discriminator `[n, C, H, W]` -> `[n]`.

    Raises:
        ValueError: a size below 1, or an image size that is no power of two.
    """
    channels, width, latent_dim = check_sizes(channels=channels, width=width, latent_dim=latent_dim)
    image_size, batch_norm = count("image_size", image_size), flag("batch_norm", batch_norm)
    if image_size < 8 or image_size & (image_size - 1):
        raise ValueError(f"expected image_size to be a power of two of at least 8, got {image_size}")
    widths = [width << i for i in range(image_size.bit_length() - 3)]  # half resolution first, 4x4 last

    def normalised(convolution: nn.Module, after: int, activation: nn.Module) -> nn.Sequential:
        if not batch_norm:
            return sequence(convolution=convolution, activation=activation)
        norm = nn.BatchNorm2d(after, track_running_stats=False)
        return sequence(convolution=convolution, norm=norm, activation=activation)

    def up(before: int, after: int) -> nn.ConvTranspose2d:
        return nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=not batch_norm)

    def down(before: int, after: int) -> nn.Conv2d:
        return nn.Conv2d(before, after, 4, stride=2, padding=1, bias=not batch_norm)

    pairs = list(pairwise(widths))
    generator = sequence(
        latents=nn.Unflatten(1, (latent_dim, 1, 1)),
        initial=normalised(nn.ConvTranspose2d(latent_dim, widths[-1], 4, bias=not batch_norm), widths[-1], nn.ReLU()),
        blocks=nn.Sequential(*(normalised(up(high, low), low, nn.ReLU()) for low, high in reversed(pairs))),
        final=sequence(convolution=nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1), activation=nn.Tanh()),
    )
    discriminator = sequence(
        initial=sequence(convolution=nn.Conv2d(channels, width, 4, stride=2, padding=1), activation=nn.LeakyReLU(0.2)),
        blocks=nn.Sequential(*(normalised(down(low, high), high, nn.LeakyReLU(0.2)) for low, high in pairs)),
        final=sequence(convolution=nn.Conv2d(widths[-1], 1, 4), scores=nn.Flatten(0)),
    )
    for module in (*generator.modules(), *discriminator.modules()):
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, std=0.02)
    return generator, discriminator
