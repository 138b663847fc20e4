"""`metagan-fast adapt` and `metagan-fast sample`: what a trained run is for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint
from .._utils.argument_types import path, seed, whole
from ..learner.metagan import MetaGAN
from ..training import config as configuration
from ..training import image_grids
from ..training.output_folder import OutputFolder
from ..training.run_folder import RunFolder

_BOTH = "support_above_generated.png"
_WEIGHTS = "adapted.safetensors"


def add_parsers(subparsers: Any) -> None:
    """Declare the two commands."""
    adapt = subparsers.add_parser(
        "adapt",
        help="generate images of a new class from a few examples",
        description="Adapt a run's GAN to the images of a folder and write generated ones as PNG files.",
    )
    adapt.add_argument("run_folder", metavar="RUN", type=path, help="a folder that train wrote")
    adapt.add_argument("folder", metavar="FOLDER", type=path, help="a folder of a few images of one class")
    adapt.add_argument("--steps", type=whole(0), help="inner steps (default: as in training)")
    adapt.add_argument("--save-weights", action="store_true", help="write the adapted networks, for sample --weights")
    adapt.set_defaults(run=run_adapt)
    sample = subparsers.add_parser(
        "sample",
        help="generate images from the initialisation or from adapted networks",
        description="Write images of a run's initialisation, or of networks that adapt --save-weights wrote.",
    )
    sample.add_argument("run_folder", metavar="RUN", type=path, help="a folder that train wrote")
    sample.add_argument("--weights", type=path, help="adapted networks (default: the initialisation)")
    sample.set_defaults(run=run_sample)
    for parser, count in ((adapt, 16), (sample, 64)):
        parser.add_argument(
            "--out",
            type=path,
            help="where the PNG files go, in place of those that this command wrote there (default: a folder in RUN)",
        )
        parser.add_argument("--samples", type=whole(1), default=count, help="images (default: %(default)s)")
        parser.add_argument("--seed", type=seed, default=0, help="of the latents (default: %(default)s)")


def open_run(path: Path) -> tuple[RunFolder, dict[str, Any], MetaGAN]:
    """Return a run's folder, its record and its learner at the newest checkpoint."""
    folder = RunFolder.open(path)
    record = folder.read_config()
    with checkpoint.contents_of(folder.config):
        if not torch.cuda.is_available():
            record["settings"]["device"] = "cpu"
        learner = configuration.build_learner(record["settings"], record["image_shape"])
    learner.load_state(*folder.latest())
    return folder, record, learner


def run_adapt(given: argparse.Namespace) -> int:
    """Adapt and generate."""
    from ..tasks import read_images

    out = OutputFolder(given.out or given.run_folder / "adapted" / given.folder.resolve().name, "adapt")
    out.check([*image_grids.sample_names(given.samples), _BOTH, *([_WEIGHTS] if given.save_weights else [])])
    if out.path.resolve() == given.folder.resolve():
        raise ValueError(
            f"{out.path} holds the examples, and generated images in it would be taken for more of them: "
            "choose another folder with --out"
        )
    _, record, learner = open_run(given.run_folder)
    channels, height, width = record["image_shape"]
    support = read_images(
        given.folder,
        image_size=(height, width),
        channels=channels,
        invert=record["settings"]["data"]["invert"],
    )
    adapted = learner.adapt(support, steps=given.steps)
    samples = adapted.sample(given.samples, seed=given.seed)
    files = image_grids.sample_files(samples)
    files[_BOTH] = image_grids.grid_png(image_grids.task_grid(support[None], samples[None]), support.shape[-1])
    if given.save_weights:
        tensors = {f"generator.{name}": value for name, value in adapted.generator.state_dict().items()}
        tensors |= {f"discriminator.{name}": value for name, value in adapted.discriminator.state_dict().items()}
        files[_WEIGHTS] = checkpoint.to_bytes(tensors, {"adapted": {"run": str(given.run_folder)}})
    out.write(files)
    picture = out.path / image_grids.SAMPLE_GRID
    print(f"adapted to {len(support)} images; {len(samples)} generated ones in {out.path}, all in {picture}")
    return 0


def run_sample(given: argparse.Namespace) -> int:
    """Generate."""
    default = "initialisation" if given.weights is None else f"sampled-{given.weights.stem}"
    out = OutputFolder(given.out or given.run_folder / default, "sample")
    out.check(image_grids.sample_names(given.samples))
    _, record, learner = open_run(given.run_folder)
    if given.weights is not None:
        load_weights(learner, given.weights)
    blank = torch.zeros(1, *record["image_shape"])
    samples = learner.adapt(blank, steps=0).sample(given.samples, seed=given.seed)
    out.write(image_grids.sample_files(samples))
    print(f"{len(samples)} images in {out.path}, all in {out.path / image_grids.SAMPLE_GRID}")
    return 0


def load_weights(learner: MetaGAN, path: Path) -> None:
    """Put adapted networks in the place of the initialisation.

    Raises:
        CheckpointError: the file is not what `adapt --save-weights` wrote for these networks.
    """
    tensors, metadata = checkpoint.read(path)
    with checkpoint.contents_of(f"{path}, which should be what adapt --save-weights wrote for this run"):
        if "adapted" not in metadata:
            raise ValueError("it holds no adapted networks")
        for role in ("generator", "discriminator"):
            state = {name.removeprefix(f"{role}."): t for name, t in tensors.items() if name.startswith(f"{role}.")}
            getattr(learner, role).load_state_dict(state)
