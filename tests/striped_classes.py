"""Toy data of tests: classes of bars, and a GAN that can learn a class's brightness alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import metagan_fast as mgf


class Bars:
    """Classes of 8x8 images: bars at one height, one period; each image has its own noise."""

    def __init__(self, classes: range, count: int = 24) -> None:
        self.classes = tuple(f"bars-{index}" for index in classes)
        self.counts = (count,) * len(classes)
        self._images = {}
        for name, index in zip(self.classes, classes, strict=True):
            noise = torch.Generator().manual_seed(index)
            image = torch.full((8, 8), 20.0)
            image[index % 8] = 220.0
            image[:, index // 8 % 8] = 220.0
            jitter = torch.randint(-20, 21, (count, 1, 8, 8), generator=noise)
            self._images[name] = (image + jitter).clamp(0, 255).to(torch.uint8)

    def images(self, name: str) -> Tensor:
        return self._images[name]


class Brightness(nn.Module):
    """A generator of flat images, which can learn a class's brightness alone."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor([start]))
        self.spread = nn.Parameter(torch.tensor([0.05]))

    def forward(self, latents: Tensor) -> Tensor:
        return torch.tanh(self.level + self.spread * latents[:, :1])[:, :, None, None].expand(-1, 1, 8, 8)


def learner(start: float = 0.0, lr: float = 0.05) -> mgf.MetaGAN:
    torch.manual_seed(0)
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    return mgf.MetaGAN(
        Brightness(start), discriminator, latent_dim=1, loss="wgan-gp", inner=mgf.InnerLoop(lr=lr, steps=8)
    )
