"""Episodes of an evaluation: which images of each held-out class are support, which are references."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .._utils import coerce
from .features import images_digest

if TYPE_CHECKING:
    from ..tasks import TaskDistribution

RECORDED = Path(__file__).parent / "recorded"
"""Recorded episodes of the embedded data: one JSON file for each held-out part."""

_DRAW_STRIDE = 1_000_003  # between the seeds of two draws; more than any number of classes


@dataclass(frozen=True)
class Episode:
    """Division of one class's images, as indices into `TaskDistribution.images`; the three parts are disjoint.

    Attributes:
        support: images to adapt to; K shots are the first K.
        references: images that samples are compared with.
        others: as many further images, whose distance to the references is the floor.
    """

    support: tuple[int, ...]
    references: tuple[int, ...]
    others: tuple[int, ...]


@dataclass(frozen=True)
class Episodes:
    """Episodes of all classes, several times over.

    Attributes:
        classes: names of the classes.
        draws: in each draw one episode a class.

    Example:
        >>> from metagan_fast import tasks
        >>> from metagan_fast.metrics import Episodes
        >>> episodes = Episodes.draw(tasks.load("glyphs").test, draws=1)
        >>> len(episodes.classes), len(episodes.draws[0][0].support), len(episodes.draws[0][0].references)
        (62, 8, 20)
    """

    classes: tuple[str, ...]
    draws: tuple[tuple[Episode, ...], ...]

    @classmethod
    def draw(cls, distribution: TaskDistribution, *, shots: int = 8, draws: int = 3, seed: int = 0) -> Episodes:
        """Divide each class at random, `draws` times.

        Args:
            distribution: the classes; those with fewer than `shots` + 4 images are left out.
            shots: support images a class.
            draws: divisions of each class.
            seed: of the divisions.

        Raises:
            ValueError: no class has enough images.
        """
        shots, draws = coerce.count("shots", shots, least=1), coerce.count("draws", draws, least=1)
        seed = coerce.count("seed", seed)
        sizes = {name: n for name, n in zip(distribution.classes, distribution.counts, strict=True) if n >= shots + 4}
        if not sizes:
            raise ValueError(
                f"expected classes of at least {shots + 4} images ({shots} shots, 2 references, 2 for the floor), got "
                "none; use fewer shots"
            )
        return cls(
            tuple(sizes),
            tuple(
                tuple(_divide(n, shots, seed + _DRAW_STRIDE * draw + index) for index, n in enumerate(sizes.values()))
                for draw in range(draws)
            ),
        )

    @classmethod
    def recorded(cls, distribution: TaskDistribution) -> Episodes | None:
        """Return the episodes recorded for exactly these classes and images, or None."""
        digest = images_digest(distribution)
        for path in sorted(RECORDED.glob("*.json")):
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["images"] == digest:
                return cls.from_dict(content)
        return None

    @property
    def shots(self) -> int:
        """Support images of a class."""
        return len(self.draws[0][0].support)

    @property
    def digest(self) -> str:
        """SHA-256 of classes and divisions; figures are comparable only for equal digests."""
        return hashlib.sha256(json.dumps(self.to_dict(), separators=(",", ":")).encode()).hexdigest()

    def first(self, draws: int) -> Episodes:
        """Return the first `draws` draws; ValueError if there are fewer."""
        if not 1 <= draws <= len(self.draws):
            raise ValueError(f"expected 1 to {len(self.draws)} draws, got {draws}; Episodes.draw makes more")
        return Episodes(self.classes, self.draws[:draws])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data."""
        divisions = [[[e.support, e.references, e.others] for e in draw] for draw in self.draws]
        return {"classes": list(self.classes), "draws": divisions}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Episodes:
        """Read what `to_dict` returned; ValueError for other data."""
        try:
            classes = tuple(content["classes"])
            draws = tuple(tuple(Episode(*map(_indices, division)) for division in draw) for draw in content["draws"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected recorded episodes, got other data ({error!r})") from error
        if not draws or not classes or any(len(draw) != len(classes) for draw in draws):
            raise ValueError("expected recorded episodes, got other data (not one division a class)")
        if not all(isinstance(name, str) for name in classes):
            raise ValueError("expected recorded episodes, got other data (names that are no text)")
        return cls(classes, draws)


def _indices(numbers: Any) -> tuple[int, ...]:
    if not isinstance(numbers, list | tuple):
        raise TypeError(f"{type(numbers).__name__} for a list")
    return tuple(coerce.count("an image's index", number) for number in numbers)


def _divide(count: int, shots: int, seed: int) -> Episode:
    order: Sequence[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    half = (count - shots) // 2
    return Episode(tuple(order[:shots]), tuple(order[shots : shots + half]), tuple(order[shots + half :][:half]))
