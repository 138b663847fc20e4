"""Layers in odd sizes, drawn by hypothesis, one strategy for each kind of operation of a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F


class Case(NamedTuple):
    """A module, its input's shape and the batch size."""

    module: nn.Module
    input_shape: tuple[int, ...]
    images: int


class Call(nn.Module):
    """Module that calls a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


Draw = Callable[..., Any]

_sides = st.tuples(st.integers(1, 7), st.integers(1, 7))
_channels = st.integers(1, 5)
_images = st.integers(2, 4)


def _kernel(draw: Draw, height: int, width: int) -> dict[str, Any]:
    """Draw kernel, stride, padding and dilation that fit an image."""
    kernel, padding, dilation, stride = ([draw(st.integers(low, high)) for _ in range(2)] for low, high in _RANGES)
    for axis, size in enumerate((height, width)):
        if dilation[axis] * (kernel[axis] - 1) + 1 > size + 2 * padding[axis]:
            kernel[axis] = 1
    return {
        "kernel_size": tuple(kernel),
        "stride": tuple(stride),
        "padding": tuple(padding),
        "dilation": tuple(dilation),
    }


_RANGES = ((1, 5), (0, 3), (1, 2), (1, 3))


@st.composite
def convolutions(draw: Draw) -> Case:
    height, width = draw(_sides)
    channels, out = draw(_channels), draw(st.integers(1, 19))
    module = nn.Conv2d(channels, out, **_kernel(draw, height, width), bias=draw(st.booleans()))
    return Case(module, (channels, height, width), draw(_images))


@st.composite
def transposed_convolutions(draw: Draw) -> Case:
    height, width = draw(_sides)
    channels, out = draw(_channels), draw(st.integers(1, 19))
    options = _kernel(draw, 9, 9)
    extent = [d * (k - 1) for d, k in zip(options["dilation"], options["kernel_size"], strict=True)]
    options["padding"] = tuple(min(p, e // 2) for p, e in zip(options["padding"], extent, strict=True))
    spare = [max(s, d) - 1 for s, d in zip(options["stride"], options["dilation"], strict=True)]
    options["output_padding"] = tuple(draw(st.integers(0, limit)) for limit in spare)
    module = nn.ConvTranspose2d(channels, out, **options, bias=draw(st.booleans()))
    return Case(module, (channels, height, width), draw(_images))


@st.composite
def linears(draw: Draw) -> Case:
    features = draw(st.integers(1, 40))
    module = nn.Linear(features, draw(st.integers(1, 40)), bias=draw(st.booleans()))
    return Case(module, (features,), draw(_images))


@st.composite
def normalizations(draw: Draw) -> Case:
    height, width = draw(_sides)
    groups, each = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    channels = groups * each
    affine = draw(st.booleans())
    # A single number is normalised to zero; its derivatives are rounding alone.
    height = max(height, 3) if channels * width < 3 else height
    trailing = [(channels, height, width)]
    trailing += [(height, width)] if height * width > 2 else []
    trailing += [(width,)] if width > 2 else []
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.LayerNorm(draw(st.sampled_from(trailing)), elementwise_affine=affine),
        lambda: nn.BatchNorm2d(channels, affine=affine),
    ]
    if height * width > 2:
        kinds.append(lambda: nn.InstanceNorm2d(channels, affine=affine))
    if each * height * width > 2:
        kinds.append(lambda: nn.GroupNorm(groups, channels, affine=affine))
    shape: tuple[int, ...] = (channels, height, width)
    if draw(st.booleans()):
        features = 3 * channels
        shape = (features,)
        kinds = [
            lambda: nn.LayerNorm(features, elementwise_affine=affine, bias=draw(st.booleans())),
            lambda: nn.BatchNorm1d(features, affine=affine),
            lambda: nn.GroupNorm(groups, features, affine=affine),
        ]
    module = draw(st.sampled_from(kinds))()
    _randomize(module)
    return Case(module, shape, max(3, draw(_images)))


ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU,
    nn.LeakyReLU,
    lambda: nn.LeakyReLU(0.2, inplace=True),
    nn.PReLU,
    nn.ELU,
    lambda: nn.ELU(0.7),
    nn.SiLU,
    nn.GELU,
    lambda: nn.GELU("tanh"),
    nn.Softplus,
    lambda: nn.Softplus(2.0, 1.5),
    nn.Tanh,
    nn.Sigmoid,
)
"""Builders of the engine's activations; one entry for each set of constants."""


@st.composite
def activations(draw: Draw) -> Case:
    shape = draw(st.one_of(st.tuples(st.integers(1, 40)), st.tuples(_channels, *[st.integers(1, 7)] * 2)))
    channelwise = [lambda: nn.PReLU(shape[0])]
    return Case(draw(st.sampled_from([*ACTIVATIONS, *channelwise]))(), shape, draw(_images))


@st.composite
def resamplings(draw: Draw) -> Case:
    height, width = (size + 1 for size in draw(_sides))
    out = draw(_sides)
    kernel = draw(st.integers(1, min(3, height, width)))
    stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, kernel // 2))
    flags = {"ceil_mode": draw(st.booleans()), "count_include_pad": draw(st.booleans())}
    pads = [draw(st.integers(0, 1)) for _ in range(4)]
    modules: list[nn.Module] = [
        nn.Upsample(scale_factor=draw(st.integers(1, 3))),
        nn.Upsample(size=out),
        nn.Upsample(size=out, mode="bilinear", align_corners=draw(st.booleans())),
        nn.AvgPool2d(kernel, stride, padding, **flags),
        nn.AvgPool2d((1, kernel), divisor_override=3),
        nn.AdaptiveAvgPool2d(out),
        nn.ZeroPad2d(pads),
        nn.ReflectionPad2d(pads),
        nn.ReplicationPad2d(pads),
        Call(lambda x: x.mean((2, 3))),
        Call(lambda x: x.sum(dim=-1, keepdim=True)),
        Call(lambda x: torch.mean(x, 1, keepdim=True)),
    ]
    return Case(draw(st.sampled_from(modules)), (draw(_channels), height, width), draw(_images))


@st.composite
def rearrangements(draw: Draw) -> Case:
    groups, each = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    height, width = draw(_sides)
    channels = groups * each * 4
    modules = [
        nn.PixelShuffle(2),
        nn.Flatten(),
        nn.Sequential(nn.Flatten(), nn.Unflatten(1, (width, height, channels))),
        nn.ChannelShuffle(groups),
        Call(lambda x: x.view(x.size(0), groups, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape)),
        Call(lambda x: x.permute(0, 2, 3, 1)),
        Call(lambda x: torch.roll(x.flip(2), 1, 3)),
    ]
    module = nn.Sequential(Call(torch.tanh), draw(st.sampled_from(modules)))
    return Case(module, (channels, height, width), draw(_images))


@st.composite
def maximum_pools(draw: Draw) -> Case:
    height, width = (size + 2 for size in draw(_sides))
    kernel = draw(st.integers(1, 3))
    options = {"stride": draw(st.integers(1, 3)), "padding": draw(st.integers(0, kernel // 2))}
    if 2 * (kernel - 1) + 1 <= min(height, width):
        options["dilation"] = draw(st.integers(1, 2))
    module = nn.MaxPool2d(kernel, **options, ceil_mode=draw(st.booleans()))
    return Case(module, (draw(_channels), height, width), draw(_images))


_COMBINATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x + torch.tanh(x),
    lambda x: torch.sub(x, torch.tanh(x), alpha=3),
    lambda x: 2 * x - x / 3 + 1,
    lambda x: 1 - (-x) * 0.5,
    lambda x: x + x,
    lambda x: torch.rsub(x, 2.0),
    lambda x: x.add(x.sigmoid(), alpha=0.5).mul(2).sub(1).div(3),
    lambda x: torch.cat((x, torch.tanh(x), x), 1),
    lambda x: torch.cat((x, 2 * x), dim=-1),
)


@st.composite
def combinations(draw: Draw) -> Case:
    shape = draw(st.one_of(st.tuples(st.integers(1, 40)), st.tuples(_channels, *[st.integers(1, 7)] * 2)))
    return Case(Call(draw(st.sampled_from(_COMBINATIONS))), shape, draw(_images))


class Residual(nn.Module):
    """A residual block of two convolutions around a normalisation, then tied linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.GroupNorm(1, 3)
        self.second = nn.Conv2d(3, 2, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(24, 24) / 5)
        self.score = nn.Parameter(torch.randn(24))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.second(F.leaky_relu(self.norm(self.first(x)), 0.2))
        features = F.avg_pool2d(x + branch, (1, 1)).flatten(1)
        features = torch.tanh(F.linear(features, self.weight)) @ self.weight
        return features @ self.score


@st.composite
def whole_networks(draw: Draw) -> Case:
    return Case(Residual(), (2, 3, 4), draw(_images))


CASES = {
    "convolution": convolutions(),
    "transposed-convolution": transposed_convolutions(),
    "linear": linears(),
    "normalization": normalizations(),
    "activation": activations(),
    "resample": resamplings(),
    "permute": rearrangements(),
    "max-pool": maximum_pools(),
    "combine": combinations(),
    "whole": whole_networks(),
}


def _randomize(module: nn.Module) -> None:
    """Move parameters away from their initial ones and zeros."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
