"""Say a thing once: fallbacks are worth one log line, not one a call."""

from __future__ import annotations

import logging

_said: set[tuple[str, str]] = set()


def log_once(logger: logging.Logger, level: int, message: str) -> None:
    """Log `message` at `level` the first time this process hands it to `logger`; stay silent after that."""
    key = (logger.name, message)
    if key not in _said:
        _said.add(key)
        logger.log(level, message)
