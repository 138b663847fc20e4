"""Outer loop: batches, meta-steps, validation, logging, checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .._utils.coerce import convert, count, flag, non_negative, real
from ..learner.average import MovingAverage
from ..metrics.validation import ValidationKID
from ..tasks.split import is_same_data
from . import image_grids
from .features import feature_classifier
from .run_folder import KID, RunFolder
from .stop_request import Stopped, StopRequest, stop_request

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

    from ..inner import InnerLoop
    from ..learner import MetaGAN
    from ..tasks import TaskBatch, Tasks

logger = logging.getLogger(__name__)

VALIDATION_ROWS = 4
"""Generated images that a sample grid shows below each support image."""

_OWES_VALIDATION = "owes_validation"  # metadata of a checkpoint whose validation has not ended

_PROGRESS, _EVENTS = "progress", "events for TensorBoard"  # optional outputs


@dataclass(frozen=True)
class Training:
    """Settings of the outer loop.

    Args:
        meta_steps: total number, including those before a resume.
        tasks: tasks a meta-step.
        shots: support images a task.
        query: query images a task.
        validate_every: meta-steps between validations; 0: only at the end.
        validation_tasks: held-out classes a validation adapts to.
        validation_shots: support images of a held-out class, in validation, report and evaluation; None: `shots`.
        checkpoint_every: meta-steps between checkpoints; 0: only at the end.
        keep: checkpoints kept.
        log_every: meta-steps between lines of metrics.
        ema: decay, in (0, 1), of a moving average of the initialisation, which validation and all outputs use; None
            or 0: no average.
        keep_best: at each validation measure KID on held-out classes, and keep the checkpoint with the lowest.
        warm_up: the first meta-steps, which train jointly on images of mixed classes (`MetaGAN.joint_step`).
        warm_up_batch_size: images of an update of the warm-up; None: the inner loop's.
        warm_up_lr: learning rate of the warm-up's inner loop, for both networks; None: the inner loop's.

    Raises:
        ValueError: a value out of range.
    """

    meta_steps: int
    tasks: int = 8
    shots: int = 4
    query: int = 0
    validate_every: int = 0
    validation_tasks: int = 8
    validation_shots: int | None = None
    checkpoint_every: int = 0
    keep: int = 3
    log_every: int = 1
    ema: float | None = None
    keep_best: bool = False
    warm_up: int = 0
    warm_up_batch_size: int | None = None
    warm_up_lr: float | None = None

    def __post_init__(self) -> None:
        convert(self, count, "warm_up", "query", "validate_every", "checkpoint_every")
        convert(self, count, "meta_steps", "tasks", "shots", "validation_tasks", "keep", "log_every", least=1)
        convert(self, count, "validation_shots", "warm_up_batch_size", least=1, optional=True)
        convert(self, non_negative, "warm_up_lr", optional=True)
        convert(self, flag, "keep_best")
        if self.warm_up_lr == 0:
            raise ValueError("expected warm_up_lr to be positive, got 0; None takes the inner loop's rate")
        ema = None if self.ema is None else real("ema", self.ema)
        if ema and not 0 < ema < 1:
            raise ValueError(f"expected ema to be a decay between 0 and 1, such as 0.99, or 0 for none; got {ema}")
        object.__setattr__(self, "ema", ema or None)

    @property
    def held_out_shots(self) -> int:
        """Support images of a held-out class."""
        return self.shots if self.validation_shots is None else self.validation_shots

    def warm_up_inner(self, inner: InnerLoop) -> InnerLoop:
        """Return the settings of the warm-up's inner loop, given the learner's."""
        changes: dict[str, Any] = {}
        if self.warm_up_batch_size is not None:
            changes["batch_size"] = self.warm_up_batch_size
        if self.warm_up_lr is not None:
            changes |= {"lr": self.warm_up_lr, "discriminator_lr": None}
        return dataclasses.replace(inner, **changes)

    def to_config(self) -> dict[str, Any]:
        """Return the settings as JSON-able data; those that older records lack are absent where they are off."""
        newer = ("validation_shots", "ema", "keep_best", "warm_up", "warm_up_batch_size", "warm_up_lr")
        return {name: x for name, x in dataclasses.asdict(self).items() if x or name not in newer}


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
        self._warm_up_inner = training.warm_up_inner(learner.inner)
        learner.check(self._batch(training.warm_up))  # raises before training if a batch cannot be drawn or used
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
        step, batch = self.learner.step, self._batch(self.learner.step)
        if step < training.warm_up:
            metrics = self.learner.joint_step(batch, inner=self._warm_up_inner)
        else:
            metrics = self.learner.meta_step(batch)
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

    def _batch(self, step: int) -> TaskBatch:
        training = self.training
        if step < training.warm_up:  # new images for every update
            inner = self._warm_up_inner
            images = inner.steps * inner.critic_steps * (inner.batch_size or training.shots)
            return self.tasks.train.sample(tasks=training.tasks, shots=images, step=step, mixed=True)
        return self.tasks.train.sample(tasks=training.tasks, shots=training.shots, query=training.query, step=step)

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
