"""`metagan-fast replay`: repeat the meta-step that ended a run, and show where it diverged."""

from __future__ import annotations

import argparse
from typing import Any

from .._utils.argument_types import path
from ..learner.finite import Divergence
from ..training import pretrained, replay
from ..training.run_folder import RunFolder


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "replay",
        help="show where a run diverged",
        description=(
            "Repeat the meta-step that ended a run, whose meta-gradient was not finite, from the initialisation, "
            "images and noise that the run saved. Prints each task's first inner step and network that are not finite."
        ),
    )
    parser.add_argument("run_folder", metavar="RUN", type=path, help="a folder that train wrote")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Repeat the meta-step, and print a line a task that diverges."""
    folder = RunFolder.open(given.run_folder)
    learner = pretrained.build(folder, folder.read_config())
    step = replay.load(folder.replay, learner)
    print(f"meta-step {learner.step + 1}, {step.batch.tasks} tasks")
    found = step.divergences(learner)
    for place in found:
        name = "" if step.batch.classes is None else f", {step.batch.classes[place.task]}"
        print(f"task {place.task}{name}: {_where(place, step.noise.steps)}")
    if not found:
        print("no task diverges on its own")
    return 0


def _where(place: Divergence, steps: int) -> str:
    losses = ", ".join(f"{name} {value:g}" for name, value in place.losses.items())
    if place.inner_step is None:
        return f"all {steps} inner steps are finite, the {place.network}'s meta-gradient is not ({losses})"
    return f"the {place.network} is first not finite after inner step {place.inner_step} of {steps} ({losses})"
