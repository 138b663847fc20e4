"""Display of training progress: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from tqdm import tqdm

from ..training.trainer import NullProgress, Progress

_SECONDS_BETWEEN_LINES = 10.0


def make(stream: TextIO | None = None) -> Progress:
    """Return the display that suits a stream, standard error by default."""
    stream = sys.stderr if stream is None else stream
    if stream is None:  # a program without a console
        return NullProgress()
    return Bar(stream) if _is_terminal(stream) else Lines(stream)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # an object with only write(); a closed stream
        return False


def losses(metrics: Mapping[str, float]) -> str:
    """Format the losses in one short text."""
    return ", ".join(
        f"{name.removeprefix('loss_')} {value:+.3f}" for name, value in metrics.items() if name.startswith("loss_")
    )


class Bar:
    """Live progress bar: rate, time left, losses."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: tqdm | None = None
        self._part: tqdm | None = None

    def start(self, done: int, total: int) -> None:
        """Show the start."""
        self._bar = tqdm(total=total, initial=done, file=self._stream, unit=" meta-steps", dynamic_ncols=True)

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Show a finished meta-step."""
        if self._bar is not None:
            self._bar.set_postfix_str(losses(metrics), refresh=False)
            self._bar.update(done - self._bar.n)

    def part(self, name: str, done: int, total: int) -> None:
        """Show how much of a part of the work is done: a second bar, which leaves at its end."""
        if self._part is None:
            self._part = tqdm(
                total=total, initial=done, desc=name, file=self._stream, unit=" steps", leave=False, dynamic_ncols=True
            )
        self._part.update(done - self._part.n)
        if done == total:
            self._end_part()

    def message(self, text: str) -> None:
        """Show a line of text."""
        tqdm.write(text, file=self._stream)

    def close(self) -> None:
        """Show the end."""
        self._end_part()
        if self._bar is not None:
            self._bar.close()

    def _end_part(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None


class Lines:
    """Progress lines: one every few seconds, and one for the first and the last meta-step."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = -math.inf

    def start(self, done: int, total: int) -> None:
        """Show the start."""
        self._first, self._total = done, total
        self._begun = time.monotonic()

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Show a finished meta-step."""
        now = time.monotonic()
        if done not in (self._first + 1, self._total) and now - self._shown < _SECONDS_BETWEEN_LINES:
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._begun, 1e-9)
        left = tqdm.format_interval((self._total - done) / rate)
        self.message(f"meta-step {done}/{self._total}, {rate:.2f} a second, {left} left, {losses(metrics)}")

    def part(self, name: str, done: int, total: int) -> None:
        """Show how much of a part of the work is done."""
        now = time.monotonic()
        if now - self._shown >= _SECONDS_BETWEEN_LINES / 2:  # a part may take less than a few lines' time
            self._shown = now
            self.message(f"{name}: {done / total:.0%}")

    def message(self, text: str) -> None:
        """Show a line of text."""
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Show the end."""


class Stages:
    """Progress of work in stages: a bar for each on a terminal, a line for each elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._stage = ""
        self._bar: tqdm | None = None

    def show(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of a stage are done."""
        if self._stream is None:
            return
        if stage != self._stage:
            self.close()
            self._stage = stage
            if _is_terminal(self._stream):
                self._bar = tqdm(total=total, desc=stage, file=self._stream, dynamic_ncols=True)
            else:
                print(f"{stage}: {total}", file=self._stream, flush=True)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Show the end of a stage."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
