"""`metagan-fast evaluate`, `metagan-fast bench` and `metagan-fast info`."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
from typing import Any

import torch

from .. import _native, _source_tree
from .._utils.argument_types import path, seed, whole
from ..metrics import Evaluation, FeatureExtractor, evaluate
from ..ops import _dispatch
from ..tasks import Tasks
from ..training import config as configuration
from ..training.run_folder import RunFolder
from . import options, streams, train
from .use import open_run


def add_parsers(subparsers: Any) -> None:
    """Declare the three commands."""
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
        ("--shots", whole(1), None, "support images a class (default: as in training)"),
        ("--samples", whole(1), 64, "generated images a class and draw (default: %(default)s)"),
        ("--draws", whole(1), 3, "how often each class is divided into support and references (default: %(default)s)"),
        ("--steps", whole(0), None, "inner steps (default: as in training)"),
        ("--seed", seed, 0, "of divisions, noise and samples (default: %(default)s)"),
    ):
        parser.add_argument(flag, type=read, default=default, help=text)
    for option in options.PLACES:
        option.add_to(parser, "as in training")
    parser.add_argument("--per-class", action="store_true", help="print KID class by class too")
    parser.set_defaults(run=run_evaluate)
    bench = subparsers.add_parser("bench", help="time this machine against plain PyTorch", add_help=False)
    bench.set_defaults(run=run_bench)
    info = subparsers.add_parser("info", help="say what this installation can use", description="Say what can be used.")
    info.set_defaults(run=run_info)


def run_evaluate(given: argparse.Namespace) -> int:
    """Judge, print a table and write `evaluation.json`."""
    folder, record, learner = open_run(given.run_folder)
    folder.check_evaluation()
    folder.check_writable()
    settings = train.continued(record["settings"], None, options.changes(given, options.PLACES))
    with options.data_options(given):
        tasks = train.load_data(settings, record["split"])
    other_seed = (settings["seed"] + 1) % 2**64
    evaluation = evaluate(
        learner,
        getattr(tasks, given.split),
        features_of(folder, tasks),
        random=configuration.build_learner(settings, record["image_shape"], weights_seed=other_seed),
        shots=given.shots or settings["training"]["shots"],
        samples=given.samples,
        draws=given.draws,
        steps=given.steps,
        most_tasks=1 if learner.inner.inner_state == "persist" else 16,
        seed=given.seed,
    )
    report(evaluation, folder, given.split, learner.step, per_class=given.per_class)
    return 0


def features_of(folder: RunFolder, tasks: Tasks) -> FeatureExtractor:
    """Return the run's feature classifier, trained on the training classes at the first call."""
    if folder.features.exists():
        return FeatureExtractor.load(folder.features)
    streams.say("training the feature classifier on the training classes ...")
    features = FeatureExtractor.train(tasks.train)
    features.save(folder.features)
    return features


def report(evaluation: Evaluation, folder: RunFolder, split: str, step: int, *, per_class: bool) -> None:
    """Print and write what was found."""
    folder.write_evaluation({**evaluation.to_dict(), "split": split, "meta_step": step})
    print(f"{len(evaluation.classes)} {split} classes, after {step} meta-steps\n\n{evaluation.table()}")
    if per_class:
        print(f"\nKID\n{evaluation.class_table()}")
    print(f"\nfeatures {evaluation.settings['features'][:16]}; all figures in {folder.evaluation}")


def run_bench(given: argparse.Namespace) -> int:
    """Hand over to the benchmarks."""
    from ..benchmarks import main

    return main(given.arguments) or 0


def run_info(given: argparse.Namespace) -> int:
    """Print versions, threads and backends."""
    for name, value in configuration.versions().items():
        print(f"{name:16} {value}")
    print(f"{'triton':16} {_version('triton')}")
    tree = _source_tree.root()
    print(f"{'package':16} {os.path.dirname(_source_tree.__file__)}{' (source tree)' if tree else ''}")
    print(f"{'extension':16} {_native._core.__file__ if _native.is_available()[0] else 'none'}")
    print(f"{'threads':16} {_native.threads()}")
    print(f"{'instruction set':16} {_instruction_set()}")
    print(f"{'cuda':16} {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no device'}")
    for name in _dispatch.BACKENDS:
        row = next(row for row in _dispatch.IMPLEMENTATIONS if row.backend == name)
        available, reason = row.is_available()
        print(f"{'backend ' + name:16} {'available' if available else f'not available: {reason}'}")
    return 0


def _instruction_set() -> str:
    try:
        from .. import _core
    except ImportError:
        return "as PyTorch's: the compiled extension is missing"
    return f"{_core.isa()} (this processor runs {', '.join(_core.available_isas())})"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
