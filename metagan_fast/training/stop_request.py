"""Stop by Ctrl-C, SIGTERM or hang-up: after the current step, everything saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class Stopped(Exception):
    """End of a part of the work at which a stop was requested."""


class StopRequest(threading.Event):
    """Request to stop, announced by the signal's handler.

    A signal that interrupts a print cannot be announced by another one, since streams are not reentrant: it is when
    `is_set` is asked next.
    """

    def __init__(self, announce: Callable[[], None]) -> None:
        super().__init__()
        self._announce = announce
        self._is_unannounced = False

    def announce(self) -> None:
        """Announce the request; a failure is made up for once."""
        try:
            self._announce()
        except Exception:  # a print was interrupted, or the reader has gone
            self._is_unannounced = True

    def is_set(self) -> bool:
        """Return whether the stop was requested."""
        if self._is_unannounced:
            with contextlib.suppress(Exception):
                self._announce()
            self._is_unannounced = False
        return super().is_set()

    def check(self) -> None:
        """Raise Stopped if the stop was requested."""
        if self.is_set():
            raise Stopped


@contextlib.contextmanager
def stop_request(announce: Callable[[], None]) -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into an event; the second has its usual, immediate effect.

    A hang-up (SIGHUP) is an event too, unless it is ignored already, as `nohup` does. Shell and terminal both send
    one, so repeated hang-ups have no effect.
    """
    requested = StopRequest(announce)
    previous: dict[int, Any] = {}
    hang_up = getattr(signal, "SIGHUP", None)  # not on Windows

    def handle(number: int, frame: FrameType | None) -> None:
        repeated = requested.is_set()
        requested.set()
        if number != hang_up:
            for each in previous.keys() - {hang_up}:
                signal.signal(each, signal.SIG_DFL)
        if not repeated:
            requested.announce()

    if threading.current_thread() is threading.main_thread():  # other threads cannot set handlers
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
            numbers.append(hang_up)
        for number in numbers:
            previous[number] = signal.signal(number, handle)
    try:
        yield requested
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
