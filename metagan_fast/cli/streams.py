"""Standard output and error, either of which may be closed, full, or a pipe that nobody reads."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from typing import TextIO


def open_closed_descriptors() -> None:
    """Give descriptors 0 to 2 that are closed to the null device, lest files take their numbers and print's text."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line that the command can do without, on standard output by default: no failure ends the command."""
    write(f"{text}\n", sys.stdout if stream is None else stream)


def complain(text: str) -> None:
    """Print a line on standard error, if there is one."""
    write(f"{text}\n", sys.stderr)


def write(text: str, stream: TextIO | None) -> None:
    """Write text to a stream; what cannot be written is dropped, with everything after it."""
    if stream is None:
        return
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):  # ValueError: the stream is closed
        _silence(stream)


def finish() -> OSError | None:
    """Write out what is buffered, so that the interpreter need not fail to as it ends.

    Returns:
        Why a part of standard output is lost; None where nothing is, or where its reader went away.
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
    """Whether standard output is a pipe whose reader went away."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # no descriptor; Windows has no poll
        return False


def _silence(stream: TextIO) -> None:
    """Connect a stream that cannot be written to the null device."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)
        stream.flush()
