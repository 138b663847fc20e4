"""One reading of a hostile file: only the documented errors, at most 5 s of the processor and 1 GiB of memory."""

from __future__ import annotations

import contextlib
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SECONDS = 5
BYTES = 1 << 30

DOCUMENTED = (ValueError, OSError)
"""Errors that readers of files may raise; `CheckpointError` is a ValueError."""


class Hang(BaseException):
    """More processor time than `SECONDS`."""


def failure(read: Callable[[Path], object], path: Path, data: bytes) -> str | None:
    """Write a file, read it, and return the traceback of what must not happen; None if all is well.

    Args:
        read: the reader.
        path: the file's place.
        data: its content.
    """
    path.write_bytes(data)
    try:
        with _limited():
            read(path)
    except DOCUMENTED as error:
        causes = list(_causes(error))
        if any(isinstance(cause, MemoryError) for cause in causes):
            return _text(error)
        if not str(error) or "\n" in str(error):
            return f"no line of text: {error!r}\n{_text(error)}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of an extension, too
        return _text(error)
    return None


def _text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Bound processor time and address space within a `with` block."""

    def stop(*_: Any) -> None:
        raise Hang(f"more than {SECONDS} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    handler = signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, before[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)
