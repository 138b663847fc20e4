"""`UnwrittenFolder`: a run's folder for the ranks that write nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .run_folder import RunFolder


class UnwrittenFolder(RunFolder):
    """Run folder that the first rank writes: here every check passes and every write does nothing."""

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, overwrite: bool = False) -> RunFolder:
        """Return the folder."""
        return cls(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Return the folder, which may lie on another machine."""
        return cls(path)

    @classmethod
    def check_free(cls, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Do nothing."""

    def check_writable(self) -> None:
        """Do nothing."""

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Do nothing: the first rank holds the lock."""
        yield

    def forget_unfinished(self) -> None:
        """Do nothing."""

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Do nothing."""

    def check_evaluation(self) -> None:
        """Do nothing."""

    def write_evaluation(self, content: Mapping[str, Any]) -> None:
        """Do nothing."""

    def check_report(self) -> None:
        """Do nothing."""

    def write_report(self, page: str, pictures: Mapping[str, bytes]) -> None:
        """Do nothing."""

    def append_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def forget_metrics_after(self, step: int) -> None:
        """Do nothing."""

    def save(self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], *, keep: int) -> Path:
        """Return the place of the checkpoint that the first rank writes."""
        return self._step_path(step)

    def check_best(self) -> None:
        """Do nothing."""

    def save_best(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Do nothing."""
