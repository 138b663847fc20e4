"""Options of FIGR's `train.py` as a table of defaults, help texts and parsers."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..._utils.argument_types import seed, whole
from . import environments, networks

ENVIRONMENTS: dict[str, type[environments.MetaEnv]] = {
    "Mnist": environments.MnistMetaEnv,
    "Omniglot": environments.OmniglotMetaEnv,
    "FIGR8": environments.FIGR8MetaEnv,
}
NETWORKS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "ResNet": (networks.ResNetGenerator, networks.ResNetDiscriminator),
    "DCGAN": (networks.DCGANGenerator, networks.DCGANDiscriminator),
}


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 <= rate < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number of at least 0, got {text!r}")
    return rate


def _one_of(names: Mapping[str, object]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(names)}, got {text!r}")
        return text

    return read


@dataclass(frozen=True)
class Option:
    """A command-line option: default as text, help text, and parser."""

    default: str
    help: str
    read: Callable[[Any], Any]


OPTIONS = {
    "--inner_learning_rate": Option("1e-3", "learning rate of the inner loop", _rate),
    "--outer_learning_rate": Option("1e-4", "learning rate of the outer loop", _rate),
    "--batch_size": Option("4", "images of a task", whole(1)),
    "--inner_epochs": Option("10", "steps of the inner loop", whole(1)),
    "--height": Option("32", "height of the images, a multiple of 2 ** blocks", whole(1)),
    "--length": Option("32", "width of the images, a multiple of 2 ** blocks", whole(1)),
    "--dataset": Option("FIGR8", f"{', '.join(ENVIRONMENTS)}, read from ./data", _one_of(ENVIRONMENTS)),
    "--neural_network": Option("DCGAN", " or ".join(NETWORKS), _one_of(NETWORKS)),
    "--hidden_size": Option("64", "channels of the networks at full resolution", whole(1)),
    "--blocks": Option("4", "resolutions of the networks below the full one", whole(1, 16)),
    "--episodes": Option("1000001", "episodes in all, those before a resume included", whole(0)),
    "--validation_every": Option("10000", "episodes between validations, each followed by a checkpoint", whole(1)),
    "--seed": Option("0", "seed of the held-out classes, tasks, noise and initial parameters", seed),
}
"""FIGR's options with its defaults, then additional ones."""


def read_options(args: Mapping[str, Any]) -> dict[str, Any]:
    """Parse every option, by name without dashes; options missing from `args` have their defaults.

    Raises:
        ValueError: an unknown option or an invalid value; the message names it.
    """
    unknown = sorted(set(args) - set(OPTIONS) - {"--help"})
    if unknown:
        raise ValueError(f"expected options of {', '.join(OPTIONS)}; got {unknown[0]!r}")
    values = {name: _read(name, option, args.get(name, option.default)) for name, option in OPTIONS.items()}
    return {name.removeprefix("--"): value for name, value in values.items()}


def _read(name: str, option: Option, value: Any) -> Any:
    try:
        return option.read(value)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{name}: {error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: expected a number, got {value!r}") from error
