"""Settings of a run as nested plain data: merged from a preset and changes, checked, built into objects."""

from __future__ import annotations

import contextlib
import copy
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import losses, models, tasks
from .._utils.draws import draws_from_seed
from ..inner import InnerLoop
from ..learner import MetaGAN, algorithms
from ..tasks import Tasks
from .outer_loop import Training
from .presets import DEFAULT, PRESETS

_FEW = 1_000_000  # parameters, which any machine holds
_CHOICES = {"model": "name", "loss": "name", "meta": "algorithm"}


def from_preset(name: str) -> dict[str, Any]:
    """Return the settings of a preset; ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"expected a preset of {', '.join(PRESETS)}; got {name!r}")
    return merge(DEFAULT, PRESETS[name])


def merge(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` with nested `changes`; another model, loss or algorithm drops the options of the previous one."""
    merged = copy.deepcopy(dict(config))
    for key, value in changes.items():
        if not isinstance(merged.get(key), dict):
            merged[key] = copy.deepcopy(value)
            continue
        choice = _CHOICES.get(key)
        if choice in value and value[choice] != merged[key].get(choice):
            merged[key] = {}
        merged[key] |= copy.deepcopy(value)
    return merged


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check settings and fill in every one: defaults, query images, the length of schedules.

    Raises:
        ValueError: an unknown setting or an invalid value.
    """
    resolved = copy.deepcopy(dict(config))
    training = resolved["training"]
    for name in ("init", "max_memory"):  # absent in older records
        if resolved.get(name) is None:
            resolved.pop(name, None)
    algorithm = resolved["meta"]["algorithm"]
    if algorithm not in algorithms.ALGORITHMS:
        raise ValueError(f"expected an algorithm of {', '.join(algorithms.ALGORITHMS)}; got {algorithm!r}")
    if training["query"] is None:
        training["query"] = training["shots"] if algorithms.ALGORITHMS[algorithm]().needs_query else 0
    with _as_value_error("training"):
        training = resolved["training"] = Training(**training).to_config()
    _set_length(resolved["meta"], training["meta_steps"])
    _set_length(resolved["inner"], resolved["inner"].get("steps", InnerLoop.steps))
    with _as_value_error("inner"):
        resolved["inner"] = InnerLoop.from_config(InnerLoop().to_config() | resolved["inner"]).to_config()
    with _as_value_error("meta"):
        defaults = algorithms.ALGORITHMS[algorithm]().to_config()
        resolved["meta"] = algorithms.from_config(defaults | resolved["meta"]).to_config()
    with _as_value_error("loss"):
        resolved["loss"] = losses.from_config(resolved["loss"]).to_config()
    return resolved


def _set_length(section: dict[str, Any], steps: int) -> None:
    """Set the length of schedules without one to the length of their loop."""
    for rate in section.values():
        if isinstance(rate, dict) and "schedule" in rate:
            rate.setdefault("steps", steps)


@contextlib.contextmanager
def _as_value_error(section: str) -> Iterator[None]:
    """Turn a constructor's TypeError or KeyError into a ValueError that names the section."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{section}: {error} is missing") from error
    except TypeError as error:
        raise ValueError(f"{section}: {error}") from error


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{"section.key": value}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and not prefix:
            flat |= flatten(value, f"{key}.")
        else:
            flat[prefix + key] = value
    return flat


def build_tasks(config: Mapping[str, Any], split: Mapping[str, Any] | None = None) -> Tasks:
    """Load the data; `split` is the split record of an earlier run."""
    options = {name: value for name, value in config["data"].items() if value is not None}
    source = options.pop("source")
    if split is not None:
        options["split"] = split
    with _as_value_error("data"):
        return tasks.load(source, **options)


def build_networks(config: Mapping[str, Any], image_shape: Sequence[int], *, seed: int) -> tuple[nn.Module, nn.Module]:
    """Build generator and discriminator for images (channels, height, width), initialised from `seed`."""
    options = {"latent_dim": config["latent_dim"], **config["model"]}
    name = options.pop("name")
    if name == "mlp":
        options["image_shape"] = tuple(image_shape)
    else:
        channels, height, width = image_shape
        options |= {"channels": channels, "image_size": height if height == width else (height, width)}
    with draws_from_seed(seed):
        generator, discriminator = models.build(name, **options)
    return generator.to(config["device"]), discriminator.to(config["device"])


def check_size(config: Mapping[str, Any], image_shape: Sequence[int], saved: Mapping[str, Tensor]) -> None:
    """Raise ValueError if settings ask for far larger networks than the saved ones, before they take memory."""
    with torch.device("meta"):
        networks = build_networks({**config, "device": "meta"}, image_shape, seed=0)
    needed = [parameter.numel() for network in networks for parameter in network.parameters()]
    found = [tensor.numel() for name, tensor in saved.items() if name.startswith(("generator.", "discriminator."))]
    if sum(needed) > sum(found) + _FEW or len(needed) > len(found):
        raise ValueError(
            f"it describes networks of {sum(needed):,} parameters in {len(needed):,} tensors, but the checkpoint has "
            f"{sum(found):,} in {len(found):,}"
        )


def build_learner(
    config: Mapping[str, Any], image_shape: Sequence[int], *, weights_seed: int | None = None, **ranks: Any
) -> MetaGAN:
    """Build the networks and the learner around them.

    Args:
        config: resolved settings.
        image_shape: (channels, height, width).
        weights_seed: seed of the initial weights, 0 to 2**64 - 1; None: the run's own.
        ranks: `process_group` and `deterministic_reduce` of `MetaGAN`, which are no settings of the run.
    """
    seed = config["seed"]
    generator, discriminator = build_networks(config, image_shape, seed=seed if weights_seed is None else weights_seed)
    return MetaGAN(
        generator,
        discriminator,
        latent_dim=config["latent_dim"],
        loss=losses.from_config(config["loss"]),
        inner=InnerLoop.from_config(config["inner"]),
        meta=algorithms.from_config(config["meta"]),
        executor=config["executor"],
        precision=config["precision"],
        seed=seed,
        max_memory=config.get("max_memory"),
        **ranks,
    )


def build_training(config: Mapping[str, Any]) -> Training:
    """Build the outer loop's settings."""
    return Training(**config["training"])


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    from .. import __version__

    return {
        "metagan_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
