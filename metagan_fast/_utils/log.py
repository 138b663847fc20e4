"""Log lines that appear once a process: a fallback deserves one line, not one a call."""

from __future__ import annotations

import logging

_said: set[tuple[str, str]] = set()


def log_once(logger: logging.Logger, level: int, message: str) -> None:
    """Log `message` at `level` to `logger`, the first time in this process only."""
    key = (logger.name, message)
    if key not in _said:
        _said.add(key)
        logger.log(level, message)
