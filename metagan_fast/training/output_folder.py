"""Output folders of commands: a command replaces and removes only files that it wrote."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from .. import checkpoint
from .._utils import json_text

_RECORD = ".metagan-fast.json"


class OutputFolder:
    """Folder of a command's output files, which may also hold a user's files.

    `.metagan-fast.json` in the folder records the command and the SHA-256 of each file that it wrote. Any other file,
    and any whose content has changed since, belongs to the user.

    Args:
        path: the folder; it need not exist.
        command: name of the writing command; it does not touch other commands' files.
    """

    def __init__(self, path: str | os.PathLike[str], command: str) -> None:
        self.path = Path(path)
        self.command = command

    def check(self, names: Iterable[str]) -> None:
        """Raise FileExistsError if a file of one of the names is there that the command did not write."""
        written = self._written()
        for name in names:
            if os.path.lexists(self.path / name) and not self._is_own(name, written):
                file = self.path / name
                raise FileExistsError(
                    f"{file} exists and `{self.command}` did not write it: move it, or choose another folder"
                )

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files and remove those that the command wrote before.

        Raises:
            FileExistsError: as `check`; then nothing is changed.
            CheckpointError: a file cannot be written.
        """
        self.check(files)
        self.path.mkdir(parents=True, exist_ok=True)
        old = self._written()
        new = {name: [hashlib.sha256(data).hexdigest()] for name, data in files.items()}
        # Old and new digests until all is written: after a crash the next call recognises both.
        self._record({name: [*old.get(name, []), *new.get(name, [])] for name in (*old, *new)})
        for name in old.keys() - new.keys():
            if self._is_own(name, old):
                (self.path / name).unlink()
        for name, data in files.items():
            checkpoint.write_bytes(self.path / name, data)
        self._record(new)

    def _is_own(self, name: str, written: Mapping[str, list[str]]) -> bool:
        path = self.path / name
        return name in written and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() in written[name]

    def _written(self) -> dict[str, list[str]]:
        """Return the digests of the command's files, by name."""
        path = self.path / _RECORD
        if not os.path.lexists(path):
            return {}
        try:
            record = json_text.parse(path.read_text(encoding="utf-8"))
            files = {name: list(digests) for name, digests in record["files"].items() if Path(name).name == name}
            return files if record["command"] == self.command else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileExistsError(
                f"{path} is no record of what a command wrote here ({error}); remove it, or choose another folder"
            ) from error

    def _record(self, files: Mapping[str, list[str]]) -> None:
        content = {"command": self.command, "files": files}
        checkpoint.write_bytes(self.path / _RECORD, (json.dumps(content, indent=2) + "\n").encode())
