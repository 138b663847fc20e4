"""Display of progress: a live bar on a terminal and in a notebook, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TextIO

_SECONDS_BETWEEN_LINES = 10.0


class Progress(Protocol):
    """Observer of training and of other long work."""

    def start(self, done: int, total: int) -> None:
        """Show the start, after `done` of `total` meta-steps."""

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Show a finished meta-step."""

    def part(self, name: str, done: int, total: int) -> None:
        """Show how much of a part of the work other than meta-steps is done; another name begins another part."""

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


def make(stream: TextIO | None = None) -> Progress:
    """Return the display that suits a stream, standard error by default."""
    stream = sys.stderr if stream is None else stream
    if stream is None:  # a program without a console
        return NullProgress()
    return Bar(stream) if _is_terminal(stream) or _is_notebook() else Lines(stream)


def observer(progress: Progress | bool | None) -> Progress:
    """Return the observer that a caller asks for: its own, the one of `make` for True, else one that shows nothing."""
    if progress is True:
        return make()
    return progress or NullProgress()


@contextlib.contextmanager
def counter(progress: Callable[[int, int], None] | bool | None, name: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of the steps done and their total: the caller's, or a display for True, which ends here.

    Args:
        progress: the caller's function; True: the display of `make`; False or None: none.
        name: shown beside the display.
    """
    if callable(progress):
        yield progress
        return
    display = observer(bool(progress))
    try:
        yield lambda done, total: display.part(name, done, total)
    finally:
        display.close()


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # an object with only write(); a closed stream
        return False


def _is_notebook() -> bool:
    """Return whether tqdm draws widgets: in a notebook whose kernel has ipywidgets."""
    return any(base.__module__ == "tqdm.notebook" for base in _tqdm().__mro__)


def _tqdm() -> Any:
    from tqdm.auto import tqdm  # slow to import

    return tqdm


def losses(metrics: Mapping[str, float]) -> str:
    """Format the losses in one short text."""
    return ", ".join(
        f"{name.removeprefix('loss_')} {value:+.3f}" for name, value in metrics.items() if name.startswith("loss_")
    )


class Bar:
    """Live progress bar: rate, time left, losses."""

    def __init__(self, stream: TextIO) -> None:
        self._tqdm = _tqdm()
        self._kind: dict[str, Any] = {"file": stream, "dynamic_ncols": True}
        self._bar: Any = None
        self._part: Any = None
        self._name = ""

    def start(self, done: int, total: int) -> None:
        """Show the start."""
        self._bar = self._tqdm(total=total, initial=done, unit=" meta-steps", **self._kind)

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Show a finished meta-step."""
        if self._bar is not None:
            self._bar.set_postfix_str(losses(metrics), refresh=False)
            self._bar.update(done - self._bar.n)

    def part(self, name: str, done: int, total: int) -> None:
        """Show how much of a part of the work is done: a second bar, which leaves at its end."""
        if name != self._name:
            self._end_part()
        if self._part is None:
            self._name = name
            self._part = self._tqdm(total=total, initial=done, desc=name, unit=" steps", leave=False, **self._kind)
        self._part.update(done - self._part.n)
        if done >= total:
            self._end_part()

    def message(self, text: str) -> None:
        """Show a line of text."""
        self._tqdm.write(text, file=self._kind["file"])

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
        self._part = ""

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
        left = _tqdm().format_interval((self._total - done) / rate)
        self.message(f"meta-step {done}/{self._total}, {rate:.2f} a second, {left} left, {losses(metrics)}")

    def part(self, name: str, done: int, total: int) -> None:
        """Show how much of a part of the work is done: a line at its start, then at intervals."""
        now = time.monotonic()
        # A part may take less than a few lines' time.
        if name != self._part or now - self._shown >= _SECONDS_BETWEEN_LINES / 2:
            self._shown, self._part = now, name
            self.message(f"{name}: {done / max(total, 1):.0%}")

    def message(self, text: str) -> None:
        """Show a line of text."""
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Show the end."""
