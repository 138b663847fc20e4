"""Saves that faults meet: each has a state before, the save itself, and a check of what a fault left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from metagan_fast.benchmarks.faults import small_run
from metagan_fast.benchmarks.faults.injection import attempt

from metagan_fast import checkpoint
from metagan_fast.models import mlp
from metagan_fast.tasks.data_sets.archives import Archive
from metagan_fast.tasks.data_sets.collection import Collection, Drawing
from metagan_fast.training.output_folder import OutputFolder
from metagan_fast.training.run_folder import KID, RunFolder

_ARCHIVE = Archive("npm", "package", "1.0", "0" * 64, 1, "MIT", "family", "author")

_OPTIONAL = {"metrics.jsonl": "metrics", "samples": "pictures"}  # files or folders, as log lines name them

TOLD = "a line of metrics or a picture"
"""Outputs without which training goes on, with a log line."""

ERROR = 2
"""Exit code of the command line for an error."""


class Lost(Exception):
    """Loss of something that a fault must not take; the message says what."""


class Save(Protocol):
    """A save, in a folder that is copied afresh for each fault."""

    @property
    def name(self) -> str:
        """Name in a table."""

    def prepare(self, folder: Path) -> None:
        """Make the state before."""

    def save(self, folder: Path) -> int:
        """Save; return the exit code of a command. It meets the fault."""

    def check(self, folder: Path, before: Path, after: Path, output: str) -> str:
        """Return the state that is there, given folders with the ones before and after; Lost if it is neither.

        `output` is what the save printed when it met the fault.
        """


@dataclass(frozen=True)
class Files:
    """Save of files, each of them whole or not at all.

    Attributes:
        name: in a table.
        files: their names.
        write: writes version 0 or 1 of them to a folder.
    """

    name: str
    files: tuple[str, ...]
    write: Callable[[Path, int], object]

    def prepare(self, folder: Path) -> None:
        """Write version 0."""
        self.write(folder, 0)

    def save(self, folder: Path) -> int:
        """Write version 1."""
        try:
            self.write(folder, 1)
        except (ValueError, OSError) as error:  # reported in a line by the command line
            print(error)
            return ERROR
        return 0

    def check(self, folder: Path, before: Path, after: Path, output: str) -> str:
        """Compare each file with both versions, then save again."""
        kept = {_kept(name, folder, before, after) for name in self.files}
        again = attempt(lambda: self.save(folder), folder)
        if again.code or {_kept(name, folder, before, after) for name in self.files} != {"new"}:
            raise Lost(f"it cannot be saved again: {again.output}")
        return " or ".join(sorted(kept, reverse=True))


def _kept(name: str, folder: Path, before: Path, after: Path) -> str:
    if not (folder / name).is_file():
        raise Lost(f"{name} is gone")
    data = (folder / name).read_bytes()
    for state, other in (("new", after), ("previous", before)):
        if data == (other / name).read_bytes():
            return state
    raise Lost(f"{name} is half written")


@dataclass(frozen=True)
class Run:
    """A run of the command line, all its files: config, checkpoints, metrics, pictures, events, report.

    Attributes:
        name: in a table.
        first, steps: meta-steps before, and in all.
        options: of the command.
    """

    name: str
    first: int
    steps: int
    options: tuple[str, ...] = ()

    def prepare(self, folder: Path) -> None:
        """Write the data, and train for the first meta-steps."""
        small_run.write_data(folder / "data.npz")
        if self.first and small_run.train(folder / "data.npz", folder / "run", self.first, self.options):
            raise RuntimeError("the undisturbed run failed")

    def save(self, folder: Path) -> int:
        """Train."""
        return small_run.train(
            folder / "data.npz", folder / "run", self.steps, () if self.first else self.options, resume=self.first > 0
        )

    def check(self, folder: Path, before: Path, after: Path, output: str) -> str:
        """Go on as the messages say; the run must end with the bytes of one that met no fault.

        Metrics and pictures may lack what a log line has told.
        """
        run, data = folder / "run", folder / "data.npz"
        saved = _newest(RunFolder(run))
        if saved < self.first:
            raise Lost(f"only meta-step {saved} of {self.first} is there")
        ending = attempt(lambda: small_run.train(data, run, self.steps, resume=True), run)
        if ending.code and not saved and small_run.ANEW.search(ending.output):
            ending = attempt(lambda: small_run.train(data, run, self.steps, (*self.options, "--overwrite")), run)
        if ending.code:
            raise Lost(f"the run cannot go on: {ending.output}")
        wanted, found = small_run.state(after / "run"), small_run.state(run)
        different = {name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)}
        told = {name for name in different if f"cannot write {_OPTIONAL.get(name.split('/')[0])} to" in output}
        if different - told:
            raise Lost(f"the run that goes on ends with other bytes of {', '.join(sorted(different - told))}")
        if small_run.leftovers(run):
            raise Lost(f"temporary files are left: {', '.join(small_run.leftovers(run))}")
        return f"{TOLD} is missing, and a log line says so" if told else f"goes on from meta-step {saved}"


def _newest(run: RunFolder) -> int:
    """Return the number of meta-steps in the newest checkpoint that is whole, 0 without one."""
    try:
        return int(run.latest()[1]["step"])
    except checkpoint.CheckpointError:
        return 0


def _checkpoint(folder: Path, version: int) -> None:
    from metagan_fast import MetaGAN

    torch.manual_seed(version)
    MetaGAN(*mlp((1, 4, 4), latent_dim=2, hidden=(4,)), latent_dim=2).save(folder / "learner.safetensors")


def _best(folder: Path, version: int) -> None:
    run = RunFolder(folder)
    run.checkpoints.mkdir(exist_ok=True)
    run.save_best({"generator.weight": torch.full((64,), float(version))}, {KID: 1.0 - version, "step": version})


def _config(folder: Path, version: int) -> None:
    RunFolder(folder).write_config({"settings": {"seed": version}, "versions": {"metagan_fast": "0"}})


def _evaluation(folder: Path, version: int) -> None:
    RunFolder(folder).write_evaluation({"meta_step": version})


def _report(folder: Path, version: int) -> None:
    page = f'<meta name="generator" content="metagan_fast 0"><p>{version}'
    RunFolder(folder).write_report(page, {"adaptation": b"picture %d" % version})


def _data_set(folder: Path, version: int) -> None:
    images = np.full((1, 8, 8), version, np.uint8)
    drawings = [Drawing("class", "group", _ARCHIVE, "item")]
    Collection("data", images, drawings, "changes", {"class": "train"}).save(folder / "data.npz")


def _samples(folder: Path, version: int) -> None:
    OutputFolder(folder, "sample").write({name: f"{name} {version}".encode() for name in ("0.png", "1.png")})


FILES = (
    Files("MetaGAN.save", ("learner.safetensors",), _checkpoint),
    Files("best checkpoint", ("checkpoints/best.safetensors",), _best),
    Files("config.json", ("config.json",), _config),
    Files("evaluation.json", ("evaluation.json",), _evaluation),
    Files("report", ("report.html", "report/adaptation.png"), _report),
    Files("data get", ("data.npz",), _data_set),
    Files("samples", ("0.png", "1.png"), _samples),
)
RUNS = (
    Run("train", 0, 2, ("--no-keep-best",)),
    Run("train --resume", 1, 3, ("--keep-best", "--validate-every", "1")),
)
