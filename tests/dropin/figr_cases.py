"""A small instance of FIGR's trainer on noise images, and files in FIGR-8's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from metagan_fast.dropin import figr
from support import join

SMALL = {"--height": "16", "--length": "8", "--hidden_size": "2", "--blocks": "2", "--inner_epochs": "3"}
KINDS = ("DCGAN", "ResNet")


class Noise:
    """A user-defined data set: uniform noise, redrawn at each call."""

    height, length = 16, 8

    def __init__(self, channels: int = 1) -> None:
        self.channels = channels
        self.images: list[Tensor] = []

    def sample_training_task(self, batch_size: int) -> tuple[Tensor, str]:
        generator = torch.Generator().manual_seed(len(self.images))
        self.images.append(torch.rand(batch_size, self.channels, self.height, self.length, generator=generator))
        return self.images[-1], "a task"

    sample_validation_task = sample_training_task


class Writer:
    """Record scalars and images meant for TensorBoard."""

    def __init__(self) -> None:
        self.scalars: dict[str, list[float]] = {}
        self.images: list[tuple[str, np.ndarray, int]] = []

    def add_scalar(self, name: str, value: float, episode: int) -> None:
        self.scalars.setdefault(name, []).append(value)

    def flush(self) -> None:
        pass

    def add_image(self, name: str, image: np.ndarray, episode: int) -> None:
        self.images.append((name, image, episode))


class Trainer(figr.FIGR):
    """Write no events."""

    def make_writer(self) -> Any:
        return Writer()


def make_trainer(kind: str = "DCGAN", trainer: type[figr.FIGR] = Trainer, channels: int = 1, **options: str) -> Any:
    given = SMALL | {"--neural_network": kind} | {f"--{name}": value for name, value in options.items()}
    return trainer(given, env=Noise(channels), device="cpu")


def vector(network: nn.Module) -> Tensor:
    return join(dict(network.named_parameters())).detach().double()


def drawing(number: int, height: int = 20, width: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width), dtype=np.uint8))


def write_figr8(classes: int = 52, images: int = 4) -> None:
    for number in range(classes):
        folder = Path(f"data/FIGR-8/Data/icon {number:02}")
        folder.mkdir(parents=True)
        for i in range(images):
            drawing(100 * number + i).save(folder / f"{i}.png")
