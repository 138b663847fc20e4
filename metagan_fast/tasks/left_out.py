"""Names that a loader skips, counted for one log line."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import PurePosixPath

_logger = logging.getLogger(__name__)

_SHOWN = 3  # names listed for each reason


class Reason(Enum):
    """Reason to skip a name, in singular and plural."""

    HIDDEN = 'name that begins with "." or "__"', 'names that begin with "." or "__"'
    DANGLING = "link that leads nowhere", "links that lead nowhere"
    REPEATED = "link to a folder that is read already", "links to folders that are read already"
    OTHER = "file of another kind", "files of other kinds"
    FOLDER = "folder", "folders"
    BROKEN = "broken image", "broken images"
    SMALL = "class with fewer than {least} images", "classes with fewer than {least} images"


class LeftOut:
    """Skipped names, by reason."""

    def __init__(self) -> None:
        self._names: dict[Reason, list[str]] = defaultdict(list)

    def add(self, reason: Reason, name: str) -> None:
        """Record a skipped name."""
        self._names[reason].append(name)

    def add_broken(self, record: Mapping[str, Iterable[str]], folder: str) -> None:
        """Record the broken images of a folder that a record has."""
        broken = record.get(Reason.BROKEN.name, ())
        self._names[Reason.BROKEN] += (name for name in broken if PurePosixPath(name).parent == PurePosixPath(folder))

    def to_record(self) -> dict[str, list[str]]:
        """Return the names by the reason's name, JSON-able."""
        return {reason.name: list(names) for reason, names in self._names.items() if names}

    @classmethod
    def from_record(cls, record: Mapping[str, Iterable[str]]) -> LeftOut:
        """Return the names of a record."""
        left_out = cls()
        for reason, names in record.items():
            left_out._names[Reason[reason]] = list(names)
        return left_out

    def log(self, source: str, **numbers: int) -> None:
        """Log one line, unless nothing was skipped; `numbers` fill the reasons' placeholders."""
        phrases = [
            f"{len(names)} {reason.value[len(names) > 1].format(**numbers)} ({_some(names)})"
            for reason, names in self._names.items()
            if names
        ]
        if phrases:
            _logger.warning("%s: left out %s", source, ", ".join(phrases))


def _some(names: list[str]) -> str:
    return ", ".join([*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])])
