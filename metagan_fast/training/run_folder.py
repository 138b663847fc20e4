"""Folder of a training run: its files, their names, and which are kept."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import checkpoint
from .._utils import json_text
from ..checkpoint import CheckpointError
from .folder_lock import LOCK, locked
from .metrics_files import MetricsFiles

logger = logging.getLogger(__name__)

# Exact names of a run's files.
_SAMPLE = re.compile(r"step-\d{8,}\.png")
_CHECKPOINT = re.compile(r"step-\d{8,}\.safetensors")
_LINK = re.compile(r"latest\.safetensors")
_EVENTS = re.compile(r"events\.out\.tfevents\..+")
_PICTURE = re.compile(r"(adaptation|interpolation|evaluation)\.png")
_UNFINISHED = re.compile(  # left by a killed process
    r"\.((step-\d{8,}\.png|(step-\d{8,}|best|features(-prototype)?|replay)\.safetensors"
    r"|(adaptation|interpolation|evaluation)\.png|report\.html|(config|evaluation)\.json|metrics(-\d{6,})?\.jsonl)\.\d+|latest)"
    r"\.tmp"
)
_REPORT_HEAD = 4096  # bytes in which a report has its mark
_REPORT_MARK = b'<meta name="generator" content="metagan_fast '

PUBLISHED = "model.safetensors"
"""Name of the only checkpoint of a folder that `publish` wrote."""

KID = "validation_kid"
"""Name of the validation classes' KID, in metrics and in the metadata of the best checkpoint."""

REPLAY = "replay"
"""Name of the metadata that only a replay file has."""


class RunFolder:
    """Files of one run.

    Attributes:
        path: the folder.
        samples: PNG grids, one a validation.
        checkpoints: the last few states; `latest.safetensors` points to the newest.
        best: the state with the lowest KID at a validation, if the run keeps it.
        events: for TensorBoard.
        metrics: one JSON object a line: `step` and numbers.
        config: settings, split and versions of the run, JSON.
        features: the feature classifier, where the package's does not fit the run's data.
        prototype_features: the network of the second feature space, likewise.
        replay: the meta-step that ended the run, if one diverged.
        evaluation: result of `evaluate`, JSON.
        report: page about the run, HTML.
        report_pictures: the page's own pictures, PNG.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path)
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.checkpoints / "best.safetensors"
        self.events: Path = self.path / "events"
        self.metrics = self.path / "metrics.jsonl"
        self.config = self.path / "config.json"
        self.features = self.path / "features.safetensors"
        self.prototype_features = self.path / "features-prototype.safetensors"
        self.replay = self.path / "replay.safetensors"
        self.evaluation = self.path / "evaluation.json"
        self.report = self.path / "report.html"
        self.report_pictures = self.path / "report"
        self._locked = False

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, overwrite: bool = False) -> RunFolder:
        """Make the folder of a new run.

        Args:
            path: may exist if it holds no file.
            overwrite: delete the files of an existing run, by their exact names; other files stay.

        Raises:
            FileExistsError: as `check_free`.
            OSError: the folder cannot be made or written to.
        """
        cls.check_free(path, overwrite=overwrite)
        folder = cls(path)
        folder._clear()
        for part in (folder.samples, folder.checkpoints, folder.events):
            part.mkdir(parents=True, exist_ok=True)
        return folder

    @classmethod
    def check_free(cls, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Raise FileExistsError if the folder holds something, unless it is a run to `overwrite`.

        ValueError if its name is not UTF-8.
        """
        folder = cls(path)
        try:
            os.fspath(path).encode()
        except UnicodeEncodeError:
            raise ValueError(f"a run's folder must be UTF-8, which TensorBoard needs; got {str(path)!r}") from None
        if not folder.path.exists() or (folder.path.is_dir() and folder._is_empty()):
            return
        if not folder._is_run():
            raise FileExistsError(f"{path} exists and is not a run (it has no config.json of train's); choose another")
        if not overwrite:
            raise FileExistsError(f"{path} holds a run; resume it, overwrite it, or choose another folder")

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open the folder of an existing run.

        Raises:
            FileNotFoundError: there is none.
        """
        folder = cls(path)
        if not folder.config.is_file():
            raise FileNotFoundError(f"{path} is not a run: it has no config.json; expected a folder of `train`")
        return folder

    def pictures(self) -> list[Path]:
        """Return the run's sample grids, oldest first."""
        return self._written(self.samples, _SAMPLE)

    def _is_empty(self) -> bool:
        """Return whether the folder holds only the lock and empty folders of a run that ended before its config."""
        parts = {self.samples, self.checkpoints, self.events, self.report_pictures}
        others = (path for path in self.path.iterdir() if path.name != LOCK and not _UNFINISHED.fullmatch(path.name))
        return all(path in parts and path.is_dir() and not any(path.iterdir()) for path in others)

    def _is_run(self) -> bool:
        versions = _read_object(self.config).get("versions")
        return isinstance(versions, dict) and "metagan_fast" in versions

    def check_writable(self) -> None:
        """Raise OSError, whose message names the folder, if no file can be created in it or its parent."""
        place = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            raise OSError(
                f"cannot write to {place}: {error.strerror}; expected a folder of which you may change the files"
            ) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training in the folder; a process that dies releases it.

        The lock is reentrant; `folder_lock.locked` tells what holds without file locks.

        Raises:
            BlockingIOError: another process trains here; the message names it.
        """
        if self._locked:
            yield
            return
        with contextlib.ExitStack() as held:
            held.enter_context(locked(self.path))
            self._locked = True
            held.callback(setattr, self, "_locked", False)
            yield

    def _clear(self) -> None:
        written = MetricsFiles(self.metrics).all()
        for folder, names in (
            (self.samples, (_SAMPLE, _UNFINISHED)),
            (self.checkpoints, (_CHECKPOINT, _LINK, _UNFINISHED)),
            (self.events, (_EVENTS,)),
            (self.report_pictures, (_PICTURE, _UNFINISHED)),
            (self.path, (_UNFINISHED,)),
        ):
            for name in names:
                written += self._written(folder, name)
        if "meta_step" in _read_object(self.evaluation):
            written.append(self.evaluation)
        if self._has_report():
            written.append(self.report)
        if self.has_best():
            written.append(self.best)
        with contextlib.suppress(CheckpointError):
            if REPLAY in checkpoint.read(self.replay)[1]:
                written.append(self.replay)
        for network in (self.features, self.prototype_features):
            with contextlib.suppress(CheckpointError):
                checkpoint.read(network)
                written.append(network)
        for file in (*written, self.config):  # the config last: after a crash the rest is still recognised as a run
            file.unlink(missing_ok=True)

    def forget_unfinished(self) -> None:
        """Remove temporary files that a killed process left."""
        for part in (self.path, self.checkpoints, self.samples, self.report_pictures):
            for file in self._written(part, _UNFINISHED):
                with contextlib.suppress(OSError):
                    file.unlink()

    @staticmethod
    def _written(folder: Path, name: re.Pattern[str]) -> list[Path]:
        """Return the files with exact names of a run's outputs, by step; other files belong to the user."""
        if not folder.is_dir():
            return []
        found = (path for path in folder.iterdir() if name.fullmatch(path.name) and not path.is_dir())
        return sorted(found, key=lambda path: (len(path.name), path.name))

    # JSON files

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write `config.json`, atomically."""
        write_json(self.config, config)

    def read_config(self) -> dict[str, Any]:
        """Read `config.json`; ValueError if it is damaged."""
        try:
            config = json_text.parse(self.config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.config} is damaged: {error}") from error
        if not isinstance(config, dict):
            raise ValueError(f"{self.config} is damaged: expected an object")
        return config

    def check_evaluation(self) -> None:
        """Raise FileExistsError if `evaluation.json` belongs to the user."""
        if os.path.lexists(self.evaluation) and "meta_step" not in _read_object(self.evaluation):
            raise FileExistsError(f"{self.evaluation} exists and `evaluate` did not write it: move it")

    def write_evaluation(self, content: Mapping[str, Any]) -> None:
        """Write `evaluation.json`, atomically; FileExistsError as `check_evaluation`."""
        self.check_evaluation()
        write_json(self.evaluation, content)

    def read_evaluation(self) -> dict[str, Any]:
        """Return the result of `evaluate`; an empty one if there is none or `evaluation.json` belongs to the user."""
        content = _read_object(self.evaluation)
        return content if "meta_step" in content else {}

    # The report

    def check_report(self) -> None:
        """Raise FileExistsError if `report.html` belongs to the user."""
        if os.path.lexists(self.report) and not self._has_report():
            raise FileExistsError(f"{self.report} exists and is no report of a run: move it")

    def write_report(self, page: str, pictures: Mapping[str, bytes]) -> None:
        """Write the page and its pictures, "adaptation", "interpolation" and "evaluation", each atomically.

        Raises:
            FileExistsError: as `check_report`.
            CheckpointError: a file cannot be written.
        """
        self.check_report()
        self.report_pictures.mkdir(exist_ok=True)
        for name, data in pictures.items():
            checkpoint.write_bytes(self.report_pictures / f"{name}.png", data)
        checkpoint.write_bytes(self.report, page.encode())

    def _has_report(self) -> bool:
        try:
            with open(self.report, "rb") as file:
                return _REPORT_MARK in file.read(_REPORT_HEAD)
        except OSError:
            return False

    # Metrics

    def append_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line to `metrics.jsonl`, whole or not at all; a full file is kept as `metrics-N.jsonl`.

        Raises:
            OSError: it cannot be written.
        """
        MetricsFiles(self.metrics).append(step, metrics)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the lines of all metrics files; a line that a crash cut short or that has no step is dropped."""
        return MetricsFiles(self.metrics).read()

    def forget_metrics_after(self, step: int) -> None:
        """Drop lines that a resumed run will write again."""
        MetricsFiles(self.metrics).forget_after(step)

    # Checkpoints

    def save(self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], *, keep: int) -> Path:
        """Write the state after `step` meta-steps, then delete all but the newest `keep` states.

        Raises:
            CheckpointError: it cannot be written; the earlier ones stay.
        """
        path = self._step_path(step)
        checkpoint.write(path, tensors, metadata)
        for old in self._saved()[:-keep]:
            old.unlink()
        self._point_to(path)
        return path

    def latest(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read the newest state that is whole, else a published one; a damaged one is skipped, with a warning.

        Raises:
            CheckpointError: there is none.
        """
        for path in reversed(self._saved()):
            try:
                return checkpoint.read(path)
            except CheckpointError as error:
                logger.warning("%s; going back to the one before", error)
        if (self.path / PUBLISHED).is_file():
            return checkpoint.read(self.path / PUBLISHED)
        best = f", or start another from {self.best} with --init" if self.has_best() else ""
        raise CheckpointError(f"{self.checkpoints} holds no checkpoint that can be read; train the run again{best}")

    def check_best(self) -> None:
        """Raise FileExistsError if `best.safetensors` belongs to the user."""
        if os.path.lexists(self.best) and not self.has_best():
            raise FileExistsError(f"{self.best} exists and is no best checkpoint of a run: move it")

    def has_best(self) -> bool:
        """Return whether the run keeps the state with the lowest KID."""
        return self.lowest_kid() < math.inf

    def lowest_kid(self) -> float:
        """Return the KID of the best state; infinity if there is none."""
        with contextlib.suppress(CheckpointError, KeyError, TypeError, ValueError):
            return float(checkpoint.read(self.best)[1][KID])
        return math.inf

    def save_best(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Write the state with the lowest KID yet, which `metadata` holds, in place of the one before.

        Raises:
            CheckpointError: it cannot be written; the one before stays.
        """
        checkpoint.write(self.best, tensors, metadata)

    def read_checkpoint(self, which: str | int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read a state.

        Args:
            which: "last", as `latest`; "best", the one with the lowest KID at a validation; the number of its
                meta-steps; None: the best one if the run keeps it, else the last.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        has_best = which != "last" and self.has_best()
        if which in (None, "best") and not has_best and os.path.lexists(self.best):
            try:
                checkpoint.read(self.best)
            except CheckpointError as error:
                if which == "best":
                    raise
                logger.warning("%s; taking the last one in its place", error)
        if which == "last" or (which is None and not has_best):
            return self.latest()
        paths = {"best": self.best} if has_best else {}
        paths |= {str(_steps(path)): path for path in self._saved()}
        name = "best" if which is None else str(which)
        if name not in paths:
            raise CheckpointError(f"{self.path} keeps no checkpoint {name}; it has {', '.join(paths) or 'none'}")
        try:
            return checkpoint.read(paths.pop(name))
        except CheckpointError as error:
            whole = [other for other, path in paths.items() if _is_whole(path)]
            raise CheckpointError(f"{error}; whole ones of this run: {', '.join(whole) or 'none'}") from error

    def newest(self) -> int | None:
        """Return the number of meta-steps of the newest state, None without one; it is not read."""
        saved = self._saved()
        return _steps(saved[-1]) if saved else None

    def _step_path(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}.safetensors"

    def _saved(self) -> list[Path]:
        return self._written(self.checkpoints, _CHECKPOINT)

    def _point_to(self, path: Path) -> None:
        """Update the link to the newest state, for people; the code never reads it."""
        link, temporary = self.checkpoints / "latest.safetensors", self.checkpoints / ".latest.tmp"
        with contextlib.suppress(OSError):  # a file system without links
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(path.name)
            temporary.replace(link)


def _steps(path: Path) -> int:
    """Return the number of meta-steps in a checkpoint's name."""
    return int(path.stem.removeprefix("step-"))


def _is_whole(path: Path) -> bool:
    try:
        checkpoint.read(path)
    except CheckpointError:
        return False
    return True


def _read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one if the file is missing or is of another kind."""
    try:
        content = json_text.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that people read, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    checkpoint.write_bytes(path, text.encode(errors="backslashreplace"))  # file names that are no UTF-8: JSON's escape
