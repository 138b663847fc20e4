"""Start of a command as several ranks on this machine, by torch's launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

import torch

from .errors import LostRank
from .job import REMEDY, TELLS

_FAILED, _INTERRUPTED = 2, 130  # exit codes of ranks that raised an error, and that a signal asked to stop


def start(size: int, arguments: Sequence[str], *, threads: int | None = None) -> int:
    """Run `python -m metagan_fast` with these arguments as `size` ranks; return the exit code.

    Ctrl-C and SIGTERM go to all ranks, which have 30 seconds to end (TORCH_ELASTIC_SHUTDOWN_TIMEOUT sets another time).

    Args:
        size: number of ranks.
        arguments: of the command line.
        threads: of all ranks together; None: torch's number for one process. Each rank has at least one.

    Raises:
        LostRank: a rank was killed, or failed without a word; the message names it.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch  # slow to import

    os.environ[TELLS] = "1"
    os.environ["OMP_NUM_THREADS"] = str(max(1, (threads or torch.get_num_threads()) // size))
    for name in logging.root.manager.loggerDict:  # the ranks and this process tell what has happened
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        elastic_launch(config, sys.executable)("-m", "metagan_fast", *arguments)
    except SignalException:
        return _INTERRUPTED
    except ChildFailedError as error:
        quiet = {_FAILED, _INTERRUPTED, -signal.SIGINT, -signal.SIGTERM}  # a rank tells, or there is nothing to tell
        lost = {rank: failure for rank, failure in error.failures.items() if failure.exitcode not in quiet}
        if not lost:
            codes = {failure.exitcode for failure in error.failures.values()}
            return _FAILED if _FAILED in codes else _INTERRUPTED
        rank, failure = min(lost.items())
        how = f"code {failure.exitcode}" if failure.exitcode > 0 else signal.Signals(-failure.exitcode).name
        raise LostRank(
            f"rank {rank} (process {failure.pid}) was ended by {how}, and the job with it; {REMEDY}"
        ) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0
