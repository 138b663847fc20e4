"""The two architectures of FIGR (Clouâtre & Demers 2019, arXiv:1901.02199), in the shapes of its public code.

The code settles what the paper leaves open: LayerNorm has one weight and one bias for each (C, H, W) element;
PReLU has one slope for each channel, and right after the generator's first linear layer one for each element;
generators and the residual discriminator activate before they normalise, the plain discriminator after.

Map parameters to FIGR's state dict by name, not by order: it registers all convolutions first, then all
activations, then all normalisations.
"""

from __future__ import annotations

from torch import Tensor, nn

from ._layers import check_sizes, image_sides, score, sequence

ImageSize = int | tuple[int, int]
Sides = tuple[int, int]


def dcgan(
    image_size: ImageSize = 32, channels: int = 1, width: int = 64, blocks: int = 4, latent_dim: int = 100
) -> tuple[nn.Sequential, nn.Sequential]:
    """Return (generator, discriminator) in FIGR's DCGAN form.

    The generator is linear, PReLU, LayerNorm, then `blocks` times [5x5 convolution halving the channels,
    PReLU, LayerNorm, nearest upsampling], then 5x5 convolution and tanh. The discriminator is 5x5
    convolution, LayerNorm, PReLU, then `blocks` times [5x5 convolution doubling the channels, LayerNorm,
    PReLU, average pooling], then linear.

    Args:
        image_size: height and width, or (height, width); each divisible by `2**blocks`.
        channels: of the images.
        width: channels at full resolution; `width * 2**blocks` at the lowest.
        blocks: resolutions below the full one.
        latent_dim: size of the latents.

    Returns:
        generator `[n, latent_dim]` -> `[n, C, H, W]` in [-1, 1], discriminator `[n, C, H, W]` -> `[n]`.

    Raises:
        ValueError: a size below 1, or an image size that does not divide.
    """
    channels, width, blocks, latent_dim = check_sizes(
        channels=channels, width=width, blocks=blocks, latent_dim=latent_dim
    )
    sides, widths = _pyramid(image_size, width, blocks)
    generator = sequence(
        initial=_from_latents(latent_dim, widths[-1], sides[-1]),
        blocks=nn.Sequential(
            *(
                sequence(
                    convolution=nn.Conv2d(widths[i + 1], widths[i], 5, padding=2),
                    activation=nn.PReLU(widths[i]),
                    norm=nn.LayerNorm([widths[i], *sides[i + 1]]),
                    upsample=nn.Upsample(scale_factor=2),
                )
                for i in reversed(range(blocks))
            )
        ),
        final=sequence(convolution=nn.Conv2d(width, channels, 5, padding=2), activation=nn.Tanh()),
    )
    discriminator = sequence(
        initial=sequence(
            convolution=nn.Conv2d(channels, width, 5, padding=2),
            norm=nn.LayerNorm([width, *sides[0]]),
            activation=nn.PReLU(width),
        ),
        blocks=nn.Sequential(
            *(
                sequence(
                    convolution=nn.Conv2d(widths[i], widths[i + 1], 5, padding=2),
                    norm=nn.LayerNorm([widths[i + 1], *sides[i]]),
                    activation=nn.PReLU(widths[i + 1]),
                    pool=nn.AvgPool2d(2),
                )
                for i in range(blocks)
            )
        ),
        features=nn.Flatten(),
        final=score(widths[-1] * sides[-1][0] * sides[-1][1]),
    )
    return generator, discriminator


def resnet(
    image_size: ImageSize = 32, channels: int = 1, width: int = 64, blocks: int = 4, latent_dim: int = 100
) -> tuple[nn.Sequential, nn.Sequential]:
    """Return (generator, discriminator) in FIGR's ResNet form.

    A unit is 3x3 convolution, PReLU, LayerNorm; a residual layer adds two units to its input. Each block has
    two residual layers and a unit that changes the channels, then nearest upsampling in the generator,
    average pooling in the discriminator. The generator starts and ends as `dcgan`'s; the discriminator starts
    with a unit of 7x7 and ends with the mean over the pixels and a linear layer.

    Arguments, returns and errors as in `dcgan`.
    """
    channels, width, blocks, latent_dim = check_sizes(
        channels=channels, width=width, blocks=blocks, latent_dim=latent_dim
    )
    sides, widths = _pyramid(image_size, width, blocks)
    generator = sequence(
        initial=_from_latents(latent_dim, widths[-1], sides[-1]),
        blocks=nn.Sequential(
            *(
                sequence(
                    first=Residual(widths[i + 1], sides[i + 1]),
                    second=Residual(widths[i + 1], sides[i + 1]),
                    transition=_unit(widths[i + 1], widths[i], sides[i + 1]),
                    upsample=nn.Upsample(scale_factor=2),
                )
                for i in reversed(range(blocks))
            )
        ),
        final=sequence(convolution=nn.Conv2d(width, channels, 5, padding=2), activation=nn.Tanh()),
    )
    discriminator = sequence(
        initial=_unit(channels, width, sides[0], kernel=7),
        blocks=nn.Sequential(
            *(
                sequence(
                    first=Residual(widths[i], sides[i]),
                    second=Residual(widths[i], sides[i]),
                    transition=_unit(widths[i], widths[i + 1], sides[i]),
                    pool=nn.AvgPool2d(2),
                )
                for i in range(blocks)
            )
        ),
        mean=nn.AvgPool2d(sides[-1]),
        features=nn.Flatten(),
        final=score(widths[-1]),
    )
    return generator, discriminator


class Residual(nn.Module):
    """Residual layer: two units of 3x3 convolution, PReLU and LayerNorm on `[n, width, *sides]`."""

    def __init__(self, width: int, sides: Sides) -> None:
        super().__init__()
        self.branch = nn.Sequential(_unit(width, width, sides), _unit(width, width, sides))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x + branch(x)`."""
        return x + self.branch(x)


def _unit(before: int, after: int, sides: Sides, kernel: int = 3) -> nn.Sequential:
    return sequence(
        convolution=nn.Conv2d(before, after, kernel, padding=kernel // 2),
        activation=nn.PReLU(after),
        norm=nn.LayerNorm([after, *sides]),
    )


def _from_latents(latent_dim: int, width: int, sides: Sides) -> nn.Sequential:
    elements = width * sides[0] * sides[1]
    return sequence(
        linear=nn.Linear(latent_dim, elements),
        activation=nn.PReLU(elements),
        norm=nn.LayerNorm(elements),
        image=nn.Unflatten(1, (width, *sides)),
    )


def _pyramid(image_size: ImageSize, width: int, blocks: int) -> tuple[list[Sides], list[int]]:
    """Return the sides and the channels of every resolution, the full one first."""
    rows, columns = image_sides(image_size, blocks)
    levels = range(blocks + 1)
    return [(rows >> i, columns >> i) for i in levels], [width << i for i in levels]
