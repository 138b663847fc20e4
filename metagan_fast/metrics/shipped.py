"""Feature networks of the package, trained on the embedded `glyphs` by `tools/feature_spaces`.

`weights/SHA256SUMS` lists the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .features import FeatureExtractor, images_digest
from .objectives import OBJECTIVES

if TYPE_CHECKING:
    from ..tasks import TaskDistribution

FOLDER = Path(__file__).parent / "weights"


def path(objective: str) -> Path:
    """Return the file of the network trained by an objective."""
    return FOLDER / f"glyphs-{objective}.safetensors"


def spaces(train: TaskDistribution) -> dict[str, FeatureExtractor] | None:
    """Return the networks by objective if they were trained on exactly these classes and images, else None."""
    found = {objective: FeatureExtractor.load(path(objective)) for objective in OBJECTIVES}
    sizes = [*train.image_shape, len(train.classes), sum(train.counts)]
    for features in found.values():  # spares most other data the hash
        if [*features.image_shape, features.record["classes"], features.record["images"]] != sizes:
            return None
    trained_on = images_digest(train)
    return found if all(features.record["images_sha256"] == trained_on for features in found.values()) else None
