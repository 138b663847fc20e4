"""Fallback of the drop-ins: names they do not cover resolve to the original library, if it is installed."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from .._utils.log import log_once

logger = logging.getLogger(__name__)


def fall_back_to(module_name: str, original_name: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a module's `__getattr__` and `__dir__` that look up missing names in the original library.

    Usage: `__getattr__, __dir__ = fall_back_to(__name__, "higher.optim")`. The original is imported on the first
    missing name; each name taken from it is logged once. A name raises AttributeError if the original is not installed,
    fails to import or lacks it too. Names with two leading underscores are never looked up.

    Args:
        module_name: `__name__` of the drop-in's module.
        original_name: the original module that it replaces.
    """

    def get(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {module_name!r} has no attribute {name!r}")
        not_covered = f"{module_name} does not cover {name!r}"
        try:
            original = _original(module_name, original_name)
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name in _with_parents(original_name)
            why = "is not installed: install it" if missing else f"cannot be imported ({error}): mend that"
            raise AttributeError(
                f"{not_covered}, and the original, {original_name}, {why} to have its own, or use the names in "
                f"dir({module_name})"
            ) from error
        try:
            found = getattr(original, name)
        except AttributeError:
            raise AttributeError(
                f"neither {module_name} nor the original, {original_name}, has {name!r}; use one of dir({module_name})"
            ) from None
        log_once(logger, logging.WARNING, f"{not_covered}: it is {original_name}'s own, without this package's speed")
        return found

    def names() -> list[str]:
        own = set(vars(sys.modules[module_name]))
        try:
            return sorted(own.union(name for name in dir(_original(module_name, original_name)) if name[0] != "_"))
        except Exception:  # not installed, or fails to import
            return sorted(own)

    return get, names


def _original(module_name: str, original_name: str) -> ModuleType:
    """Import the original; a drop-in entered in `sys.modules` under the original's name does not count."""
    original = importlib.import_module(original_name)
    if original is sys.modules.get(module_name):
        raise ModuleNotFoundError(f"{original_name} is the drop-in itself", name=original_name)
    return original


def _with_parents(name: str) -> list[str]:
    """Return a module's dotted name and its packages' names."""
    parts = name.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]
