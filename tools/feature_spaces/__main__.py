"""Train the feature networks of the package: `python tools/feature_spaces` in the checkout."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from metagan_fast import tasks
from metagan_fast.metrics import FeatureExtractor, shipped
from metagan_fast.metrics.objectives import OBJECTIVES
from metagan_fast.tasks.images import to_float
from metagan_fast.training.presets import DEFAULT

CHOSEN = {"classifier": (4000, 64), "prototype": (2000, 256)}
"""Steps and images a step; README.md says why."""

SHOTS = 4


def main() -> None:
    """Train, measure on the validation scripts, and write weights and hashes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=shipped.FOLDER, help="default: %(default)s")
    for objective in OBJECTIVES:
        parser.add_argument(f"--{objective}", type=int, nargs=2, metavar=("STEPS", "BATCH"), default=CHOSEN[objective])
    given = parser.parse_args()
    torch.set_num_threads(1)  # sums in the order in which the package's files were made
    data = tasks.load("glyphs", image_size=DEFAULT["data"]["image_size"], min_images=DEFAULT["data"]["min_images"])
    given.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for objective in OBJECTIVES:
        steps, batch_size = getattr(given, objective)
        features = FeatureExtractor.train(data.train, objective, steps=steps, batch_size=batch_size)
        embedded = [features(to_float(data.validation.images(name))) for name in data.validation.classes]
        ways = {"20-way": (20, 200), f"{len(embedded)}-way": (len(embedded), 50)}
        accuracies = {name: round(nearest_prototype(embedded, *sizes), 4) for name, sizes in ways.items()}
        features.record["validation_accuracy"] = accuracies
        path = given.out / shipped.path(objective).name
        features.save(path)
        content = path.read_bytes()
        lines.append(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")
        shown = ", ".join(f"{name} {value:.2%}" for name, value in accuracies.items())
        print(f"{path.name}: {len(content):,} bytes, {steps} steps of {batch_size} images; {shown}", flush=True)
    (given.out / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def nearest_prototype(embedded: Sequence[Tensor], ways: int, episodes: int) -> float:
    """Return the mean accuracy over episodes of classes drawn anew, each divided anew.

    All images of a class but `SHOTS` go to the nearest mean of `SHOTS` features; classes count equally.
    """
    accuracies = []
    for episode in range(episodes):
        draws = torch.Generator().manual_seed(episode)
        chosen = torch.randperm(len(embedded), generator=draws)[:ways].tolist()
        orders = [torch.randperm(len(embedded[index]), generator=draws) for index in chosen]
        divided = [
            (embedded[index][order[:SHOTS]], embedded[index][order[SHOTS:]])
            for index, order in zip(chosen, orders, strict=True)
        ]
        prototypes = torch.stack([support.mean(0) for support, _ in divided])
        accuracies += [
            (torch.cdist(queries, prototypes).argmin(1) == way).double().mean().item()
            for way, (_, queries) in enumerate(divided)
        ]
    return sum(accuracies) / len(accuracies)


if __name__ == "__main__":
    main()
