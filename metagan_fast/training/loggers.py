"""Loggers that follow a run: TensorBoard, Weights & Biases, MLflow, or any object with the methods of `Logger`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .run_folder import RunFolder

_FULL = 200_000  # values of an event file, about 10 MB, after which another begins
_VALIDATION = "validation_"


class Logger(Protocol):
    """Receiver of a run's metrics and pictures.

    An exception of a method is logged once, and training goes on; later calls are still made. A `Trainer` closes its
    loggers at the end of each `run`, and a further `run` calls them again.
    """

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a meta-step, or of a validation after it: names begin with `validation_`."""

    def log_images(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Take a picture `[height, width, channels]`, such as a validation's grid; 1 channel is grey, 3 are RGB."""

    def close(self) -> None:
        """Write what is pending."""


class TensorBoard:
    """Logger of event files for TensorBoard; the first call after a resume discards the events from its step on.

    Args:
        folder: of the files.
    """

    label = "events for TensorBoard"

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = os.fspath(folder)
        self._writer: Any = None
        self._report: Any = None
        self._values = 0  # in the present file
        self._purges = True  # the first file discards earlier events

    def _open(self, step: int) -> Any:
        if self._values >= _FULL:
            self._writer.close()
            self._writer, self._values, self._purges = None, 0, False
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            if self._report is None:  # else an earlier call failed below
                self._report, threading.excepthook = threading.excepthook, self._report_others
            self._writer = SummaryWriter(self._folder, purge_step=step if self._purges else None)
        self._values += 1
        return self._writer

    def _report_others(self, arguments: threading.ExceptHookArgs) -> None:
        """Ignore TensorBoard's own thread: the next call of its writer raises the error again."""
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            self._report(arguments)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._open(step).add_scalar(_grouped(name), value, step)

    def log_images(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        self._open(step).add_image(_grouped(name), image, step, dataformats="HWC")

    def close(self) -> None:
        writer, report = self._writer, self._report
        self._writer = self._report = None
        try:
            if writer is not None:
                writer.close()
        finally:
            if report is not None:
                threading.excepthook = report


class WandB:
    """Logger of a run of Weights & Biases; it begins with the first call, and goes on if training does.

    Args:
        project: its project.
        settings: further arguments of `wandb.init`, such as `name`, `config`, `mode="offline"`.

    Raises:
        ValueError: wandb is not installed.
    """

    def __init__(self, project: str = "metagan_fast", **settings: Any) -> None:
        _check_installed("wandb", "wandb")
        self._settings: dict[str, Any] = {"project": project, **settings}
        self._run: Any = None

    def _open(self) -> Any:
        if self._run is None:
            import wandb

            self._run = wandb.init(**self._settings)
            self._settings |= {"id": self._run.id, "resume": "allow"}
        return self._run

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self._open().log({_grouped(name): value for name, value in metrics.items()}, step=step)

    def log_images(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        run = self._open()
        import wandb

        run.log({_grouped(name): wandb.Image(image)}, step=step)

    def close(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish()


class MLflow:
    """Logger of a run of MLflow; it begins with the first call, and goes on if training does.

    Args:
        experiment: its experiment.
        params: settings to record, by name.
        settings: arguments of `MlflowClient.create_run` besides the experiment, such as `run_name`.
        tracking_uri: where MLflow keeps runs; None: its default.

    Raises:
        ValueError: mlflow is not installed.
    """

    def __init__(
        self,
        experiment: str = "metagan_fast",
        *,
        params: Mapping[str, Any] | None = None,
        tracking_uri: str | None = None,
        **settings: Any,
    ) -> None:
        _check_installed("mlflow", "mlflow")
        self._experiment, self._params, self._settings = experiment, dict(params or {}), settings
        self._tracking_uri = tracking_uri
        self._client: Any = None
        self._run_id: str | None = None

    def _open(self) -> tuple[Any, str]:
        """Return the client and the run; a client of its own leaves the active run of the process alone."""
        if self._client is None:
            from mlflow.tracking import MlflowClient

            self._client = MlflowClient(self._tracking_uri)
        if self._run_id is None:
            found = self._client.get_experiment_by_name(self._experiment)
            number = self._client.create_experiment(self._experiment) if found is None else found.experiment_id
            self._run_id = str(self._client.create_run(number, **self._settings).info.run_id)
            for name, value in self._params.items():
                self._client.log_param(self._run_id, name, value)
        return self._client, self._run_id

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        client, run = self._open()
        for name, value in metrics.items():
            client.log_metric(run, _grouped(name), value, step=step)

    def log_images(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        client, run = self._open()
        client.log_image(run, image, f"{name}-{step:08d}.png")

    def close(self) -> None:
        if self._client is not None and self._run_id is not None:
            self._client.set_terminated(self._run_id)


def _grouped(name: str) -> str:
    """Return a metric's name under `train/` or `validation/`."""
    return f"validation/{name.removeprefix(_VALIDATION)}" if name.startswith(_VALIDATION) else f"train/{name}"


def _check_installed(module: str, package: str) -> None:
    if find_spec(module) is None:
        raise ValueError(f"the logger {module} needs {package}, which is not installed: pip install {package}")


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    from .config import flatten  # slow to import

    return flatten(record["settings"])


Factory = Callable[["RunFolder", Mapping[str, Any]], Logger]
"""Maker of a logger for a run's folder and its record, the content of `config.json`."""

FACTORIES: Mapping[str, Factory] = {
    "tensorboard": lambda folder, record: TensorBoard(folder.events),
    "wandb": lambda folder, record: WandB(name=_name(folder.path), config=_flat(record)),
    "mlflow": lambda folder, record: MLflow(run_name=_name(folder.path), params=_flat(record)),
}
"""Loggers by name, as the command line makes them."""


def _name(path: Path) -> str:
    return path.absolute().name
