"""Table of the options of `train`: flag, setting, parser, meaning."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from .. import losses, models, tasks
from .._utils import argument_types, coerce
from ..executors.select import EXECUTORS, PRECISIONS
from ..inner import OPTIMIZERS as INNER_OPTIMIZERS
from ..inner import InnerLoop
from ..learner import algorithms, meta_optimizer
from ..tasks import decoding
from ..training import presets, pretrained
from ..training.config import flatten, from_preset, resolve
from ..training.outer_loop import Training
from . import ranks

Result = TypeVar("Result")


def rate(text: str) -> float | dict[str, Any]:
    """Read a number, or `linear:FIRST:LAST[:STEPS]` or `cosine:FIRST:LAST[:STEPS]`."""
    name, *numbers = text.split(":")
    if not numbers:
        return float(text)
    if name not in ("linear", "cosine") or len(numbers) not in (2, 3):
        raise argparse.ArgumentTypeError(f"expected a number or linear:FIRST:LAST[:STEPS] (or cosine), got {text!r}")
    schedule = {"schedule": name, "initial": float(numbers[0]), "final": float(numbers[1])}
    return schedule | ({"steps": int(numbers[2])} if len(numbers) == 3 else {})


def step_weights(text: str) -> str | list[float] | dict[str, int]:
    """Read `uniform`, numbers with commas, or `annealed:INNER_STEPS:META_STEPS`."""
    if text == "uniform":
        return text
    if text.startswith("annealed:"):
        _, steps, meta_steps = text.split(":")
        return {"steps": int(steps), "meta_steps": int(meta_steps)}
    return [float(number) for number in text.split(",")]


def size(text: str) -> int | list[int]:
    """Read `SIDE` or `HEIGHTxWIDTH`."""
    sides = [int(side) for side in text.split("x")]
    if len(sides) > 2:
        raise ValueError(text)
    return sides[0] if len(sides) == 1 else sides


def place(text: str) -> str:
    """Read a name or a path; make existing paths absolute, so that they are found from any folder."""
    path = argument_types.path(text)
    return str(path.absolute()) if text not in tasks.NAMES and path.exists() else text


def cache(text: str) -> str:
    """Read the path of a folder, and make it absolute, or the word off."""
    return text if text == "off" else str(argument_types.path(text).absolute())


def run_or_checkpoint(text: str) -> str:
    """Read the path of a run's folder or of a checkpoint file, and make it absolute, or a run of the package."""
    path = argument_types.path(text)
    if not path.exists():
        if text in pretrained.NAMES:
            return text
        names = ", ".join(pretrained.NAMES)
        raise argparse.ArgumentTypeError(f"expected a run's folder, a checkpoint file or one of {names}; got {text!r}")
    return str(path.absolute())


def device(text: str) -> str:
    """Read a device of this machine."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # an unknown name; PyTorch without CUDA
        raise argparse.ArgumentTypeError(f"expected a device of this machine, got {text!r}: {error}") from error
    return text


def memory(text: str) -> int:
    """Read an amount of memory."""
    try:
        return coerce.memory("an amount of memory", int(text) if text.isdigit() else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def preset(text: str) -> str:
    """Read the name of a preset."""
    try:
        from_preset(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def key_value(text: str) -> tuple[str, Any]:
    """Read `NAME` as `("name", NAME)` and `KEY=VALUE` with a JSON value or a plain word."""
    key, equals, value = text.partition("=")
    if not equals:
        return "name", text
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


@dataclass(frozen=True)
class Option:
    """Row of the table: a flag and the setting that it changes; with `none`, the word none sets None."""

    flag: str
    path: str
    help: str
    type: Callable[[str], Any] = str
    choices: tuple[str, ...] | None = None
    count: int | str | None = None
    metavar: str | tuple[str, ...] | None = None
    none: bool = False

    def add_to(self, group: argparse._ArgumentGroup, default: Any) -> None:
        """Add the flag to a parser; flags that are not given stay out of the namespace."""
        is_unset = default is None and not self.none  # the default is told in the text
        text = self.help if is_unset else f"{self.help} (default: {_shown(default)})"
        if self.type is bool:
            group.add_argument(
                self.flag,
                dest=self.path,
                default=argparse.SUPPRESS,
                action=argparse.BooleanOptionalAction,
                help=text,
            )
            return
        group.add_argument(
            self.flag,
            dest=self.path,
            default=argparse.SUPPRESS,
            type=argument_types.optional(self.type) if self.none else self.type,
            choices=self.choices,
            nargs=self.count,
            metavar=self.metavar,
            help=text,
        )


_NAME_AND_OPTIONS: dict[str, Any] = {"type": key_value, "count": "+", "metavar": ("NAME", "KEY=VALUE")}
_RATE: dict[str, Any] = {"type": rate, "metavar": "RATE"}
_PAIR: dict[str, Any] = {"type": float, "count": 2, "metavar": ("BETA1", "BETA2")}

GROUPS: dict[str, tuple[Option, ...]] = {
    "data": (
        Option(
            "--data",
            "data.source",
            f"{', '.join(tasks.NAMES)}, a folder with a folder a class, an .npz or MNIST IDX file",
            place,
        ),
        Option(
            "--image-size",
            "data.image_size",
            "resize to SIDE or HEIGHTxWIDTH pixels; none: leave them",
            size,
            metavar="SIDE",
            none=True,
        ),
        Option("--channels", "data.channels", "1 for grey, 3 for colour", int, none=True),
        Option("--invert", "data.invert", "exchange black and white", bool),
        Option(
            "--rotations",
            "data.rotations",
            "turned by 90, 180 and 270 degrees, classes count as further ones",
            bool,
        ),
        Option(
            "--split",
            "data.split",
            "shares for train, validation and test; none: the data's own parts, or 0.7 0.1 0.2",
            float,
            count="+",
            metavar="SHARE",
            none=True,
        ),
        Option(
            "--split-by",
            "data.split_by",
            "keep each class or each group in one part; none: group for data with own parts, else class",
            metavar="UNIT",
            none=True,
        ),
        Option("--min-images", "data.min_images", "leave out classes with fewer images", int),
        Option("--skip-broken", "data.skip_broken", "a folder: leave out images that cannot be read", bool),
        Option(
            "--cache",
            "data.cache",
            "a folder: where its decoded images stay; off: nowhere; none: the user's cache folder, for 1,000 and more",
            cache,
            metavar="FOLDER",
            none=True,
        ),
        Option("--labels", "data.labels", "IDX: the file of labels, if not beside the images", place, none=True),
        Option("--subset", "data.subset", "IDX: which of several sets in a folder, as letters of EMNIST's", none=True),
        Option(
            "--fonts", "data.fonts", "system-fonts: folders or files, if not the machine's", place, count="+", none=True
        ),
        Option("--characters", "data.characters", "system-fonts: which ones, as ABC123, if not all", none=True),
        Option("--min-drawings", "data.min_drawings", "system-fonts: leave out characters with fewer", int, none=True),
        Option("--data-seed", "data.seed", "seed of the split and of the tasks drawn", argument_types.seed),
    ),
    "networks and loss": (
        Option(
            "--model",
            "model",
            f"{', '.join(models.NAMES)}, and its options: dcgan width=32 blocks=3",
            **_NAME_AND_OPTIONS,
        ),
        Option("--latent-dim", "latent_dim", "size of a latent", int),
        Option(
            "--loss",
            "loss",
            f"{', '.join(losses.NAMES)}, and its options: wgan-gp weight=5",
            **_NAME_AND_OPTIONS,
        ),
        Option(
            "--penalty",
            "loss.penalty",
            "for losses that take one: gradient (weight, norm), zero-centered (weight, location) or none",
            **_NAME_AND_OPTIONS,
        ),
    ),
    "inner loop": (
        Option(
            "--inner-optimizer",
            "inner.optimizer",
            "optimizer of the inner loop",
            choices=tuple(INNER_OPTIMIZERS),
        ),
        Option(
            "--inner-lr",
            "inner.lr",
            "a number, linear:FIRST:LAST[:STEPS] or cosine:FIRST:LAST[:STEPS]",
            **_RATE,
        ),
        Option(
            "--discriminator-lr",
            "inner.discriminator_lr",
            "the discriminator's own rate; none: as the generator's",
            **_RATE,
            none=True,
        ),
        Option("--inner-steps", "inner.steps", "inner steps", int),
        Option("--critic-steps", "inner.critic_steps", "discriminator updates an inner step", int),
        Option("--generator-steps", "inner.generator_steps", "generator updates an inner step", int),
        Option(
            "--batch-size",
            "inner.batch_size",
            "support images an update draws, in turn; none: all",
            int,
            none=True,
        ),
        Option(
            "--generated", "inner.generated", "images generated for an update; none: as many as real", int, none=True
        ),
        Option("--inner-momentum", "inner.momentum", "of momentum and rmsprop", float, none=True),
        Option("--inner-betas", "inner.betas", "of adam", **_PAIR),
        Option("--inner-eps", "inner.eps", "of adam and rmsprop", float),
        Option("--inner-alpha", "inner.alpha", "smoothing of rmsprop", float),
        Option("--inner-weight-decay", "inner.weight_decay", "L2 penalty", float),
        Option(
            "--inner-state",
            "inner.inner_state",
            "of the inner optimizer, for each task",
            choices=("reset", "persist"),
        ),
    ),
    "meta-training": (
        Option("--algorithm", "meta.algorithm", "meta-learning algorithm", choices=tuple(algorithms.ALGORITHMS)),
        Option(
            "--meta-optimizer",
            "meta.optimizer",
            "optimizer that applies the meta-gradient",
            choices=meta_optimizer.OPTIMIZERS,
        ),
        Option("--meta-lr", "meta.lr", "a number or a schedule, as --inner-lr", **_RATE),
        Option("--meta-momentum", "meta.momentum", "of sgd", float),
        Option("--meta-betas", "meta.betas", "of adam and adamw", **_PAIR),
        Option("--meta-eps", "meta.eps", "of adam and adamw", float),
        Option("--meta-weight-decay", "meta.weight_decay", "L2 for sgd and adam, decoupled for adamw", float),
        Option("--clip-norm", "meta.clip_norm", "scale a network's meta-gradient down to this norm", float, none=True),
        Option("--clip-value", "meta.clip_value", "clamp the meta-gradient's components", float, none=True),
        Option("--serial", "meta.serial", "reptile: update after each task", bool),
        Option(
            "--generator-objective",
            "meta.generator_objective",
            "fomaml, maml: the discriminator that judges the adapted generator",
            choices=("support", "query", "initial"),
        ),
        Option(
            "--step-weights",
            "meta.step_weights",
            "fomaml, maml: uniform, numbers with commas, or annealed:INNER_STEPS:META_STEPS",
            step_weights,
            metavar="WEIGHTS",
            none=True,
        ),
        Option(
            "--checkpointing",
            "meta.checkpointing",
            "maml: parameter states that are kept; others are computed again (default: as --max-memory allows)",
            choices=("every step", "sqrt"),
        ),
        Option("--first-order-steps", "meta.first_order_steps", "maml: first-order meta-steps at the start", int),
    ),
    "outer loop": (
        Option("--steps", "training.meta_steps", "meta-steps in all", int),
        Option("--warm-up", "training.warm_up", "first meta-steps, which train jointly on mixed classes", int),
        Option(
            "--warm-up-batch-size",
            "training.warm_up_batch_size",
            "images of an update then; none: as --batch-size",
            int,
            none=True,
        ),
        Option("--warm-up-lr", "training.warm_up_lr", "learning rate then; none: as --inner-lr", float, none=True),
        Option("--tasks", "training.tasks", "tasks a meta-step", int),
        Option("--shots", "training.shots", "support images a task", int),
        Option("--query", "training.query", "query images a task; none: as many as shots where needed", int, none=True),
        Option(
            "--validate-every",
            "training.validate_every",
            "meta-steps between validations; 0: at the end",
            int,
        ),
        Option("--validation-tasks", "training.validation_tasks", "held-out classes of a validation", int),
        Option(
            "--validation-shots",
            "training.validation_shots",
            "support images of a held-out class; none: as many as shots",
            int,
            none=True,
        ),
        Option(
            "--checkpoint-every",
            "training.checkpoint_every",
            "meta-steps between checkpoints; 0: at the end",
            int,
        ),
        Option("--keep", "training.keep", "checkpoints kept", int),
        Option(
            "--max-dropped",
            "training.max_dropped",
            "tasks that meta-steps in a row may leave out because they diverge; one more ends the run",
            int,
        ),
        Option("--log-every", "training.log_every", "meta-steps between lines of metrics", int),
        Option(
            "--init",
            "init",
            "start from the initialisation of a run (its best, averaged one if it keeps such), of a checkpoint file or "
            f"of the package ({', '.join(pretrained.NAMES)}), in place of random weights",
            run_or_checkpoint,
            metavar="RUN|FILE|NAME",
            none=True,
        ),
        Option(
            "--ema",
            "training.ema",
            "decay of a moving average of the initialisation, which validation and all outputs use; none: no average",
            float,
            none=True,
        ),
        Option(
            "--keep-best",
            "training.keep_best",
            "at each validation measure KID on held-out classes, and keep the checkpoint with the lowest",
            bool,
        ),
    ),
    "machine": (
        Option("--executor", "executor", "executor of the inner loops", choices=EXECUTORS),
        Option("--precision", "precision", "of the networks", choices=PRECISIONS),
        Option("--device", "device", "cpu, cuda, cuda:1", device),
        Option("--seed", "seed", "of weights and noise", argument_types.seed),
        Option(
            "--max-memory",
            "max_memory",
            "that a meta-step may take, such as 2GB: its tasks run in micro-batches, with the same result; none: any",
            memory,
            metavar="BYTES",
            none=True,
        ),
        Option("--threads", "threads", "CPU threads; none: PyTorch's choice", argument_types.threads, none=True),
    ),
}
OPTIONS = tuple(option for group in GROUPS.values() for option in group)
PLACES = tuple(option for option in OPTIONS if option.type is place)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options to a parser, with the default preset's values in the help."""
    classes: dict[str, Any] = {"training": Training, "inner": InnerLoop}
    defaults: dict[str, Any] = {
        f"{section}.{field.name}": field.default
        for section, kind in classes.items()
        for field in dataclasses.fields(kind)
    }
    for algorithm in reversed(algorithms.ALGORITHMS):
        config = from_preset("default")
        defaults = defaults | flatten(resolve(config | {"meta": {"algorithm": algorithm}}))
    defaults = defaults | flatten(resolve(from_preset("default")))
    for title, options in GROUPS.items():
        group = parser.add_argument_group(title)
        for option in options:
            option.add_to(group, defaults.get(option.path, presets.DEFAULT.get(option.path)))


def changes(given: argparse.Namespace, table: Iterable[Option] = OPTIONS) -> dict[str, Any]:
    """Return the settings given by the options of a table, nested as a configuration."""
    nested: dict[str, Any] = {}
    for option in table:
        if not hasattr(given, option.path):
            continue
        value = getattr(given, option.path)
        if option.type is key_value:
            value = _named(option.flag, value)
        elif option.none and value == [None]:
            value = None
        section, _, key = option.path.partition(".")
        if key:
            nested.setdefault(section, {})[key] = value
        elif isinstance(value, dict):
            nested.setdefault(section, {}).update(value)
        else:
            nested[section] = value
    return nested


def applied(given: argparse.Namespace, use: Callable[[dict[str, Any]], Result]) -> Result:
    """Return the result of `use` for the settings of the command line.

    Raises:
        ValueError: raised by `use`; prefixed by the options whose removal changes the error.
    """
    try:
        return use(changes(given))
    except ValueError as error:
        options = [option for option in OPTIONS if hasattr(given, option.path)]
        others = ([other for other in options if other is not option] for option in options)
        problems = (_problem(use, changes(given, table)) for table in others)
        flags = [option.flag for option, problem in zip(options, problems, strict=True) if problem != str(error)]
        raise ValueError(f"{', '.join(flags)}: {error}" if flags else str(error)) from error


def _problem(use: Callable[[dict[str, Any]], object], settings: dict[str, Any]) -> str | None:
    try:
        use(settings)
    except Exception as error:
        return str(error)
    return None


@contextlib.contextmanager
def data_options(given: argparse.Namespace) -> Iterator[None]:
    """Show how images are decoded; prefix an error of the data by the options that it mentions, or by all of them.

    The data are read only once.

    Raises:
        ValueError: raised by the block.
    """
    display = ranks.progress()
    shown = decoding.observer.set(display.part)
    try:
        yield
    except ValueError as error:
        words = re.findall(r"\w+", str(error))
        options = [option for option in GROUPS["data"] if hasattr(given, option.path)]
        mentioned = [option for option in options if option.path.removeprefix("data.") in words]
        flags = [option.flag for option in mentioned or options]
        raise ValueError(f"{', '.join(flags)}: {error}" if flags else str(error)) from error
    finally:
        decoding.observer.reset(shown)
        display.close()


def _named(flag: str, pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
    """Merge `NAME KEY=VALUE ...` into one setting; `none` alone is None."""
    names = [value for key, value in pairs if key == "name"]
    if len(names) > 1:
        raise ValueError(f"{flag} takes one name and KEY=VALUE options, got {' '.join(names)}")
    return None if names == ["none"] else dict(pairs)


def _shown(default: Any) -> str:
    if isinstance(default, dict):
        plain = {key: value for key, value in default.items() if not isinstance(value, dict)}  # they have own options
        name, *options = (value if key == "name" else f"{key}={value}" for key, value in plain.items())
        return " ".join([name, *options])
    if isinstance(default, list):
        return " ".join(map(str, default))
    return "none" if default is None else str(default)
