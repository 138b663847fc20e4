"""Images that break while training goes on, with and without the cache of decoded images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_trainer import make_learner

import metagan_fast as mgf
from metagan_fast.training.outer_loop import Training
from metagan_fast.training.run_folder import RunFolder
from metagan_fast.training.trainer import Trainer


class Breaker:
    """Logger that damages an image after the first meta-step."""

    def __init__(self, image: Path) -> None:
        self.image = image

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.image.write_bytes(b"no image")

    def log_images(self, step: int, name: str, image: Any) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("cached", [False, True])
def test_an_image_that_breaks_during_training(tmp_path: Path, cached: bool) -> None:
    """The run ends with the bytes of one whose images stay whole; the next start names the image or leaves it out."""
    tree, cache = tmp_path / "tree", tmp_path / "cache" if cached else False
    for number in range(12):
        place = tree / "abc"[number % 3] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 20 * number).save(place)

    def train(name: str, loggers: list[Any]) -> bytes:
        data = mgf.tasks.load(tree, cache=cache, split=(1.0, 0.0, 0.0))
        folder = RunFolder.create(tmp_path / name)
        Trainer(make_learner(), data, folder, Training(6, tasks=2, shots=2, log_every=1), loggers=loggers).run()
        return (folder.checkpoints / "latest.safetensors").read_bytes()

    whole = train("whole", [])
    assert train("broken", [Breaker(tree / "a" / "0.png")]) == whole
    with pytest.raises(ValueError, match=r"a/0\.png"):
        mgf.tasks.load(tree, cache=cache)
    left = mgf.tasks.load(tree, cache=cache, split=(1.0, 0.0, 0.0), skip_broken=True).train
    assert dict(zip(left.classes, left.counts, strict=True)) == {"a": 3, "b": 4, "c": 4}
