"""Standard output and error, where either may be closed, full, or a pipe without a reader."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from typing import TextIO


def open_closed_descriptors() -> None:
    """Open closed descriptors 0 to 2 on the null device, or files would take their numbers and receive printed text."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print an optional line, on standard output by default; a failure to print is ignored."""
    write(f"{text}\n", sys.stdout if stream is None else stream)


def complain(text: str) -> None:
    """Print a line on standard error, if it is open."""
    write(f"{text}\n", sys.stderr)


def write(text: str, stream: TextIO | None) -> None:
    """Write text to a stream; after a failure, drop this and all later text."""
    if stream is None:
        return
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):  # ValueError: the stream is closed
        _silence(stream)


def finish() -> OSError | None:
    """Flush both streams, so that the interpreter does not fail to at exit.

    Returns:
        The reason why part of standard output is lost; None if nothing is, or if its reader has gone.
    """
    problem: OSError | None = None
    for stream in (sys.stderr, sys.stdout):
        problem = None
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            _silence(stream)
            problem = None if isinstance(error, BrokenPipeError) else error
        except ValueError:  # closed
            pass
    return problem


def nobody_reads() -> bool:
    """Return whether standard output is a pipe whose reader has gone."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # no descriptor; Windows has no poll
        return False


def _silence(stream: TextIO) -> None:
    """Redirect a stream that cannot be written to the null device."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)
        stream.flush()
