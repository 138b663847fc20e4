"""Lock of a folder: one process trains there."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""Name of the lock's file, which holds the process and the machine that locked it last."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder; a process that dies releases it.

    Where the file system has no locks, as some network ones, the file's text stands for the lock: a dead process of
    this machine is found by its number, and one of another machine has to be asked about. Two processes that start
    at once are not kept apart there. Windows has no such locks at all.

    Raises:
        BlockingIOError: another process trains here, or may; the message names it.
        OSError: the folder cannot be written to.
    """
    if fcntl is None:
        yield
        return
    path = folder / LOCK
    with _opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            has_locks = True
        except BlockingIOError:
            raise BlockingIOError(
                f"{folder} is in use: process {_shown(_owner(file))} trains there; wait for it or choose another folder"
            ) from None
        except OSError as error:
            has_locks = False
            logger.info("%s has no file locks (%s): start no two processes there at once", folder, error.strerror)
            _check_gone(_owner(file), path)
        _write(file, f"{os.getpid()} {socket.gethostname()}")
        try:
            yield
        finally:
            if not has_locks:
                _write(file, "")


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "a+b", buffering=0)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OSError(
            f"cannot write to {path.parent}: {error.strerror}; expected a folder of which you may change the files"
        ) from error


def _owner(file: BinaryIO) -> tuple[str, str]:
    """Return process number and machine in a lock's file; empty texts where it names none."""
    file.seek(0)
    process, _, machine = file.read().decode(errors="replace").partition(" ")
    return process, machine


def _shown(owner: tuple[str, str]) -> str:
    process, machine = owner
    return (process or "another one") + (f" of {machine}" if machine not in ("", socket.gethostname()) else "")


def _check_gone(owner: tuple[str, str], path: Path) -> None:
    """Raise BlockingIOError unless the process that a lock's file names is gone, or is this one."""
    process, machine = owner
    if not process.isdecimal() or int(process) == os.getpid():
        return
    if machine not in ("", socket.gethostname()):
        raise BlockingIOError(
            f"{path.parent} may be in use: process {_shown(owner)} trains there or died there, which cannot be told "
            f"without file locks; if it has ended, remove {path}"
        )
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        logger.info("%s was left by process %s, which is gone", path, process)
        return
    except (PermissionError, OverflowError):
        pass
    raise BlockingIOError(
        f"{path.parent} is in use: process {process} trains there; wait for it or choose another folder (if it is "
        f"another program's by now, remove {path})"
    )


def _write(file: BinaryIO, text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk
        file.truncate(0)
        file.write(text.encode())
