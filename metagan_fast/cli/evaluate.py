"""`metagan-fast evaluate`: evaluate a run on held-out classes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .._utils.argument_types import imported, path, seed, whole
from ..distributed import job
from ..metrics import Evaluation, evaluate
from ..training import config as configuration
from ..training.features import feature_spaces
from ..training.report import write_if_possible
from ..training.run_folder import RunFolder
from . import options, ranks, streams, train
from .runs import add_checkpoint_option, open_run

_FULL_SHOTS = (1, 8)  # beside the headline's
_FULL_STEPS = (0.5, 2)  # times the headline's
_FULL_DRAWS = 3


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "evaluate",
        help="judge a run on classes that it has never seen",
        description=(
            "Adapt to held-out classes and compare with real images of the same class, in two feature spaces that "
            "were trained on training classes alone: KID per class (unbiased; lower is better), density, coverage, "
            "recognisability, diversity and copies, beside baselines. docs/evaluation.md tells what each means."
        ),
    )
    parser.add_argument("run_folder", metavar="RUN", type=path, help="a folder that train wrote")
    parser.add_argument("--split", choices=("test", "validation", "train"), default="test", help="default: %(default)s")
    parser.add_argument(
        "--full",
        action="store_true",
        help="1, 4 and 8 shots, several numbers of steps, three draws and a GAN of random weights, unless given "
        "otherwise: minutes in place of seconds",
    )
    for flag, read, default, text in (
        ("--shots", whole(1), None, "support images a class, the headline's first (default: as in validation)"),
        ("--steps", whole(0), None, "inner steps, the headline's first (default: as in training)"),
    ):
        parser.add_argument(flag, type=read, nargs="+", default=default, help=text)
    for flag, read, default, text in (
        ("--samples", whole(2), 64, "generated images a class and draw (default: %(default)s)"),
        (
            "--best-of",
            whole(1),
            1,
            "of how many generated images each one is the best by the discriminator (default: 1)",
        ),
        ("--draws", whole(1), None, "divisions of each class into support and references (default: 1)"),
        ("--seed", seed, 0, "of divisions, noise and samples (default: %(default)s)"),
    ):
        parser.add_argument(flag, type=read, default=default, help=text)
    parser.add_argument(
        "--features",
        type=feature_function,
        metavar="MODULE:FUNCTION",
        help="a feature space of your own beside the two: a function of images [n, C, H, W] in [-1, 1] that returns "
        "[n, d], in a module that Python finds from here",
    )
    add_checkpoint_option(parser)
    for option in options.PLACES:
        option.add_to(parser, "as in training")
    parser.add_argument("--per-class", action="store_true", help="print KID class by class too")
    ranks.add_option(parser, "the classes")
    parser.set_defaults(run=ranks.shared(run))


def feature_function(text: str) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Read `module:function`, and import it; the name is the function's."""
    name, function = imported(text, "MODULE:FUNCTION, such as my_features:embed")
    if not callable(function):
        raise argparse.ArgumentTypeError(f"expected {text} to be a function, got {type(function).__name__}")
    return name, function


def run(given: argparse.Namespace) -> int:
    """Evaluate, print a table, write `evaluation.json` and renew the report."""
    folder, record, learner = open_run(given.run_folder, given.checkpoint, process_group=job.group())
    if job.is_first():
        folder.check_evaluation()
        folder.check_writable()
    settings, tasks = train.reload_data(given, record)
    shots = given.shots or [configuration.build_training(settings).held_out_shots]
    steps = given.steps or [learner.inner.steps]
    random = None
    if given.full:
        shots = given.shots or [*shots, *_FULL_SHOTS]
        steps = given.steps or [*steps, 0, *(round(factor * steps[0]) for factor in _FULL_STEPS)]
        other_seed = (settings["seed"] + 1) % 2**64
        random = configuration.build_learner(settings, record["image_shape"], weights_seed=other_seed)
    display = ranks.progress()
    spaces: dict[str, Callable[[Tensor], Tensor]] = {
        **job.after_first(lambda: feature_spaces(folder, tasks.train, streams.say, display.part))
    }
    if given.features is not None:
        name, function = given.features
        spaces[name] = function
    evaluation = evaluate(
        learner,
        getattr(tasks, given.split),
        spaces,
        tasks=tasks,
        random=random,
        shots=shots,
        steps=steps,
        samples=given.samples,
        best_of=given.best_of,
        draws=given.draws or (_FULL_DRAWS if given.full else 1),
        seed=given.seed,
        progress=lambda done, total: display.part("adapting to held-out classes", done, total),
    )
    display.close()
    if not job.is_first():
        return 0
    report(evaluation, folder, given.split, learner.step, per_class=given.per_class)
    write_if_possible(folder, learner, tasks)
    return 0


def report(evaluation: Evaluation, folder: RunFolder, split: str, step: int, *, per_class: bool) -> None:
    """Print and write the evaluation."""
    folder.write_evaluation({**evaluation.to_dict(), "split": split, "meta_step": step})
    headline = f"{evaluation.shots[0]} shots, {evaluation.steps[0]} inner steps"
    print(f"{len(evaluation.classes)} {split} classes, {headline}, after {step} meta-steps\n\n{evaluation.table()}")
    if per_class:
        print(f"\nKID\n{evaluation.class_table()}")
    digests = {name: (digest or "your own")[:16] for name, digest in evaluation.settings["features"].items()}
    features = ", ".join(f"{name} {digest}" for name, digest in digests.items())
    print(
        f"\nfeatures: {features}; episodes {evaluation.settings['episodes'][:16]}; all figures in {folder.evaluation}"
    )
