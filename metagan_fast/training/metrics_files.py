"""Metrics of a run: a file of JSON lines, of which full ones are kept and others begin."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import checkpoint
from .._utils import json_text

_FULL_NAME = re.compile(r"metrics-\d{6,}\.jsonl")
_FULL = 64_000_000  # bytes of a file after which another begins


class MetricsFiles:
    """Metrics files of a run's folder: the one that grows, and before it `metrics-000001.jsonl` and so on."""

    def __init__(self, current: Path) -> None:
        self.current = current

    def all(self) -> list[Path]:
        """Return the files in order, the current one last, which may not exist."""
        folder = self.current.parent
        full = [path for path in folder.iterdir() if _FULL_NAME.fullmatch(path.name)] if folder.is_dir() else []
        return [*sorted(full, key=lambda path: (len(path.name), path.name)), self.current]

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line, whole or not at all; OSError if it cannot be written."""
        line = json_text.line({"step": step, **metrics}).encode()
        with contextlib.suppress(FileNotFoundError):
            if self.current.stat().st_size >= _FULL:
                os.replace(self.current, self.current.with_name(f"metrics-{len(self.all()):06d}.jsonl"))
        with open(self.current, "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.current))
            except OSError:  # a partial line would spoil the next one too
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise

    def read(self) -> list[dict[str, Any]]:
        """Return the lines of all files; a line that a crash cut short or that has no step is dropped."""
        return [line for file in self.all() for line in _lines(file)]

    def forget_after(self, step: int) -> None:
        """Drop the lines of later meta-steps."""
        for file in self.all():
            kept = "".join(json_text.line(line) for line in _lines(file) if line["step"] <= step).encode()
            if file == self.current or kept:
                checkpoint.write_bytes(file, kept)
            else:
                file.unlink()


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    if path.exists():
        for text in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                line = json_text.parse(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    lines.append(line)
    return lines
