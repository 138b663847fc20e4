"""Networks of the feature spaces: images to standardised features.

Two architectures, so that a figure which holds in both does not rest on one network's habits.
"""

from __future__ import annotations

import itertools
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LARGEST_SIDE = 32  # larger images are average-pooled to this side, which bounds the time
_PART = 128  # images at once: their activations stay in a processor's cache


class FeatureNetwork(nn.Module):
    """Base: shrinks large images, embeds them, and standardises the embedding.

    Args:
        channels: of the images.

    Attributes:
        size: number of features.
        memory_format: the faster layout of its weights for embedding.
    """

    size: ClassVar[int]
    memory_format: ClassVar[torch.memory_format] = torch.contiguous_format
    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(self.size))
        self.register_buffer("scale", torch.ones(self.size))

    def embed(self, images: Tensor) -> Tensor:
        """Return `[n, size]` of images `[n, C, H, W]` of at most 32 pixels a side."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        if max(images.shape[-2:]) > _LARGEST_SIDE:
            factor = _LARGEST_SIDE / max(images.shape[-2:])
            height, width = (max(1, round(side * factor)) for side in images.shape[-2:])
            images = F.adaptive_avg_pool2d(images, (height, width))
        return (self.embed(images) - self.mean) * self.scale

    def in_parts(self, images: Tensor) -> Tensor:
        """Return the features of any number of images."""
        return torch.cat([self(part) for part in images.split(_PART)])

    @torch.no_grad()
    def standardise(self, images: Tensor) -> None:
        """Scale features to mean 0 and standard deviation 1 over `images`, so that KID weighs them equally."""
        features = self.in_parts(images)
        self.mean.copy_(features.mean(0))
        self.scale.copy_(1 / features.std(0).clamp_min(1e-3))


class PlainNetwork(FeatureNetwork):
    """Three convolutions with batch norm; features are mean and standard deviation of each output channel."""

    size = 96
    memory_format = torch.channels_last

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        sizes = (channels, 24, 48, 48)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in itertools.pairwise(sizes)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in sizes[1:])

    def embed(self, images: Tensor) -> Tensor:
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            images = F.relu(norm(convolution(images)))
            if index < 2 and min(images.shape[-2:]) >= 4:
                images = F.max_pool2d(images, 2)
        spread = (images.var((2, 3), unbiased=False) + 1e-5).sqrt()
        return torch.cat([images.mean((2, 3)), spread], 1)


class ResidualNetwork(FeatureNetwork):
    """Strided convolutions with a residual block after each but the first; features are means of output channels.

    Group norm and GELU before each convolution but the first (He et al. 2016, arXiv:1603.05027).
    """

    size = 64

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        sizes = (16, 32, self.size)
        self.stem = nn.Conv2d(channels, sizes[0], 5, padding=2, bias=False)
        self.strided = nn.ModuleList(_NormalisedConvolution(*pair) for pair in itertools.pairwise(sizes))
        self.blocks = nn.ModuleList(
            nn.Sequential(_NormalisedConvolution(size, size), _NormalisedConvolution(size, size)) for size in sizes[1:]
        )
        self.norm = _group_norm(self.size)

    def embed(self, images: Tensor) -> Tensor:
        images = F.conv2d(images, self.stem.weight, stride=_stride(images), padding=2)
        for strided, block in zip(self.strided, self.blocks, strict=True):
            images = strided(images, _stride(images))
            images = images + block(images)
        return F.gelu(self.norm(images)).mean((2, 3))


class _NormalisedConvolution(nn.Module):
    """Group norm, GELU, 3x3 convolution."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm = _group_norm(before)
        self.convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)

    def forward(self, images: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(F.gelu(self.norm(images)), self.convolution.weight, stride=stride, padding=1)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 8, channels)


def _stride(images: Tensor) -> int:
    """Return 1 for images that are small already."""
    return 2 if min(images.shape[-2:]) >= 4 else 1
