"""Locks for objects that are copied, pickled and forked."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any


class Lock:
    """Reentrant lock; copies, pickled ones included, and forked processes get a new, free one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Lock, ()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _release_in_child() -> None:
    """Release locks that other threads held during a fork: those threads do not exist in the child."""
    for lock in list(_locks):
        lock._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
