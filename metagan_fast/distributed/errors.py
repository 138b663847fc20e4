"""Errors of work that several processes share."""

from __future__ import annotations


class LostRank(ConnectionError):
    """A collective failed because another process ended or cannot be reached."""


class FirstRankFailed(ConnectionError):
    """The first process failed at work that it does for all; its own error tells why."""


class RanksDiffer(RuntimeError):
    """Processes hold different parameters, settings or optimizer state."""
