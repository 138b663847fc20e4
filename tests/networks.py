"""Small GANs and task batches that several test files share."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import metagan_fast as mgf

Gan = tuple[nn.Module, nn.Module]


def tiny_gan(latent_dim: int = 6) -> Gan:
    """Return smooth networks for 8x8 images with a convolution, a normalisation and every parameter in use."""
    generator = nn.Sequential(
        nn.Linear(latent_dim, 4 * 4 * 4),
        nn.Unflatten(1, (4, 4, 4)),
        nn.LayerNorm([4, 4, 4]),
        nn.SiLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(4, 1, 3, padding=1),
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3 * 16, 1)
    )
    return generator, discriminator


def batch_norm_dcgan() -> Gan:
    """Return the classic DCGAN with batch norm and transposed convolutions, for 16x16 images and 8 latents."""
    return mgf.models.classic_dcgan(image_size=16, channels=1, width=4, latent_dim=8)


def tiny_batch(
    tasks: int = 3, shots: int = 3, query: int = 2, image_shape: tuple[int, int, int] = (1, 8, 8), first_task: int = 0
) -> mgf.TaskBatch:
    """Return a batch of uniform noise images."""
    images = torch.rand(tasks, shots + query, *image_shape) * 2 - 1
    return mgf.TaskBatch(images[:, :shots], images[:, shots:] if query else None, first_task=first_task)


class ConstantGenerator(nn.Module):
    """Return one learned image for any latent."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image = nn.Parameter(torch.randn(image_shape))

    def forward(self, latents: Tensor) -> Tensor:
        return self.image.expand(latents.shape[0], *self.image.shape)


class BilinearDiscriminator(nn.Module):
    """Score an image by its inner product with a learned vector."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


def normalise(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """Return x with mean 0 and variance 1 over `dims`, from elementary operations, right to any derivative."""
    centred = x - x.mean(dims, keepdim=True)
    return centred / (centred.pow(2).mean(dims, keepdim=True) + eps).pow(0.5)


class LayerNormByHand(nn.LayerNorm):
    """A layer norm from elementary operations."""

    def forward(self, x: Tensor) -> Tensor:
        dims = tuple(range(-len(self.normalized_shape), 0))
        return normalise(x, dims, self.eps) * self.weight + self.bias


class BatchNormByHand(nn.BatchNorm2d):
    """A batch norm from elementary operations, with the batch's statistics."""

    def forward(self, x: Tensor) -> Tensor:
        return normalise(x, (0, 2, 3), self.eps) * self.weight[:, None, None] + self.bias[:, None, None]


class InstanceNormByHand(nn.InstanceNorm2d):
    """An instance norm from elementary operations."""

    def forward(self, x: Tensor) -> Tensor:
        return normalise(x, (2, 3), self.eps) * self.weight[:, None, None] + self.bias[:, None, None]


_BY_HAND = {nn.LayerNorm: LayerNormByHand, nn.BatchNorm2d: BatchNormByHand, nn.InstanceNorm2d: InstanceNormByHand}


def with_norms_by_hand(module: nn.Module) -> nn.Module:
    """Return a copy that normalises by hand: third derivatives of torch 2.13's own norms are wrong."""
    module = copy.deepcopy(module)
    for part in module.modules():
        part.__class__ = _BY_HAND.get(type(part), type(part))
    return module
