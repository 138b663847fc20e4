"""Outer loop: batches, meta-steps, validation, logging, checkpoints."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ..display import image_grids
from ..display.progress import NullProgress as NullProgress  # its place before 0.2
from ..display.progress import Progress, observer
from ..distributed import Ranks, RanksDiffer
from ..learner.average import MovingAverage
from ..metrics.validation import ValidationKID
from ..tasks.split import is_same_data
from .dropped_tasks import DroppedTasks
from .features import feature_classifier
from .loggers import Logger, TensorBoard
from .outer_loop import Training
from .prefetch import Prefetcher
from .run_folder import KID, RunFolder
from .stop_request import AgreedStop, Stopped, stop_request

if TYPE_CHECKING:
    from torch import Tensor

    from ..learner import MetaGAN
    from ..tasks import TaskBatch, Tasks

logger = logging.getLogger(__name__)

VALIDATION_ROWS = 4
"""Generated images that a sample grid shows below each support image."""

_OWES_VALIDATION = "owes_validation"  # metadata of a checkpoint whose validation has not ended

_PROGRESS = "progress"  # optional output


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
    dropped: int = 0  # tasks that the run's meta-steps left out
    signal: int | None = None  # number of the signal that asked to stop
    data_seconds: float = 0.0  # waited for batches


class Trainer:
    """Outer loop that meta-trains a learner and writes one run folder.

    Args:
        learner: continues from its `step`.
        tasks: the data; `tasks.train` and, where it has classes, `tasks.validation`.
        folder: the run's folder.
        training: the outer loop.
        record: plain data stored with each checkpoint, such as the run's configuration and its split.
        progress: observer; True: a bar, in a notebook too; None: no display.
        loggers: receivers of metrics and pictures besides the folder's own files; None: TensorBoard's event files.

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
        progress: Progress | bool | None = None,
        loggers: Sequence[Logger] | None = None,
    ) -> None:
        self.learner = learner
        self.tasks = tasks
        self.folder = folder
        self.training = training
        self.record = dict(record or {})
        in_memory = getattr(tasks, "sha256", None) is not None
        self._identity = {"data": tasks.split_record()} if in_memory else {}
        self._ranks = learner._ranks or Ranks()
        self.progress = observer(progress)
        if not self._ranks.is_first:
            loggers = ()
        self.loggers = [TensorBoard(folder.events)] if loggers is None else list(loggers)
        # Raises before training if a batch cannot be drawn or used.
        learner.check(training.batch(learner, tasks.train, training.warm_up))
        self._validation_batch = self._draw_validation_batch()
        if training.keep_best:
            folder.check_best()
            ValidationKID.check(tasks.validation, training.held_out_shots)
        self._average = None if training.ema is None else MovingAverage(learner, training.ema)
        self.averaged = learner if self._average is None else self._average.learner
        self._dropped = DroppedTasks(folder.replay)
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
            tensors, metadata = self._ranks.share_state(self.folder.latest)
            if not is_same_data(metadata.get("data", {}), self._identity.get("data", {})):
                raise ValueError(
                    f"{self.folder.path} was trained on other data in memory, or on another split of them: "
                    "give the same images, labels and options in the same order, with the first run's split_record()"
                )
            self.learner.load_state(tensors, metadata)
            if self._average is not None:
                self._average.load(tensors, self.learner.step)
            self._dropped.load(metadata)
            self._lowest_kid = self.folder.lowest_kid()
            self.folder.forget_unfinished()
            self.folder.forget_metrics_after(self.learner.step)
        owes_validation = metadata.get(_OWES_VALIDATION, False)
        self._saved_step = self._validated_step = None if owes_validation else self.learner.step

    def run(self) -> Outcome:
        """Train until `meta_steps` are done, or Ctrl-C, SIGTERM or SIGHUP asks to stop; save either way.

        A validation that a stop ends early, or an exception, is made up for after a resume. A second Ctrl-C ends the
        process at once; in an interactive session, a notebook's too, it raises KeyboardInterrupt. Failures to write
        progress, metrics or pictures, and those of loggers, are logged once each, and training continues. Any exception
        first saves the last complete meta-step.

        Raises:
            BlockingIOError: another process trains in the folder.
            CheckpointError: a checkpoint cannot be written; the earlier ones stay.
            FloatingPointError: more tasks than `max_dropped` diverged in meta-steps in a row.
        """
        training, learner = self.training, self.learner
        metrics: dict[str, float] = {}
        begun = time.monotonic()
        draw = partial(training.batch, learner, self.tasks.train)
        with (
            self.folder.lock(),
            stop_request(self._announce_stop) as own,
            self._closing(),
            Prefetcher(draw, training.meta_steps, learner.generator_parameters.device) as batches,
        ):
            stop = AgreedStop(own, self._ranks)
            with self._dispensable(_PROGRESS):
                self.progress.start(learner.step, training.meta_steps)
            try:
                with contextlib.suppress(Stopped):
                    if self._owes_validation():
                        self._validate(stop)
                        self._save()
                    while learner.step < training.meta_steps:
                        stop.check()
                        metrics = self._meta_step(batches(learner.step))
                        if self._owes_validation():
                            self._validate(stop)
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
        seconds = time.monotonic() - begun
        return Outcome(
            learner.step, seconds, interrupted, metrics, self._dropped.total, own.signal, data_seconds=batches.seconds
        )

    def _announce_stop(self) -> None:
        self.progress.message("stopping after this meta-step; Ctrl-C again to exit at once")

    @contextlib.contextmanager
    def _closing(self) -> Iterator[None]:
        """Close the loggers at the end."""
        try:
            yield
        finally:
            for each in self.loggers:
                with self._dispensable(_output(each)):
                    each.close()

    def _meta_step(self, batch: TaskBatch) -> dict[str, float]:
        training = self.training
        metrics = self._dropped.train_on(training, self.learner, batch, self.record)
        self._follow()
        step = self.learner.step
        if step % training.log_every == 0 or step == training.meta_steps:
            self._log(metrics)
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

    def _save(self, *, check: bool = True) -> None:
        """Save the last meta-step unless it is; `check` first that all ranks are at it."""
        if self._saved_step == self.learner.step:
            return
        if check:
            self.learner.check_ranks()
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
        return tensors, {**metadata, "run": self.record, **self._identity, **self._dropped.state()}

    def _save_after(self, error: BaseException) -> None:
        """Save the last complete meta-step before `error` ends training; a failure to save does not hide `error`."""
        name, step = type(error).__name__, self.learner.step
        go_on = f"go on with: metagan-fast train --resume --out {self.folder.path}"
        if isinstance(error, RanksDiffer) or not self._ranks.is_first:
            return
        try:
            self._save(check=False)
        except Exception as second:
            saved = self.folder.newest()
            kept = "nothing is saved yet" if saved is None else f"meta-step {saved} is saved; {go_on}"
            _warn("%s ends training; meta-step %d cannot be saved: %s; %s", name, step, second, kept)
        else:
            _warn("%s ends training; meta-step %d, the last complete one, is saved; %s", name, step, go_on)

    def _validate(self, stop: AgreedStop) -> None:
        """Adapt to fixed held-out classes, save a grid of support images above generated ones, and keep the best.

        Stopped if a stop is requested; another call then does all of it.
        """
        batch = self._validation_batch
        if batch is None:
            self._validated_step = self.learner.step
            return
        stop.check()
        adapted = self._ranks.map_tasks(batch, self._adapt)
        laid_out = image_grids.task_grid(batch.support, adapted.pop("samples"))
        step = self.learner.step
        with self._dispensable(f"pictures to {self.folder.samples}"):
            if self._ranks.is_first:
                image_grids.save_grid(self.folder.samples / f"step-{step:08d}.png", laid_out, batch.image_shape[-1])
        picture = image_grids.to_bytes(laid_out).permute(1, 2, 0).numpy()
        for each in self.loggers:
            with self._dispensable(_output(each)):
                each.log_images(step, "validation_support_above_generated", picture)
        metrics = {f"validation_{name}": value.mean().item() for name, value in adapted.items()}
        self._log(metrics | self._keep_best(stop))
        self._validated_step = step

    def _adapt(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Return the metrics of the inner loop and the samples of held-out classes, `[tasks, ...]`."""
        adapted = self.averaged.inner_loop(batch)
        count = VALIDATION_ROWS * batch.shots
        samples = self.averaged.sample_tasks(adapted, count, first_task=batch.first_task)
        return {**adapted.metrics, "samples": samples}

    def _keep_best(self, stop: AgreedStop) -> dict[str, float]:
        """Measure KID on held-out classes, and keep the checkpoint if no earlier one has as low a KID."""
        if not self.training.keep_best:
            return {}
        if self._kid is None:

            def report(name: str, done: int, total: int) -> None:
                stop.own.check()
                with self._dispensable(_PROGRESS):
                    self.progress.part(name, done, total)

            features = stop.by_first(lambda: feature_classifier(self.folder, self.tasks.train, self._say, report))
            stop.check()
            self._kid = ValidationKID(self.tasks.validation, features, shots=self.training.held_out_shots)
        kid = self._kid(self.averaged, stop.check, self._ranks)
        if kid < self._lowest_kid:
            tensors, metadata = self._state()
            self.folder.save_best(tensors, {**metadata, KID: kid})
            self._lowest_kid = kid
        return {KID: kid}

    def _say(self, text: str) -> None:
        with self._dispensable(_PROGRESS):
            self.progress.message(text)

    def _log(self, metrics: Mapping[str, float]) -> None:
        with self._dispensable(f"metrics to {self.folder.metrics}"):
            self.folder.append_metrics(self.learner.step, metrics)
        for each in self.loggers:
            with self._dispensable(_output(each)):
                each.log_metrics(self.learner.step, metrics)


def _output(each: Logger) -> str:
    """Return what a logger writes, for messages."""
    return getattr(each, "label", f"to the logger {type(each).__name__}")
