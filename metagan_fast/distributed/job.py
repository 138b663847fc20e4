"""Job of several ranks that torch's launcher has started: joining it, and telling which rank ended it.

The launcher (`torchrun`, or `metagan-fast train --nproc`) sets RANK, WORLD_SIZE, LOCAL_RANK and the place of a
key-value store. Each rank writes to the store which process it is and, at a failure, that it has noticed one or why it
ends itself. So the others can tell which rank was lost, on this machine or another one.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from .errors import FirstRankFailed, LostRank
from .ranks import Ranks

Value = TypeVar("Value")

ROLL_CALL_SECONDS = 5.0
"""Time in which ranks of other machines answer after a failure; ranks of this one are looked up."""

_FIRST_SECONDS = 2.0  # in which the first rank fails too, where all fail alike
_POLL_SECONDS = 0.05
_SAID = "is_said_by_another"  # attribute of an error

TELLS = "METAGAN_FAST_LAUNCHER"
"""Environment variable of a launcher that names lost ranks itself."""

REMEDY = (
    "go on from the last checkpoint with the same command and --resume, on any number of ranks; if memory was short, "
    "on fewer a machine"
)


def _has_died(process: str) -> bool:
    """Return whether a process "host:number" of this machine has ended."""
    host, _, number = process.partition(":")
    if host != socket.gethostname():
        return False
    try:
        status = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return Path("/proc/self").exists()  # else the system keeps no such files
    return status.rpartition(")")[2].split()[0] in "ZX"


@dataclass(frozen=True)
class _Job:
    """The job that this process has joined."""

    ranks: Ranks
    store: dist.Store


_job: _Job | None = None


def is_started() -> bool:
    """Return whether torch's launcher has started this process."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def ranks() -> Ranks | None:
    """Return the job's ranks; None for a process on its own."""
    return None if _job is None else _job.ranks


def group() -> dist.ProcessGroup | None:
    """Return the job's process group; None for a process on its own."""
    return None if _job is None else dist.group.WORLD


def is_first() -> bool:
    """Return whether this process writes and prints: rank 0, or a process on its own."""
    return _job is None or _job.ranks.is_first


def share(make: Callable[[], Value]) -> Value:
    """Return what the first rank makes, JSON-able data; see `Ranks.share`."""
    return make() if _job is None else _job.ranks.share(make)


def after_first(make: Callable[[], Value]) -> Value:
    """Return `make()`, called by the first rank before the others; see `Ranks.after_first`."""
    return make() if _job is None else _job.ranks.after_first(make)


def local_size() -> int:
    """Return the number of the job's processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if _job is not None else 1


def name() -> str | None:
    """Return a name of the job that its restarts share; None without a launcher."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return run if run != "none" else f"{socket.gethostname()}:{os.getppid()}"  # the launcher's own process


def restarts() -> int:
    """Return how often the launcher has started the job again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the job, if torch's launcher has started this process as one of several, and leave it at the end.

    Gloo serves tensors on a CPU, NCCL those on a GPU, of which rank n of a machine takes number n.

    Raises:
        LostRank: the ranks do not find each other.
    """
    global _job
    if not is_started() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    from torch.distributed.rendezvous import rendezvous  # not in builds of torch without torch.distributed

    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, rank, size = next(rendezvous("env://"))
        store = dist.PrefixStore(f"metagan_fast {restarts()}", store)  # a restarted job may find the earlier one's keys
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except RuntimeError as error:
        raise LostRank(f"the ranks of the job do not find each other: {' '.join(str(error).split())}") from error
    _job, Ranks.explain = _Job(Ranks(dist.group.WORLD), store), staticmethod(_explain)
    try:
        store.set(f"process {rank}", f"{socket.gethostname()}:{os.getpid()}")
        yield
        _leave()  # after a failure it might wait for ranks that are gone
    except BaseException as error:
        with contextlib.suppress(Exception):
            _tell(rank, store, error)
        raise
    finally:
        _job, Ranks.explain = None, None


def _leave() -> None:
    """Destroy the process group with everything that holds it.

    Gloo's threads end with the group. One that drops a tensor while the interpreter exits would abort the process.
    """
    global _job
    _job = None
    dist.destroy_process_group()
    gc.collect()  # learners in cycles


def _tell(rank: int, store: dist.Store, error: BaseException) -> None:
    """Leave the reason of this rank's end for the others; note in `error` whether the first rank ends with the same."""
    reason = f"{type(error).__name__}: {error}"
    store.set(f"end {rank}", reason)
    if rank and not hasattr(error, _SAID):
        deadline = time.monotonic() + _FIRST_SECONDS
        while not (has_ended := store.check(["end 0"])) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        error.__dict__[_SAID] = has_ended and (
            isinstance(error, FirstRankFailed) or store.get("end 0").decode() == reason
        )


def speaker() -> str:
    """Return "rank 1: " and so on, the beginning of an error of another rank than the first."""
    rank = os.environ["RANK"] if is_started() else "0"
    return "" if rank == "0" else f"rank {rank}: "


def is_said_by_another(error: BaseException) -> bool:
    """Return whether another rank tells of this error, so that a job's ranks do not all print the same."""
    return getattr(error, _SAID, False)


def _explain(error: BaseException) -> Exception:
    """Return the error that names the ranks that are lost."""
    assert _job is not None
    ranks, store = _job.ranks, _job.store
    lost, ended = _call_roll(ranks, store)
    if lost:
        who = " and ".join(lost.values())
        found = LostRank(f"{who} {'were' if len(lost) > 1 else 'was'} lost: killed, or its machine is gone; {REMEDY}")
    elif ended:
        found = LostRank(f"the job ends, because rank {min(ended)} did ({ended[min(ended)]})")
    else:
        reason = " ".join(str(error).split())
        found = LostRank(f"the ranks cannot reach each other, though all of them run ({reason}); {REMEDY}")
    is_told = TELLS in os.environ if lost else bool(ended)
    with contextlib.suppress(RuntimeError):  # the store is gone
        is_told = is_told or store.add("tellers", 1) > 1  # one rank of all tells
    found.__dict__[_SAID] = is_told
    return found


def _call_roll(ranks: Ranks, store: dist.Store) -> tuple[dict[int, str], dict[int, str]]:
    """Return descriptions of the ranks that are lost, and the reasons of those that ended by themselves."""
    answered, lost, ended = {ranks.rank}, dict[int, str](), dict[int, str]()
    try:
        store.set(f"noticed {ranks.rank}", "")
        others = [rank for rank in range(ranks.size) if rank != ranks.rank]
        process = {rank: store.get(f"process {rank}").decode() for rank in others}
        begun = time.monotonic()
        while True:
            passed = time.monotonic() - begun
            for rank in set(others) - answered - lost.keys() - ended.keys():
                if store.check([f"end {rank}"]):
                    ended[rank] = store.get(f"end {rank}").decode()
                elif store.check([f"noticed {rank}"]):
                    answered.add(rank)
                elif _has_died(process[rank]):
                    lost[rank] = f"rank {rank} (process {process[rank].partition(':')[2]})"
            silent = set(others) - answered - lost.keys() - ended.keys()
            here = {rank for rank in silent if process[rank].startswith(f"{socket.gethostname()}:")}
            if not silent or (lost and silent <= here):
                break
            if passed > ROLL_CALL_SECONDS:
                lost |= {rank: f"rank {rank} ({process[rank]})" for rank in silent - here}
                break
            time.sleep(_POLL_SECONDS)
    except RuntimeError:  # the store is gone, with the launcher or with the first rank's machine
        lost = {0: "rank 0, or the launcher on its machine,"}
    return lost, ended
