"""The `metagan-fast` command."""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import __version__
from ..distributed import job
from . import adapt, bench, data, draw, evaluate, info, publish, replay, report, sample, streams, train

COMMANDS = (train, adapt, draw, sample, evaluate, report, replay, publish, data, bench, info)
"""Modules of the commands, in the order of the help."""

_FAILED = 2
_INTERRUPTED = 130
_UNREAD = 141  # exit code in shells of a program that SIGPIPE ended


class _Parser(argparse.ArgumentParser):
    """Argument parser that reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(_FAILED, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write help, version or error; argparse's own method fails without standard error."""
        streams.write(message, file)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    top = _Parser(prog="metagan-fast", description="Meta-train GANs on many small tasks, and adapt them to new ones.")
    top.add_argument("--version", action="version", version=__version__)
    top.add_argument("--debug", action="store_true", help="show where an error came from")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    The code is 0, 1 if the self-check of `info` fails, 2 for an error, 130 after Ctrl-C, 143 after SIGTERM, 141 if the
    reader of the output has gone.
    """
    streams.open_closed_descriptors()
    try:
        code = _run(arguments)
    finally:
        problem = streams.finish()
    if problem is not None:
        streams.complain(f"metagan-fast: cannot write to standard output: {problem.strerror}")
        return code or _FAILED
    return code


def _run(arguments: Sequence[str] | None) -> int:
    top = parser()
    given, rest = top.parse_known_args(arguments)
    given.command_line = sys.argv[1:] if arguments is None else list(arguments)
    if given.command == "bench":
        given.arguments = rest  # the benchmarks parse their own
    elif rest:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names that are not UTF-8, as standard error does
    logging.basicConfig(format="%(message)s", level=logging.DEBUG if given.debug else logging.WARNING)
    try:
        code: int = given.run(given)
    except KeyboardInterrupt:
        streams.complain("metagan-fast: interrupted")
        return _INTERRUPTED
    except Exception as error:
        if job.is_said_by_another(error):
            return _FAILED
        if isinstance(error, BrokenPipeError) and streams.nobody_reads():
            return _UNREAD
        if given.debug:
            raise
        streams.complain(f"metagan-fast {given.command}: {job.speaker()}{_one_line(error)}")
        return _FAILED
    return code


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    expected = isinstance(error, (ValueError, OSError, ArithmeticError))
    return text if expected and text else f"{type(error).__name__}: {text} (metagan-fast --debug shows where)"
