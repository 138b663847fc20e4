"""Stop by Ctrl-C, SIGTERM or hang-up: after the current step, everything saved."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

from ..distributed import Ranks

Value = TypeVar("Value")


class Stopped(Exception):
    """End of a part of the work at which a stop was requested."""


class StopRequest(threading.Event):
    """Request to stop, announced by the signal's handler.

    A signal that interrupts a print cannot be announced by another one, since streams are not reentrant: it is when
    `is_set` is asked next.

    Attributes:
        signal: number of the first signal; None without one.
    """

    def __init__(self, announce: Callable[[], None]) -> None:
        super().__init__()
        self._announce = announce
        self._is_unannounced = False
        self.signal: int | None = None

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


class AgreedStop:
    """Stop on which all ranks agree, so that all stop after the same step.

    Attributes:
        own: the request to this rank.
    """

    def __init__(self, own: StopRequest, ranks: Ranks) -> None:
        self.own = own
        self._ranks = ranks
        ranks.poll(own.is_set)

    def check(self) -> None:
        """Raise Stopped on all ranks if a stop was requested of any; collective."""
        if self._ranks.agree_to_stop():
            raise Stopped

    def by_first(self, make: Callable[[], Value]) -> Value | None:
        """Return what the first rank alone makes, None on the others; Stopped on all ranks if it raises that."""
        made: list[Value] = []

        def stopped() -> bool:
            try:
                made.append(make())
            except Stopped:
                return True
            return False

        if self._ranks.share(stopped):
            raise Stopped
        return made[0] if made else None


@contextlib.contextmanager
def stop_request(announce: Callable[[], None]) -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into an event; the second ends the process at once.

    In an interactive session, a notebook's too, the second has the effect that it had before: Ctrl-C raises
    KeyboardInterrupt, and the session lives on.

    A hang-up (SIGHUP) is an event too, unless it is ignored already, as `nohup` does. Shell and terminal both send
    one, so repeated hang-ups have no effect.
    """
    requested = StopRequest(announce)
    previous: dict[int, Any] = {}
    hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
    is_interactive = hasattr(sys, "ps1")

    def handle(number: int, frame: FrameType | None) -> None:
        repeated = requested.is_set()
        if not repeated:
            requested.signal = number
        requested.set()
        if number != hang_up:
            for each in previous.keys() - {hang_up}:
                signal.signal(each, previous[each] if is_interactive else signal.SIG_DFL)
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
