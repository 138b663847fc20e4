"""`metagan-fast train --dry-run`: settings, executor and predicted memory of a run that does not take place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .._utils import machine
from .._utils.coerce import in_units
from ..learner import MetaGAN
from ..learner.memory import UNDO
from ..training import config as configuration
from ..training.outer_loop import Training
from . import streams


def run(config: dict[str, Any], load_image_shape: Callable[[], Sequence[int]]) -> int:
    """Print what a run would do and take, and return 0; nothing is trained or written.

    Args:
        config: resolved settings.
        load_image_shape: loads the data, which settle the shape of an image where the settings leave it open.

    Raises:
        ValueError: one task does not fit in `max_memory`.
    """
    image_shape = _image_shape(config["data"]) or tuple(load_image_shape())
    learner = configuration.build_learner(config, image_shape)
    training = configuration.build_training(config)
    streams.say("\n".join(describe(config, learner, training, image_shape)))
    return 0


def describe(config: dict[str, Any], learner: MetaGAN, training: Training, image_shape: Sequence[int]) -> list[str]:
    """Return the lines that describe a run."""
    inner, meta = learner.inner, config["meta"]
    parameters = learner.generator_layout.numel + learner.discriminator_layout.numel
    query = f" and {training.query} query images" if training.query else ""
    warm_up = f", the first {training.warm_up} on mixed classes" if training.warm_up else ""
    facts = {
        "data": f"{config['data']['source']}, images {'x'.join(map(str, image_shape))}",
        "networks": f"{config['model']['name']}, {parameters / 1e6:.2f} M parameters, {config['precision']}",
        "algorithm": f"{meta['algorithm']} with {meta['optimizer']}, loss {learner.loss.name}",
        "meta-steps": f"{training.meta_steps}{warm_up}",
        "tasks": f"{training.tasks} a meta-step, of {training.shots} support{query}",
        "inner loop": f"{inner.steps} steps by {inner.optimizer}",
        "executor": learner.explain(training.shots).splitlines()[0].removeprefix("executor: "),
    }
    lines = ["dry run: nothing is trained or written"] + [f"  {name:11} {text}" for name, text in facts.items()]
    plans = training.plan_memory(learner)
    for name, plan in plans.items():
        head, *rows = str(plan).splitlines()
        lines += [head.replace("a meta-step", name), *rows]
    kept = max(plan.parts.get(UNDO, 0) for plan in plans.values())
    peak = max(plan.peak + (0 if UNDO in plan.parts else kept) for plan in plans.values())
    if training.ema is not None:
        average = sum(
            x.numel() * x.element_size() for x in (learner.generator_parameters, learner.discriminator_parameters)
        )
        lines.append(f"moving average: {in_units(average)} more")
        peak += average
    return [*lines, _verdict(peak, learner.generator_parameters.device)]


def _verdict(peak: int, device: torch.device) -> str:
    """Return whether the peak fits in the machine's memory."""
    available = _available(device)
    if available is None:
        return f"the run takes {in_units(peak)} at its peak, above Python, libraries and data"
    fits = "it fits" if peak <= available else "it does not fit: use --max-memory"
    return f"the run takes {in_units(peak)} at its peak; {in_units(available)} are free on this machine: {fits}"


def _available(device: torch.device) -> int | None:
    """Return the bytes that this process may still take on a device; None if the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return machine.available_memory()


def _image_shape(data: dict[str, Any]) -> tuple[int, int, int] | None:
    """Return the shape of an image if the settings fix it."""
    size, channels = data.get("image_size"), data.get("channels")
    if size is None or channels is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width
