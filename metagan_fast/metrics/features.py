"""Feature spaces of the metrics: small networks trained on the training classes, frozen."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import checkpoint
from .._utils import coerce
from .._utils.draws import draws_from_seed
from .._utils.tensors import every
from ..tasks.images import to_float
from .objectives import OBJECTIVES, Pool

if TYPE_CHECKING:
    from ..tasks import TaskDistribution

logger = logging.getLogger(__name__)


class FeatureExtractor:
    """Map from images to standardised features of a network that never saw the judged classes.

    Attributes:
        objective: by which the network was trained: "classifier" or "prototype".
        image_shape: (channels, height, width) of the images it takes.
        digest: SHA-256 of its weights; scores are comparable only for equal digests.
        record: training settings, plain data; `images_sha256` is the `images_digest` of what it was trained on.
    """

    def __init__(self, state: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        self.record = dict(record)
        self.objective: str = self.record.get("objective", "classifier")  # absent in older records
        channels, height, width = self.record["image_shape"]
        self.image_shape: tuple[int, int, int] = (channels, height, width)
        self._state = {name: tensor.detach().clone() for name, tensor in state.items()}
        network_class = OBJECTIVES[self.objective].network_class
        with torch.device("meta"):  # no random initialisation, which would advance the global generator
            self._network = network_class(channels)
        self._network.load_state_dict(self._state, assign=True)
        self._network.eval().requires_grad_(False)
        self._network.to(memory_format=network_class.memory_format)  # type: ignore[call-overload]
        self.digest = _digest(self._state)

    @classmethod
    def train(
        cls,
        distribution: TaskDistribution,
        objective: str = "classifier",
        *,
        steps: int = 400,
        batch_size: int = 64,
        seed: int = 0,
        report: Callable[[int, int], None] | None = None,
    ) -> FeatureExtractor:
        """Train on all images of a distribution, with Adam and a rate that falls along half a cosine.

        Args:
            distribution: the training classes.
            objective: "classifier", a plain network that tells all classes apart, or "prototype", a residual one for
                which images of a class lie near their mean (Snell et al. 2017, arXiv:1703.05175).
            steps: Adam's steps.
            batch_size: images a step.
            seed: of the weights and the draws; the global generator is left as it was.
            report: called after each step with the steps done and their total; an exception ends training.

        Raises:
            ValueError: unknown objective.
        """
        if objective not in OBJECTIVES:
            raise ValueError(f"expected an objective of {', '.join(OBJECTIVES)}; got {objective!r}")
        steps, batch_size = coerce.count("steps", steps, least=1), coerce.count("batch_size", batch_size, least=1)
        seed = coerce.count("seed", seed)
        classes = distribution.classes
        pools = [torch.as_tensor(distribution.images(name)) for name in classes]
        pool = Pool(torch.cat(pools), torch.tensor([len(images) for images in pools]))
        draws = torch.Generator().manual_seed(seed)
        with draws_from_seed(seed):
            model = OBJECTIVES[objective](pool.images.shape[1], len(classes))
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        correct = 0.0
        for step in range(steps):
            scores, labels = model(pool, batch_size, draws)
            loss = F.cross_entropy(scores, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            correct = 0.95 * correct + 0.05 * (scores.argmax(1) == labels).double().mean().item()
            if report is not None:
                report(step + 1, steps)
        record = {
            "objective": objective,
            "image_shape": list(pool.images.shape[1:]),
            "classes": len(classes),
            "images": len(pool.images),
            "images_sha256": images_digest(distribution),
            "steps": steps,
            "batch_size": batch_size,
            "seed": seed,
            "training_accuracy": round(correct / (1 - 0.95**steps), 4),
        }
        model.network.eval().standardise(to_float(pool.images[every(len(pool.images), 4096)]))
        logger.info("trained a feature network: %s", record)
        return cls(model.network.state_dict(), record)

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
        return self._network.in_parts(flat).view(*images.shape[:-3], -1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and record to one checkpoint file."""
        checkpoint.write(path, self._state, {"features": self.record})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureExtractor:
        """Read a file that `save` wrote; CheckpointError for another file."""
        state, metadata = checkpoint.read(path)
        with checkpoint.contents_of(f"the feature network of {path} (delete it to train one)"):
            return cls(state, metadata["features"])


def _digest(state: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return total.hexdigest()


def images_digest(distribution: TaskDistribution) -> str:
    """Return SHA-256 of the classes' names, in order, and of all images."""
    pools = [torch.as_tensor(distribution.images(name)).contiguous() for name in distribution.classes]
    shapes = [(name, *pool.shape) for name, pool in zip(distribution.classes, pools, strict=True)]
    total = hashlib.sha256(json.dumps(shapes).encode())
    for pool in pools:
        total.update(pool.numpy().data)
    return total.hexdigest()
