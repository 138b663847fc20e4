"""`metagan-fast adapt`: generate images of a new class from a few examples."""

from __future__ import annotations

import argparse
from typing import Any

from torch import Tensor

from .. import checkpoint
from .._utils.argument_types import path, whole
from ..display import image_grids
from ..tasks.contrast import evened, is_grey, is_opposite
from ..training.output_folder import OutputFolder
from . import streams
from .runs import add_checkpoint_option, add_run_argument, add_sample_options, open_run, output_root

_BOTH = "support_above_generated.png"
_WEIGHTS = "adapted.safetensors"


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "adapt",
        help="generate images of a new class from a few examples",
        description="Adapt a run's GAN to the images of a folder and write generated ones as PNG files.",
    )
    add_run_argument(parser)
    parser.add_argument("folder", metavar="FOLDER", type=path, help="a folder of a few images of one class")
    parser.add_argument("--steps", type=whole(0), help="inner steps (default: as in training)")
    parser.add_argument("--save-weights", action="store_true", help="write the adapted networks, for sample --weights")
    parser.add_argument(
        "--export",
        type=path,
        metavar="FILE",
        help="write the adapted generator for other programs: .pt2 (torch.export) or .onnx",
    )
    parser.add_argument(
        "--invert",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="exchange black and white (default: as in training; the other way if light and dark are exchanged here)",
    )
    parser.add_argument(
        "--even",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="even out the background and stretch the contrast (default: if it is grey and the run's data's is not)",
    )
    add_checkpoint_option(parser)
    add_sample_options(parser, 16)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Adapt to the images and write generated ones."""
    from ..learner.export import check as check_export
    from ..tasks import read_images

    if given.export is not None:
        check_export(given.export)
    default = output_root(given.run_folder) / "adapted" / given.folder.resolve().name
    out = OutputFolder(given.out or default, "adapt")
    out.check([*image_grids.sample_names(given.samples), _BOTH, *([_WEIGHTS] if given.save_weights else [])])
    if out.path.resolve() == given.folder.resolve():
        raise ValueError(
            f"{out.path} holds the examples, and generated images in it would be taken for more of them: "
            "choose another folder with --out"
        )
    _, record, learner = open_run(given.run_folder, given.checkpoint)
    channels, height, width = record["image_shape"]
    support = read_images(
        given.folder,
        image_size=(height, width),
        channels=channels,
        invert=record["settings"]["data"]["invert"] if given.invert is None else given.invert,
    )
    support = like_the_data(support, record.get("contrast"), given.invert, given.even)
    adapted = learner.adapt(support, steps=given.steps)
    samples = adapted.sample(given.samples, seed=given.seed, best_of=given.best_of)
    files = image_grids.sample_files(samples)
    files[_BOTH] = image_grids.grid_png(image_grids.task_grid(support[None], samples[None]), support.shape[-1])
    if given.save_weights:
        tensors = {f"generator.{name}": value for name, value in adapted.generator.state_dict().items()}
        tensors |= {f"discriminator.{name}": value for name, value in adapted.discriminator.state_dict().items()}
        files[_WEIGHTS] = checkpoint.to_bytes(tensors, {"adapted": {"run": str(given.run_folder)}})
    out.write(files)
    if given.export is not None:
        adapted.export(given.export)
        streams.say(f"the adapted generator: {given.export}, {given.export.stat().st_size / 1e6:.1f} MB")
    picture = out.path / image_grids.SAMPLE_GRID
    print(f"adapted to {len(support)} images; {len(samples)} generated ones in {out.path}, all in {picture}")
    return 0


def like_the_data(support: Tensor, contrast: float | None, invert: bool | None, even: bool | None) -> Tensor:
    """Return images with the contrast and the background of a run's data; a line says what was changed.

    Args:
        support: `[n, channels, height, width]`.
        contrast: of the run's data; None: not recorded or not clear.
        invert, even: as asked for; None: where the images need it.
    """
    if invert is None and contrast is not None and is_opposite(support, contrast):
        support = -support
        kinds = ("dark on light", "light on dark")
        theirs, usual = kinds if contrast > 0 else kinds[::-1]
        streams.say(f"the images are {theirs}, the run's data {usual}: inverted (--no-invert leaves them)")
    if even is None and is_grey(support, contrast):
        even = True
        streams.say("the images have a grey background, the run's data have not: evened out (--no-even leaves it)")
    if not even:
        return support
    if contrast is None:
        raise ValueError("--even needs a run whose data have a plain background; leave it out")
    return evened(support, contrast)
