"""Parsers of command-line values: paths, counts, seeds; argparse's errors name the option."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from .coerce import LARGEST_SEED

Value = TypeVar("Value")


def path(text: str) -> Path:
    """Read a path; `~` is the home folder, if there is one."""
    return Path(os.path.expanduser(text))  # pathlib's version raises for an unknown user


def imported(text: str, expected: str) -> tuple[str, Any]:
    """Read `module:name`, import the module, from the current folder too, and return the name and its value.

    `expected` is the form and an example, for the error.
    """
    module, _, name = text.partition(":")
    if not module or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return name, getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"cannot import {text}: {error}") from None
    finally:
        sys.path.remove(here)


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a parser of whole numbers from `least` to `most`."""
    expected = f"of at least {least}" if most is None else f"from {least} to {most}"
    if most == LARGEST_SEED:
        expected = f"from {least} to 2**64 - 1"

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"expected a whole number {expected}, got {text!r}")
        return number

    return read


seed = whole(0, LARGEST_SEED)
threads = whole(1, 4096)  # OpenMP's own limit depends on the machine, and it crashes above


def optional(read: Callable[[str], Value]) -> Callable[[str], Value | None]:
    """Return a parser of `none` and of everything that `read` accepts."""

    def read_optional(text: str) -> Value | None:
        return None if text == "none" else read(text)

    read_optional.__name__ = getattr(read, "__name__", "value")  # argparse shows it
    return read_optional
