"""Outer loop: batches, meta-steps, validation, logging, checkpoints."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ..learner.average import MovingAverage
from ..metrics.validation import ValidationKID
from ..tasks.split import is_same_data
from . import image_grids
from .features import feature_classifier
from .outer_loop import Training
from .run_folder import KID, RunFolder
from .stop_request import Stopped, StopRequest, stop_request

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

    from ..learner import MetaGAN
    from ..tasks import TaskBatch, Tasks

logger = logging.getLogger(__name__)

VALIDATION_ROWS = 4
"""Generated images that a sample grid shows below each support image."""

_OWES_VALIDATION = "owes_validation"  # metadata of a checkpoint whose validation has not ended

_PROGRESS, _EVENTS = "progress", "events for TensorBoard"  # optional outputs


class Progress(Protocol):
    """Observer of training."""

    def start(self, done: int, total: int) -> None:
        """Show the start, after `done` of `total` meta-steps."""

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Show a finished meta-step."""

    def part(self, name: str, done: int, total: int) -> None:
        """Show how much of a part of the work other than meta-steps is done."""

    def message(self, text: str) -> None:
        """Show a line of text."""

    def close(self) -> None:
        """Show the end."""


class NullProgress:
    """Observer that shows nothing."""

    def start(self, done: int, total: int) -> None:
        """Do nothing."""

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def part(self, name: str, done: int, total: int) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _warn(message: str, *arguments: object) -> None:
    """Log a warning if possible: logging raises when its stream is closed."""
    with contextlib.suppress(Exception):
        logger.warning(message, *arguments)


class Dispensable:
    """Guard of optional outputs, such as the progress display: a failure is logged once an output.

    Args:
        outlook: end of the log line.
    """

    def __init__(self, outlook: str = "training goes on without") -> None:
        self._outlook = outlook
        self._failed: set[str] = set()

    @contextlib.contextmanager
    def __call__(self, output: str) -> Iterator[None]:
        """Suppress an exception of the block; log the first of each output."""
        try:
            yield
        except Exception as error:
            if output not in self._failed:
                self._failed.add(output)
                reason = f"{type(error).__name__}: {error}".removesuffix(": ")
                _warn("cannot write %s (%s); %s", output, " ".join(reason.split()), self._outlook)


@dataclass(frozen=True)
class Outcome:
    """Result of training."""

    step: int
    seconds: float
    interrupted: bool
    metrics: Mapping[str, float] = field(default_factory=dict)  # of the last meta-step


class Trainer:
    """Outer loop that meta-trains a learner and writes one run folder.

    Args:
        learner: continues from its `step`.
        tasks: the data; `tasks.train` and, where it has classes, `tasks.validation`.
        folder: the run's folder.
        training: the outer loop.
        record: plain data stored with each checkpoint, such as the run's configuration and its split.
        progress: observer; None: no display.

    Attributes:
        averaged: the learner that validation and outputs use: with `ema` its initialisation is the moving average, else
            it is `learner`.

    Raises:
        ValueError: the data have too few classes or images for these batches.
    """

    def __init__(
        self,
        learner: MetaGAN,
        tasks: Tasks,
        folder: RunFolder,
        training: Training,
        *,
        record: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.learner = learner
        self.tasks = tasks
        self.folder = folder
        self.training = training
        self.record = dict(record or {})
        in_memory = getattr(tasks, "sha256", None) is not None
        self._identity = {"data": tasks.split_record()} if in_memory else {}
        self.progress = progress or NullProgress()
        # Raises before training if a batch cannot be drawn or used.
        learner.check(training.batch(learner, tasks.train, training.warm_up))
        self._validation_batch = self._draw_validation_batch()
        if training.keep_best:
            folder.check_best()
            ValidationKID.check(tasks.validation, training.held_out_shots)
        self._average = None if training.ema is None else MovingAverage(learner, training.ema)
        self.averaged = learner if self._average is None else self._average.learner
        self._kid: ValidationKID | None = None  # made at the first validation
        self._lowest_kid = math.inf
        self._saved_step: int | None = None
        self._validated_step: int | None = learner.step
        self._dispensable = Dispensable()

    def resume(self) -> None:
        """Load the newest checkpoint of the folder and continue as if training had never stopped.

        Raises:
            BlockingIOError: another process trains in the folder.
            CheckpointError: no checkpoint can be read.
            ValueError: it belongs to other networks, or to other data in memory.
        """
        with self.folder.lock():
            tensors, metadata = self.folder.latest()
            if not is_same_data(metadata.get("data", {}), self._identity.get("data", {})):
                raise ValueError(
                    f"{self.folder.path} was trained on other data in memory, or on another split of them: "
                    "give the same images, labels and options in the same order, with the first run's split_record()"
                )
            self.learner.load_state(tensors, metadata)
            if self._average is not None:
                self._average.load(tensors, self.learner.step)
            self._lowest_kid = self.folder.lowest_kid()
            self.folder.forget_metrics_after(self.learner.step)
        owes_validation = metadata.get(_OWES_VALIDATION, False)
        self._saved_step = self._validated_step = None if owes_validation else self.learner.step

    def run(self) -> Outcome:
        """Train until `meta_steps` are done, or Ctrl-C, SIGTERM or SIGHUP asks to stop; save either way.

        A validation that a stop ends early, or an exception, is made up for after a resume. A second Ctrl-C ends the
        process at once. Failures to write progress, metrics, events or pictures are
        logged once each, and training continues. Any exception first saves the last complete meta-step.

        Raises:
            BlockingIOError: another process trains in the folder.
            CheckpointError: a checkpoint cannot be written; the earlier ones stay.
            FloatingPointError: a meta-gradient is not finite.
        """
        training, learner = self.training, self.learner
        metrics: dict[str, float] = {}
        begun = time.monotonic()
        with self.folder.lock(), stop_request(self._announce_stop) as stop, self._event_writer() as writer:
            with self._dispensable(_PROGRESS):
                self.progress.start(learner.step, training.meta_steps)
            try:
                with contextlib.suppress(Stopped):
                    if self._owes_validation():
                        self._validate(writer, stop)
                        self._save()
                    while learner.step < training.meta_steps:
                        stop.check()
                        metrics = self._meta_step(writer)
                        if self._owes_validation():
                            self._validate(writer, stop)
                        if self._is_due(training.checkpoint_every):
                            self._save()
                self._save()
            except BaseException as error:
                self._save_after(error)
                raise
            finally:
                with self._dispensable(_PROGRESS):
                    self.progress.close()
        interrupted = learner.step < training.meta_steps or self._owes_validation()
        return Outcome(learner.step, time.monotonic() - begun, interrupted, metrics)

    def _announce_stop(self) -> None:
        self.progress.message("stopping after this meta-step; Ctrl-C again to exit at once")

    @contextlib.contextmanager
    def _event_writer(self) -> Iterator[SummaryWriter | None]:
        """Open TensorBoard's files, if they can be written, and close them."""
        writer, report = None, threading.excepthook

        def report_others(arguments: threading.ExceptHookArgs) -> None:
            """Ignore TensorBoard's own thread: the next call of its writer raises the error again."""
            if not type(arguments.thread).__module__.startswith("tensorboard."):
                report(arguments)

        with self._dispensable(_EVENTS):
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            threading.excepthook = report_others
            writer = SummaryWriter(str(self.folder.events), purge_step=self.learner.step + 1)
        try:
            yield writer
        finally:
            with self._dispensable(_EVENTS):
                if writer is not None:
                    writer.close()
            threading.excepthook = report

    def _meta_step(self, writer: SummaryWriter | None) -> dict[str, float]:
        training = self.training
        metrics = training.take_step(self.learner, self.tasks.train)
        self._follow()
        step = self.learner.step
        if step % training.log_every == 0 or step == training.meta_steps:
            self._log(writer, metrics)
        with self._dispensable(_PROGRESS):
            self.progress.step(step, metrics)
        return metrics

    def _follow(self) -> None:
        if self._average is not None:
            self._average.follow(self.learner)

    def _draw_validation_batch(self) -> TaskBatch | None:
        classes = len(self.tasks.validation.classes)
        if not classes:
            return None
        tasks = min(self.training.validation_tasks, classes)
        return self.tasks.validation.sample(tasks=tasks, shots=self.training.held_out_shots, query=0, step=0)

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.learner.step % every == 0

    def _owes_validation(self) -> bool:
        """Return whether a validation is due after the last meta-step and has not ended."""
        step = self.learner.step
        is_due = step == self.training.meta_steps or self._is_due(self.training.validate_every)
        return is_due and self._validated_step != step

    def _save(self) -> None:
        if self._saved_step == self.learner.step:
            return
        tensors, metadata = self._state()
        if self._owes_validation():
            metadata[_OWES_VALIDATION] = True
        self.folder.save(self.learner.step, tensors, metadata, keep=self.training.keep)
        self._saved_step = self.learner.step

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and metadata of a checkpoint."""
        tensors, metadata = self.learner.state()
        if self._average is not None:
            self._follow()  # an exception may have come between
            tensors |= self._average.tensors()
        return tensors, {**metadata, "run": self.record, **self._identity}

    def _save_after(self, error: BaseException) -> None:
        """Save the last complete meta-step before `error` ends training; a failure to save does not hide `error`."""
        name, step = type(error).__name__, self.learner.step
        try:
            self._save()
        except Exception as second:
            _warn("%s ends training; meta-step %d cannot be saved: %s", name, step, second)
        else:
            _warn("%s ends training; meta-step %d, the last complete one, is saved", name, step)

    def _validate(self, writer: SummaryWriter | None, stop: StopRequest) -> None:
        """Adapt to fixed held-out classes, save a grid of support images above generated ones, and keep the best.

        Stopped if a stop is requested; another call then does all of it.
        """
        batch = self._validation_batch
        if batch is None:
            self._validated_step = self.learner.step
            return
        stop.check()
        adapted = self.averaged.inner_loop(batch)
        samples = self.averaged.sample_tasks(adapted, VALIDATION_ROWS * batch.shots)
        laid_out = image_grids.task_grid(batch.support, samples)
        step = self.learner.step
        with self._dispensable(f"pictures to {self.folder.samples}"):
            image_grids.save_grid(self.folder.samples / f"step-{step:08d}.png", laid_out, batch.image_shape[-1])
        with self._dispensable(_EVENTS):
            if writer is not None:
                writer.add_image("validation/support_above_generated", (laid_out + 1) / 2, step)
        metrics = {f"validation_{name}": value.mean().item() for name, value in adapted.metrics.items()}
        self._log(writer, metrics | self._keep_best(stop))
        self._validated_step = step

    def _keep_best(self, stop: StopRequest) -> dict[str, float]:
        """Measure KID on held-out classes, and keep the checkpoint if no earlier one has as low a KID."""
        if not self.training.keep_best:
            return {}
        if self._kid is None:

            def report(name: str, done: int, total: int) -> None:
                stop.check()
                with self._dispensable(_PROGRESS):
                    self.progress.part(name, done, total)

            features = feature_classifier(self.folder, self.tasks.train, self._say, report)
            stop.check()
            self._kid = ValidationKID(self.tasks.validation, features, shots=self.training.held_out_shots)
        kid = self._kid(self.averaged, stop.check)
        if kid < self._lowest_kid:
            tensors, metadata = self._state()
            self.folder.save_best(tensors, {**metadata, KID: kid})
            self._lowest_kid = kid
        return {KID: kid}

    def _say(self, text: str) -> None:
        with self._dispensable(_PROGRESS):
            self.progress.message(text)

    def _log(self, writer: SummaryWriter | None, metrics: Mapping[str, float]) -> None:
        with self._dispensable(f"metrics to {self.folder.metrics}"):
            self.folder.append_metrics(self.learner.step, metrics)
        if writer is None:
            return
        with self._dispensable(_EVENTS):
            for name, value in metrics.items():
                group = "validation" if name.startswith("validation_") else "train"
                writer.add_scalar(f"{group}/{name.removeprefix('validation_')}", value, self.learner.step)
