"""FIGR's networks with the parameter names of its `model.py` and checkpoints.

The layers come from `metagan_fast.models`; a table per network maps FIGR's names to theirs.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ... import models

# FIGR's name -> the name in metagan_fast.models; {i} counts blocks. FIGR registers layers in this order.
DCGAN_GENERATOR = {
    "initial_linear": "initial.linear",
    "initial_activ": "initial.activation",
    "initial_norm": "initial.norm",
    "convs.{i}": "blocks.{i}.convolution",
    "activ.{i}": "blocks.{i}.activation",
    "norm.{i}": "blocks.{i}.norm",
    "final_conv": "final.convolution",
}
DCGAN_DISCRIMINATOR = {
    "initial_conv": "initial.convolution",
    "initial_norm": "initial.norm",
    "initial_activ": "initial.activation",
    "convs.{i}": "blocks.{i}.convolution",
    "norm.{i}": "blocks.{i}.norm",
    "activ.{i}": "blocks.{i}.activation",
    "final_linear": "final.linear",
}
_RESIDUAL_BLOCKS = {
    f"{ours}{number}.{{i}}": f"blocks.{{i}}.{residual}.branch.{unit}.{layer}"
    for number, residual, unit in ((1, "first", 0), (2, "first", 1), (3, "second", 0), (4, "second", 1))
    for ours, layer in (("convs", "convolution"), ("norm", "norm"), ("activ", "activation"))
} | {
    "transitions_conv.{i}": "blocks.{i}.transition.convolution",
    "transitions_norm.{i}": "blocks.{i}.transition.norm",
    "transitions_activ.{i}": "blocks.{i}.transition.activation",
}
RESNET_GENERATOR = {
    "initial_linear": "initial.linear",
    "initial_norm": "initial.norm",
    "initial_activ": "initial.activation",
    **_RESIDUAL_BLOCKS,
    "final_conv": "final.convolution",
}
RESNET_DISCRIMINATOR = {
    "initial_conv": "initial.convolution",
    "initial_norm": "initial.norm",
    "initial_activ": "initial.activation",
    **_RESIDUAL_BLOCKS,
    "final_linear": "final.linear",
}


class _Network(nn.Module):
    """Layers of a `metagan_fast.models` network under FIGR's names."""

    initial_norm: nn.Module
    initial_activ: nn.Module

    def __init__(self, source: nn.Module, names: dict[str, str], blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        for ours, path in names.items():
            if "{i}" not in ours:
                self.add_module(ours, source.get_submodule(path))
                continue
            layers = (source.get_submodule(path.format(i=i)) for i in range(blocks))
            self.add_module(ours.removesuffix(".{i}"), nn.ModuleList(layers))


class _Discriminator(_Network):
    """Base of FIGR's discriminators: images to scores."""

    initial_conv: nn.Module
    final_linear: nn.Module


class _Generator(_Network):
    """Base of FIGR's generators: latents to images."""

    initial_linear: nn.Module
    final_conv: nn.Module

    def __init__(self, source: nn.Module, names: dict[str, str], blocks: int, height: int, length: int) -> None:
        super().__init__(source, names, blocks)
        self.lowest = height >> blocks, length >> blocks

    def _first(self, latents: Tensor) -> Tensor:
        x = self.initial_norm(self.initial_activ(self.initial_linear(latents)))
        return x.view(x.shape[0], -1, *self.lowest)

    def _last(self, x: Tensor) -> Tensor:
        return self.final_conv(x).tanh()


class DCGANGenerator(_Generator):
    """FIGR's plain generator: latents `[n, input_size]` to images `[n, image_channels, height, length]` in [-1, 1].

    Args:
        input_size: latent size.
        image_channels, height, length: image channels and size; height and length divisible by `2**blocks`.
        hidden_size: channels at full resolution.
        blocks: number of resolutions below the full one.

    Raises:
        ValueError: a size is below 1, or a side is not divisible (FIGR's own networks fail in their forward pass).
    """

    convs: nn.ModuleList
    activ: nn.ModuleList
    norm: nn.ModuleList

    def __init__(
        self,
        input_size: int,
        image_channels: int = 1,
        height: int = 32,
        length: int = 32,
        hidden_size: int = 64,
        blocks: int = 4,
    ) -> None:
        source, _ = models.dcgan((height, length), image_channels, hidden_size, blocks, input_size)
        super().__init__(source, DCGAN_GENERATOR, blocks, height, length)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the images of latents."""
        x = self._first(inputs)
        for conv, activ, norm in zip(self.convs, self.activ, self.norm, strict=True):
            x = F.interpolate(norm(activ(conv(x))), scale_factor=2)
        return self._last(x)


class DCGANDiscriminator(_Discriminator):
    """FIGR's plain discriminator: images `[n, image_channels, height, length]` to scores `[n, 1]`, low for real ones.

    Arguments and errors as in `DCGANGenerator`.
    """

    convs: nn.ModuleList
    activ: nn.ModuleList
    norm: nn.ModuleList

    def __init__(
        self, image_channels: int = 1, height: int = 32, length: int = 32, hidden_size: int = 64, blocks: int = 4
    ) -> None:
        _, source = models.dcgan((height, length), image_channels, hidden_size, blocks)
        super().__init__(source, DCGAN_DISCRIMINATOR, blocks)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the scores of images."""
        x = self.initial_activ(self.initial_norm(self.initial_conv(inputs)))
        for conv, norm, activ in zip(self.convs, self.norm, self.activ, strict=True):
            x = F.avg_pool2d(activ(norm(conv(x))), 2)
        return self.final_linear(x.flatten(1))


class ResNetGenerator(_Generator):
    """FIGR's residual generator; arguments, shapes and errors as in `DCGANGenerator`."""

    def __init__(
        self,
        input_size: int,
        image_channels: int = 1,
        height: int = 32,
        length: int = 32,
        hidden_size: int = 64,
        blocks: int = 4,
    ) -> None:
        source, _ = models.resnet((height, length), image_channels, hidden_size, blocks, input_size)
        super().__init__(source, RESNET_GENERATOR, blocks, height, length)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the images of latents."""
        x = self._first(inputs)
        for i in range(self.blocks):
            x = F.interpolate(_residual_block(self, i, x), scale_factor=2)
        return self._last(x)


class ResNetDiscriminator(_Discriminator):
    """FIGR's residual discriminator; arguments, shapes and errors as in `DCGANDiscriminator`."""

    def __init__(
        self, image_channels: int = 1, height: int = 32, length: int = 32, hidden_size: int = 64, blocks: int = 4
    ) -> None:
        _, source = models.resnet((height, length), image_channels, hidden_size, blocks)
        super().__init__(source, RESNET_DISCRIMINATOR, blocks)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the scores of images."""
        x = self.initial_norm(self.initial_activ(self.initial_conv(inputs)))
        for i in range(self.blocks):
            x = F.avg_pool2d(_residual_block(self, i, x), 2)
        return self.final_linear(x.mean((2, 3)))


_UNITS = [(f"convs{n}", f"activ{n}", f"norm{n}") for n in (1, 2, 3, 4)]
_TRANSITION = ("transitions_conv", "transitions_activ", "transitions_norm")


def _residual_block(network: nn.Module, i: int, x: Tensor) -> Tensor:
    """Apply two residual layers of two units each, then the unit that changes the channel count."""
    for first, second in (_UNITS[:2], _UNITS[2:]):
        x = x + _unit(network, second, i, _unit(network, first, i, x))
    return _unit(network, _TRANSITION, i, x)


def _unit(network: nn.Module, names: tuple[str, ...], i: int, x: Tensor) -> Tensor:
    for name in names:
        x = getattr(network, name)[i](x)
    return x
