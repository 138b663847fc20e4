"""The options of FIGR's `train.py`, as a table, and what their values mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

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


@dataclass(frozen=True)
class Option:
    """One option of the command line: its default, as text, what it means, and how it is read."""

    default: str
    help: str
    read: Callable[[Any], Any] = int


OPTIONS = {
    "--inner_learning_rate": Option("1e-3", "learning rate of the inner loop", float),
    "--outer_learning_rate": Option("1e-4", "learning rate of the outer loop", float),
    "--batch_size": Option("4", "images of a task"),
    "--inner_epochs": Option("10", "steps of the inner loop"),
    "--height": Option("32", "height of the images, a multiple of 2 ** blocks"),
    "--length": Option("32", "width of the images, a multiple of 2 ** blocks"),
    "--dataset": Option("FIGR8", f"{', '.join(ENVIRONMENTS)}, read from ./data", str),
    "--neural_network": Option("DCGAN", " or ".join(NETWORKS), str),
    "--hidden_size": Option("64", "channels of the networks at full resolution"),
    "--blocks": Option("4", "resolutions of the networks below the full one"),
    "--episodes": Option("1000001", "episodes in all, those before a resume included"),
    "--validation_every": Option("10000", "episodes between validations, each followed by a checkpoint"),
    "--seed": Option("0", "of the classes held out, the tasks, the noise and the first parameters"),
}
"""FIGR's options with its defaults, then those of our own."""


def read_options(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of every option by its name without dashes, the default where `args` has none.

    Raises:
        ValueError: an option that is unknown, or a value that makes no sense.
    """
    unknown = sorted(set(args) - set(OPTIONS) - {"--help"})
    if unknown:
        raise ValueError(f"expected options of {', '.join(OPTIONS)}; got {unknown[0]!r}")
    values = {name: option.read(args.get(name, option.default)) for name, option in OPTIONS.items()}
    for name, known in (("--dataset", ENVIRONMENTS), ("--neural_network", NETWORKS)):
        if values[name] not in known:
            raise ValueError(f"expected {name} of {', '.join(known)}; got {values[name]!r}")
    for name in ("--batch_size", "--validation_every"):
        if values[name] < 1:
            raise ValueError(f"expected {name} of at least 1, got {values[name]}")
    return {name.removeprefix("--"): value for name, value in values.items()}
