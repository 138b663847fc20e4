"""`metagan-fast train`: meta-train a GAN."""

from __future__ import annotations

import argparse
import contextlib
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint
from .._utils.argument_types import imported
from .._utils.argument_types import path as read_path
from ..distributed import job
from ..learner import MetaGAN
from ..tasks import NAMES, Tasks
from ..tasks.contrast import clear_contrast
from ..training import config as configuration
from ..training import pretrained, report
from ..training.loggers import FACTORIES, Factory
from ..training.run_folder import RunFolder
from ..training.trainer import Outcome, Trainer
from ..training.unwritten_folder import UnwrittenFolder
from . import dry_run, options, ranks, streams

# Settings that a resumed run may change: they do not affect finished meta-steps.
_FREE = {
    "data.cache",
    "training.meta_steps",
    "training.validate_every",
    "training.validation_tasks",
    "training.checkpoint_every",
    "training.keep",
    "training.keep_best",
    "training.max_dropped",
    "training.log_every",
    "executor",
    "device",
    "threads",
    "max_memory",
}
_PLACES = {option.path for option in options.PLACES}
_SPLIT = "data.split"  # where a preset leaves it to the data, the run's record has the classes
_SIGNALLED = 128  # exit codes in shells of programs that a signal ends: this and its number


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "train",
        help="meta-train a GAN",
        description="Meta-train a GAN so that a few gradient steps adapt it to a new class of images.",
        epilog="Another model, loss or algorithm than the preset's starts from that choice's own defaults.",
    )
    parser.add_argument("--out", type=read_path, help="the run's folder (default: runs/ and the preset's name)")
    parser.add_argument("--preset", type=options.preset, help=f"{', '.join(configuration.PRESETS)} (default: default)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    existing.add_argument("--overwrite", action="store_true", help="delete the run's files and start again")
    parser.add_argument(
        "--dry-run", action="store_true", help="print settings, executor and predicted memory; train and write nothing"
    )
    ranks.add_option(parser, "the tasks of each meta-step")
    parser.add_argument(
        "--deterministic-reduce",
        action="store_true",
        help="the same bytes for any number of processes, for a slower meta-step; else they agree to rounding",
    )
    parser.add_argument(
        "--logger",
        dest="loggers",
        type=logger,
        nargs="+",
        default=[FACTORIES["tensorboard"]],
        metavar="NAME|MODULE:OBJECT",
        help=f"receivers of metrics and pictures: {', '.join(FACTORIES)}, none, or your own (default: tensorboard)",
    )
    options.add_options(parser)
    parser.set_defaults(run=ranks.shared(run))


def logger(text: str) -> Factory | None:
    """Read a logger's name, `none`, or `module:object`: a logger, or a function or class that is a `Factory`."""
    if text == "none" or text in FACTORIES:
        return FACTORIES.get(text)
    _, found = imported(text, f"{', '.join(FACTORIES)}, none or MODULE:OBJECT, such as my_loggers:Printer")
    if isinstance(found, type) or (callable(found) and not hasattr(found, "log_metrics")):
        factory: Factory = found
        return factory
    missing = [name for name in ("log_metrics", "log_images", "close") if not hasattr(found, name)]
    if missing:
        raise argparse.ArgumentTypeError(f"expected {text} to be a logger or to make one, but it lacks {missing[0]}")
    return lambda folder, record: found


def run(given: argparse.Namespace) -> int:
    """Train, and print where the outputs are."""
    path = given.out or Path("runs") / (given.preset or "default")
    kind = RunFolder if job.is_first() else UnwrittenFolder
    started = job.share(lambda: _started_before(kind(path)))
    given.resume, given.overwrite = given.resume or started == "saved", given.overwrite or started == "unsaved"
    folder = kind.open(path) if given.resume else kind(path)
    with folder.lock() if folder.config.is_file() and not given.dry_run else contextlib.nullcontext():
        return _train(given, folder)


def _started_before(folder: RunFolder) -> str | None:
    """Return "saved" for a run that torch's launcher starts again and that has a checkpoint, "unsaved" without one."""
    if not job.restarts() or not folder.config.is_file() or folder.read_config().get("job") != job.name():
        return None
    try:
        folder.latest()
    except checkpoint.CheckpointError:
        return "unsaved"
    return "saved"


def _train(given: argparse.Namespace, folder: RunFolder) -> int:
    stored = job.share(folder.read_config) if given.resume else None

    def settings(changes: dict[str, Any]) -> dict[str, Any]:
        if stored is not None:
            return continued(stored["settings"], given.preset, changes)
        preset = configuration.from_preset(given.preset or "default")
        return configuration.resolve(configuration.merge(preset, changes))

    config = options.applied(given, settings)
    if job.local_size() > 1 and config["device"].startswith("cuda:"):
        raise ValueError(f"expected --device cuda, of which each process takes its own, got {config['device']}")
    if given.dry_run:
        return dry_run.run(config, lambda: load_data(config, stored and stored["split"]).image_shape)
    if stored is None:  # before the data, which take time
        folder.check_free(folder.path, overwrite=given.overwrite)
    folder.check_writable()
    if config["threads"] is not None:
        torch.set_num_threads(max(1, config["threads"] // job.local_size()))
    with options.data_options(given):
        tasks = job.after_first(lambda: load_data(config, None if stored is None else stored["split"]))
    record = {"settings": config, "split": tasks.split_record(), "image_shape": list(tasks.image_shape)}
    start = None
    if stored is None and "init" in config:
        start = read_initialisation(config["init"])
        record["initialisation"] = start[1]
    elif stored is not None and "initialisation" in stored:
        record["initialisation"] = stored["initialisation"]

    loggers = [make(folder, record) for make in given.loggers if make is not None and job.is_first()]

    def build(changes: dict[str, Any]) -> Trainer:
        config = settings(changes)
        learner = configuration.build_learner(
            config, tasks.image_shape, process_group=job.group(), deterministic_reduce=given.deterministic_reduce
        )
        if start is not None and "init" in config:
            load_initialisation(learner, start[0], config["init"])
        training = configuration.build_training(config)
        return Trainer(learner, tasks, folder, training, record=record, progress=ranks.progress(), loggers=loggers)

    trainer = options.applied(given, build)
    if given.resume:
        trainer.resume()
    else:
        folder.create(folder.path, overwrite=given.overwrite)
    contrast = {"contrast": clear_contrast(tasks.train)}
    restarted = {} if job.name() is None else {"job": job.name()}
    folder.write_config({**record, **contrast, **restarted, "versions": configuration.versions()})
    parameters = trainer.learner.generator_layout.numel + trainer.learner.discriminator_layout.numel
    shape = "x".join(map(str, tasks.image_shape))
    streams.say(
        f"{tasks.name}: {len(tasks.train.classes)} training classes of {shape} images; "
        f"{config['model']['name']} with {parameters / 1e6:.2f} M parameters; "
        f"{config['meta']['algorithm']}; {folder.path}"
    )
    outcome = trainer.run()
    code = _SIGNALLED + (outcome.signal or signal.SIGINT) if outcome.interrupted else 0
    if not job.is_first():
        return code
    if outcome.interrupted:
        streams.say("all is saved; the report follows, and Ctrl-C leaves it out")
    if folder.has_best():
        trainer.averaged.load_state(*folder.read_checkpoint(), average=True)
    report.write_if_possible(folder, trainer.averaged, tasks)
    streams.say(summary(folder, outcome, config["training"]["meta_steps"]))
    return code


def read_initialisation(source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a run or of a checkpoint file, and the record of where they are from."""
    place = pretrained.folder(source)
    if place.is_dir():
        tensors, metadata = RunFolder.open(place).read_checkpoint()
    else:
        tensors, metadata = checkpoint.read(place)
    return tensors, {"source": source, "meta_step": metadata.get("step")}


def load_initialisation(learner: MetaGAN, tensors: dict[str, Tensor], source: str) -> None:
    """Start a learner from the initialisation of a run or of a checkpoint file.

    Raises:
        CheckpointError: it is one of other networks.
    """
    with checkpoint.contents_of(f"{source}, whose networks must be those of this run: the same model, latents, images"):
        learner.load_networks(tensors, average=True)


def load_data(settings: dict[str, Any], split: dict[str, Any] | None) -> Tasks:
    """Load a run's data; raise FileNotFoundError if the data of an earlier run have moved."""
    source = settings["data"]["source"]
    if split is not None and source not in NAMES and not Path(source).exists():
        raise FileNotFoundError(f"the run's data are no longer at {source}; say where they are with --data")
    return configuration.build_tasks(settings, split)


def reload_data(given: argparse.Namespace, record: dict[str, Any]) -> tuple[dict[str, Any], Tasks]:
    """Return a run's settings, with the data's place where an option gives it, and its data."""
    settings = continued(record["settings"], None, options.changes(given, options.PLACES))
    with options.data_options(given):
        return settings, job.after_first(lambda: load_data(settings, record["split"]))


def continued(stored: dict[str, Any], preset: str | None, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the stored settings with the changes that a resumed run may make.

    Raises:
        ValueError: a change that a resumed run may not make; the message names the setting.
    """
    base = stored if preset is None else configuration.from_preset(preset)
    # More meta-steps do not stretch a running schedule: schedules keep the run's length.
    length = {"training": {"meta_steps": stored["training"]["meta_steps"]}}
    config = configuration.resolve(configuration.merge(configuration.merge(base, changes), length))
    old, new, asked = (configuration.flatten(settings) for settings in (stored, config, changes))
    for key in sorted(old.keys() | new.keys()):
        if key in _FREE or _is_moved(key, old.get(key), new.get(key)) or (key == _SPLIT and new.get(key) is None):
            continue
        if old.get(key) != new.get(key):
            raise ValueError(
                f"the run has {key} = {old.get(key)}, got {new.get(key)}; a resumed run keeps its settings: "
                "leave it out, or start another run with --out"
            )
    kept = configuration.merge(stored, {})
    for key in (_FREE | _PLACES) & asked.keys():
        section, _, name = key.rpartition(".")
        (kept[section] if section else kept)[name] = asked[key]
    return kept


def _is_moved(key: str, old: Any, new: Any) -> bool:
    """Return whether a setting is the data's new path; the split's classes must exist there."""
    return key in _PLACES and old not in NAMES and new not in NAMES


def summary(folder: RunFolder, outcome: Outcome, total: int) -> str:
    """Return a text on the outcome and the places of the outputs."""
    took = time.strftime("%H:%M:%S", time.gmtime(outcome.seconds))
    took += f", {outcome.data_seconds / max(outcome.seconds, 1e-9):.1%} of it waiting for images"
    if outcome.interrupted:
        head = (
            f"stopped after meta-step {outcome.step} of {total}, in {took}; "
            f"go on with: metagan-fast train --resume --out {folder.path}"
        )
    else:
        head = f"{outcome.step} meta-steps done, in {took}"
    if outcome.dropped:
        head += f"; {outcome.dropped} tasks left out, whose meta-gradient was not finite"
    pictures, best = folder.pictures(), "lowest KID at a validation; other commands use it"
    places = {
        "report": str(folder.report) if folder.report.exists() else None,
        "samples": f"{pictures[-1]} (support images above generated ones)" if pictures else None,
        "checkpoint": str(folder.checkpoints / "latest.safetensors"),
        "best": f"{folder.best} ({best})" if folder.has_best() else None,
        "metrics": f"{folder.metrics}; tensorboard --logdir {folder.events}",
        "next": f"metagan-fast evaluate {folder.path}; metagan-fast adapt {folder.path} FOLDER_OF_IMAGES",
    }
    return "\n".join([head] + [f"  {name:11} {place}" for name, place in places.items() if place])
