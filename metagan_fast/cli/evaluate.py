"""`metagan-fast evaluate`: evaluate a run on held-out classes."""

from __future__ import annotations

import argparse
from typing import Any

from .._utils.argument_types import path, seed, whole
from ..metrics import Evaluation, evaluate
from ..training import config as configuration
from ..training.features import feature_classifier
from ..training.report import write_if_possible
from ..training.run_folder import RunFolder
from . import options, progress, streams, train
from .runs import add_checkpoint_option, open_run


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "evaluate",
        help="judge a run on classes that it has never seen",
        description=(
            "Adapt to held-out classes and compare with real images: KID per class (unbiased, in the feature "
            "space of a small classifier of the training classes), a pooled FID (it cannot see images of the "
            "wrong class) and the distance to the nearest support image (near 0: copies)."
        ),
    )
    parser.add_argument("run_folder", metavar="RUN", type=path, help="a folder that train wrote")
    parser.add_argument("--split", choices=("test", "validation", "train"), default="test", help="default: %(default)s")
    for flag, read, default, text in (
        ("--shots", whole(1), None, "support images a class (default: as in the run's validation)"),
        ("--samples", whole(1), 64, "generated images a class and draw (default: %(default)s)"),
        ("--draws", whole(1), 3, "how often each class is divided into support and references (default: %(default)s)"),
        ("--steps", whole(0), None, "inner steps (default: as in training)"),
        ("--seed", seed, 0, "of divisions, noise and samples (default: %(default)s)"),
    ):
        parser.add_argument(flag, type=read, default=default, help=text)
    add_checkpoint_option(parser)
    for option in options.PLACES:
        option.add_to(parser, "as in training")
    parser.add_argument("--per-class", action="store_true", help="print KID class by class too")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Evaluate, print a table, write `evaluation.json` and renew the report."""
    folder, record, learner = open_run(given.run_folder, given.checkpoint)
    folder.check_evaluation()
    folder.check_writable()
    settings, tasks = train.reload_data(given, record)
    other_seed = (settings["seed"] + 1) % 2**64
    evaluation = evaluate(
        learner,
        getattr(tasks, given.split),
        feature_classifier(folder, tasks.train, streams.say, progress.make().part),
        random=configuration.build_learner(settings, record["image_shape"], weights_seed=other_seed),
        shots=given.shots or configuration.build_training(settings).held_out_shots,
        samples=given.samples,
        draws=given.draws,
        steps=given.steps,
        most_tasks=1 if learner.inner.inner_state == "persist" else 16,
        seed=given.seed,
    )
    report(evaluation, folder, given.split, learner.step, per_class=given.per_class)
    write_if_possible(folder, learner, tasks)
    return 0


def report(evaluation: Evaluation, folder: RunFolder, split: str, step: int, *, per_class: bool) -> None:
    """Print and write the evaluation."""
    folder.write_evaluation({**evaluation.to_dict(), "split": split, "meta_step": step})
    print(f"{len(evaluation.classes)} {split} classes, after {step} meta-steps\n\n{evaluation.table()}")
    if per_class:
        print(f"\nKID\n{evaluation.class_table()}")
    print(f"\nfeatures {evaluation.settings['features'][:16]}; all figures in {folder.evaluation}")
