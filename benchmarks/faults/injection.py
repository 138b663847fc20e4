"""Faults below Python: children of this process whose file operations die or fail at the n-th call."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_SHIM = Path(__file__).with_name("shim.c")
_CHANGES = ("open", "write", "fsync", "truncate", "rename", "unlink", "mkdir", "link")


@dataclass(frozen=True)
class Fault:
    """Failure of file operations, or a jump of the clock.

    Attributes:
        name: of the fault, in a table.
        calls: kinds of calls that meet it, as the shim names them.
        error: error number; 0: the process is killed.
        lasts: True if all later calls fail too.
        clock: seconds by which the wall clock jumps to and fro.
    """

    name: str
    calls: tuple[str, ...]
    error: int = 0
    lasts: bool = False
    clock: int = 0

    def environment(self, folder: Path, at: int) -> dict[str, str]:
        """Return the shim's variables for the fault at a call, counted from 1; at 0 calls are only counted."""
        return {
            "METAGAN_FAULT_FOLDER": str(folder),
            "METAGAN_FAULT_CALLS": ",".join(self.calls),
            "METAGAN_FAULT_AT": str(at),
            "METAGAN_FAULT_ERRNO": str(self.error),
            "METAGAN_FAULT_LASTS": str(int(self.lasts)),
            "METAGAN_FAULT_CLOCK": str(self.clock),
        }


KILLED = Fault("kill -9", _CHANGES)
FULL = Fault("full disk", ("open", "write", "fsync", "mkdir", "link"), errno.ENOSPC, lasts=True)
READ_ONLY = Fault("read-only folder", _CHANGES, errno.EROFS, lasts=True)
BROKEN = Fault("failing disk", ("write", "fsync", "rename", "truncate"), errno.EIO)
NO_LINKS = Fault("no links, no locks", ("link", "flock"), errno.ENOTSUP, lasts=True)
CLOCK = Fault("clock that jumps", (), clock=86400)
NO_SHARED_MEMORY = Fault("full /dev/shm", ("sem_open",), errno.ENOSPC, lasts=True)


@dataclass(frozen=True)
class Ending:
    """End of a child: its exit code, negative for a signal, its output, and the number of calls that it counted."""

    code: int
    output: str
    count: int

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.code == -signal.SIGKILL


def why_not() -> str | None:
    """Return why no faults can be injected on this machine, None if they can."""
    if not sys.platform.startswith("linux"):
        return "faults are injected by LD_PRELOAD, on Linux alone"
    if _compiler() is None:
        return "needs a C compiler: none of cc, gcc, clang is installed"
    return None


def _compiler() -> str | None:
    names = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def rerun(arguments: Sequence[str]) -> int:
    """Compile the shim and run Python with these arguments under it; return the exit code."""
    compiler = _compiler()
    assert compiler is not None
    with tempfile.TemporaryDirectory() as folder:
        shim = Path(folder) / "shim.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", shim, _SHIM, "-ldl"], check=True)
        # One thread: only the thread that forks lives on in a child.
        environment = os.environ | {"LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, *arguments], env=environment, check=False).returncode


def is_under_shim() -> bool:
    """Return whether this process runs under the shim."""
    return hasattr(ctypes.CDLL(None), "fault_arm")


def attempt(action: Callable[[], int], folder: Path, fault: Fault = KILLED, at: int = 0) -> Ending:
    """Run an action in a forked child whose changes below a folder meet a fault at a call; 0: none, calls are counted.

    The action returns an exit code; an exception ends the child with code 70 and its text in the output.
    """
    shim = ctypes.CDLL(None)
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as output:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            code = 70
            try:
                for stream in (1, 2):
                    os.dup2(output.fileno(), stream)
                os.environ.update(fault.environment(folder, at))
                shim.fault_arm()
                code = action()
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                os.environ.pop("METAGAN_FAULT_FOLDER")
                sys.stdout.flush()
                sys.stderr.flush()
                os.write(writing, str(shim.fault_count()).encode())
                os._exit(code)
        os.close(writing)
        counted = os.read(reading, 32)
        os.close(reading)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return Ending(code, output.read().decode(errors="replace"), int(counted or 0))
