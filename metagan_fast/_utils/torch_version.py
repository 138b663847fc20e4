"""Versions of PyTorch that the package was tested with, and a log line for any other."""

from __future__ import annotations

import logging

import torch

from .log import log_once

logger = logging.getLogger(__name__)

TESTED = ("2.13", "2.15")
"""Minor versions in which the tests pass (docs/compatibility.md), oldest first."""


def problem(version: str = torch.__version__) -> str:
    """Return why a version of PyTorch may behave differently, "" if it was tested."""
    if ".".join(version.split(".")[:2]) in TESTED:
        return ""
    return (
        f"metagan_fast was not tested with torch {version}, only with {', '.join(TESTED)}; "
        "`metagan-fast info` compares a few results"
    )


def log_if_untested() -> None:
    """Log one line if the installed PyTorch was not tested."""
    if reason := problem():
        log_once(logger, logging.WARNING, reason)
