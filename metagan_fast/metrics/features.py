"""Feature space of the metrics: a small classifier of the training classes, frozen."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import checkpoint
from .._utils import coerce
from .._utils.draws import draws_from_seed
from .._utils.tensors import every
from ..tasks.images import to_float

if TYPE_CHECKING:
    from ..tasks import TaskDistribution

logger = logging.getLogger(__name__)

_LARGEST_SIDE = 32  # larger images are average-pooled to this side, which bounds the time
_WIDTH = 24
_FEATURES = 4 * _WIDTH


class FeatureExtractor:
    """Map from images to standardised features of a classifier that never saw the judged classes.

    Attributes:
        image_shape: (channels, height, width) of the images it takes.
        digest: SHA-256 of its weights; scores are comparable only for equal digests.
        record: training settings, plain data.
    """

    def __init__(self, state: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        self.record = dict(record)
        channels, height, width = self.record["image_shape"]
        self.image_shape: tuple[int, int, int] = (channels, height, width)
        self._state = {name: tensor.detach().clone() for name, tensor in state.items()}
        with torch.device("meta"):  # no random initialisation, which would advance the global generator
            self._network = _Features(channels)
        self._network.load_state_dict(self._state, assign=True)
        self._network.eval().requires_grad_(False)
        self.digest = _digest(self._state)

    @classmethod
    def train(
        cls,
        distribution: TaskDistribution,
        *,
        steps: int = 400,
        batch_size: int = 64,
        seed: int = 0,
        report: Callable[[int, int], None] | None = None,
    ) -> FeatureExtractor:
        """Train on all images of a distribution, with Adam and a rate that falls along half a cosine.

        Args:
            distribution: the training classes.
            steps: Adam's steps.
            batch_size: images a step, drawn uniformly by class and then by image.
            seed: of the weights and the draws; the global generator is left as it was.
            report: called after each step with the steps done and their total; an exception ends training.
        """
        steps, batch_size = coerce.count("steps", steps, least=1), coerce.count("batch_size", batch_size, least=1)
        seed = coerce.count("seed", seed)
        classes = distribution.classes
        pools = [torch.as_tensor(distribution.images(name)) for name in classes]
        counts = torch.tensor([len(pool) for pool in pools])
        images, starts = torch.cat(pools), counts.cumsum(0) - counts
        channels = images.shape[1]
        draws = torch.Generator().manual_seed(seed)
        with draws_from_seed(seed):
            features, head = _Features(channels), nn.Linear(_FEATURES, len(classes))
        optimizer = torch.optim.Adam([*features.parameters(), *head.parameters()], lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        correct = 0.0
        for step in range(steps):
            labels = torch.randint(len(classes), (batch_size,), generator=draws)
            offsets = (torch.rand(batch_size, generator=draws) * counts[labels]).long()
            scores = head(features(to_float(images[starts[labels] + offsets])))
            loss = F.cross_entropy(scores, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            correct = 0.95 * correct + 0.05 * (scores.argmax(1) == labels).double().mean().item()
            if report is not None:
                report(step + 1, steps)
        record = {
            "image_shape": list(images.shape[1:]),
            "classes": len(classes),
            "images": len(images),
            "steps": steps,
            "batch_size": batch_size,
            "seed": seed,
            "training_accuracy": round(correct / (1 - 0.95**steps), 4),
        }
        features.eval().standardise(to_float(images[every(len(images), 4096)]))
        logger.info("trained the feature classifier: %s", record)
        return cls(features.state_dict(), record)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return features `[..., d]`, float32, of images `[..., C, H, W]` in [-1, 1].

        Raises:
            ValueError: images of another shape than it was trained on.
        """
        if tuple(images.shape[-3:]) != self.image_shape:
            raise ValueError(
                f"expected images {list(self.image_shape)}, got {list(images.shape[-3:])}; "
                "train features on such images"
            )
        flat = images.reshape(-1, *self.image_shape).float()
        features = torch.cat([self._network(part) for part in flat.split(512)])
        return features.view(*images.shape[:-3], -1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and record to one checkpoint file."""
        checkpoint.write(path, self._state, {"features": self.record})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureExtractor:
        """Read a file that `save` wrote; CheckpointError for another file."""
        state, metadata = checkpoint.read(path)
        with checkpoint.contents_of(f"the feature classifier of {path} (delete it to train one)"):
            return cls(state, metadata["features"])


class _Features(nn.Module):
    """Three convolutions with batch norm; features are mean and standard deviation of each output channel."""

    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        sizes = (channels, _WIDTH, 2 * _WIDTH, 2 * _WIDTH)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in itertools.pairwise(sizes)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in sizes[1:])
        self.register_buffer("mean", torch.zeros(_FEATURES))
        self.register_buffer("scale", torch.ones(_FEATURES))

    def forward(self, images: Tensor) -> Tensor:
        if max(images.shape[-2:]) > _LARGEST_SIDE:
            factor = _LARGEST_SIDE / max(images.shape[-2:])
            height, width = (max(1, round(side * factor)) for side in images.shape[-2:])
            images = F.adaptive_avg_pool2d(images, (height, width))
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            images = F.relu(norm(convolution(images)))
            if index < 2 and min(images.shape[-2:]) >= 4:
                images = F.max_pool2d(images, 2)
        spread = (images.var((2, 3), unbiased=False) + 1e-5).sqrt()
        return (torch.cat([images.mean((2, 3)), spread], 1) - self.mean) * self.scale

    @torch.no_grad()
    def standardise(self, images: Tensor) -> None:
        """Scale features to mean 0 and standard deviation 1 over `images`, so that KID weighs them equally."""
        features = torch.cat([self(part) for part in images.split(512)])
        self.mean.copy_(features.mean(0))
        self.scale.copy_(1 / features.std(0).clamp_min(1e-3))


def _digest(state: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return total.hexdigest()
