"""Scaling cases: meta-steps whose tasks several processes share, against one process with as many threads in all.

Each contender is a gang of processes that wait for commands, so all are timed in alternation. A gang of more ranks than
threads is oversubscribed; it shows the cost of waiting, and that results stay right.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from metagan_fast.benchmarks import workloads
from metagan_fast.benchmarks.records import Record, timed
from metagan_fast.benchmarks.timing import Timing
from torch import Tensor

import metagan_fast as mgf
from metagan_fast.distributed import Ranks
from metagan_fast.training import config as configuration

BASELINE = "1 process"
ROUNDING = 1e-3
"""Largest relative difference of the initialisation's change after one meta-step: GANs amplify rounding."""


@dataclass(frozen=True)
class Gang:
    """A contender: ranks, their threads together, and how they add.

    `reduces_alone` times the all-reduce of a meta-step without the inner loops.
    """

    name: str
    ranks: int
    in_order: bool = False
    reduces_alone: bool = False


GANGS = (
    Gang(BASELINE, 1),
    Gang("2 ranks", 2),
    Gang("2 in order", 2, in_order=True),
    Gang("4 ranks", 4),
    Gang("2: all-reduce", 2, reduces_alone=True),
    Gang("4: all-reduce", 4, reduces_alone=True),
)


@dataclass(frozen=True)
class ScalingCase:
    """A workload whose meta-steps are timed in gangs of ranks."""

    name: str
    workload: str
    rounds: int = 7

    def measure(
        self,
        *,
        thread_counts: Sequence[int] | None = None,
        quick: bool = False,
        rounds: int | None = None,
        contenders: Sequence[str] | None = None,
    ) -> Iterator[Record]:
        """Check the ranks' results against one process, then time all gangs; see `case.Case.measure`.

        The ratio of the record is the throughput against one process.
        """
        gangs = GANGS[:3] if quick else GANGS
        for count in thread_counts or [torch.get_num_threads()]:
            with contextlib.ExitStack() as running:
                started = {gang.name: running.enter_context(_started(self.workload, gang, count)) for gang in gangs}
                changes = {gang.name: _ask(started[gang.name], "train")[0] for gang in gangs if not gang.reduces_alone}
                records = {gang.name: self._checked(gang, changes, count) for gang in gangs}
                timings = _alternate(started, 2 if quick else rounds or self.rounds)
            for name, timing in timings.items():
                yield timed(records[name], timing, BASELINE, timings[BASELINE])

    def _checked(self, gang: Gang, changes: dict[str, Tensor], count: int) -> Record:
        """Return a gang's record, with the distance of its first meta-step to one process's."""
        record = Record(self.name, gang.name, count)
        if gang.reduces_alone:
            return record
        expected = changes[BASELINE]
        error = ((changes[gang.name] - expected).norm() / expected.norm()).item()
        allowed = 0.0 if gang.in_order or gang.ranks == 1 else ROUNDING
        if not error <= allowed:
            raise AssertionError(f"{gang.name}: the initialisation's change is {error:.1e} off, {allowed:.1e} allowed")
        return dataclasses.replace(record, error=error, error_allowed=allowed)


CASES = (ScalingCase("scaling-default", "default"), ScalingCase("scaling-dcgan-32", "dcgan-32"))


def draw(workload: str, **ranks: Any) -> tuple[mgf.MetaGAN, mgf.TaskBatch]:
    """Return the learner and a batch of the default preset, or of a workload of `bench`."""
    if workload != "default":
        problem = workloads.find(workload).draw()
        return problem.learner("auto", **ranks), problem.batch
    settings = configuration.resolve(configuration.from_preset("default"))
    side, training = settings["data"]["image_size"], configuration.build_training(settings)
    learner = configuration.build_learner(settings, (1, side, side), **ranks)
    torch.manual_seed(0)
    return learner, mgf.TaskBatch(torch.rand(training.tasks, training.shots, 1, side, side) * 2 - 1)


@contextlib.contextmanager
def _started(workload: str, gang: Gang, threads: int) -> Iterator[list[Connection]]:
    """Start a gang's processes and yield the connections to them; end them afterwards."""
    spawn = multiprocessing.get_context("spawn")
    pipes = [spawn.Pipe() for _ in range(gang.ranks)]
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            spawn.Process(
                target=_serve,
                args=(pipes[rank][1], workload, gang, rank, max(1, threads // gang.ranks), Path(folder) / "store"),
                daemon=True,
            )
            for rank in range(gang.ranks)
        ]
        for process, (_, theirs) in zip(processes, pipes, strict=True):
            process.start()
            theirs.close()  # so that a rank's end is noticed
        try:
            yield [ours for ours, _ in pipes]
        finally:
            for ours, _ in pipes:
                with contextlib.suppress(OSError):
                    ours.send("end")
            for process in processes:
                process.join(30)


def _ask(connections: Sequence[Connection], command: str) -> list[Any]:
    """Send a command to all ranks and return their answers."""
    for connection in connections:
        connection.send(command)
    return [connection.recv() for connection in connections]


def _alternate(started: dict[str, list[Connection]], rounds: int) -> dict[str, Timing]:
    """Time one meta-step of each gang in turn; a gang's time is its slowest rank's."""
    seconds: dict[str, list[float]] = {name: [] for name in started}
    for _ in range(rounds):
        for name, connections in started.items():
            seconds[name].append(max(_ask(connections, "time")))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _serve(connection: Connection, workload: str, gang: Gang, rank: int, threads: int, store: Path) -> None:
    """Run one rank: answer commands until the last."""
    torch.set_num_threads(threads)
    ranks: dict[str, Any] = {}
    if gang.ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=gang.ranks)
        ranks = {"process_group": dist.group.WORLD, "deterministic_reduce": gang.in_order}
    learner, batch = draw(workload, **ranks)
    initial = torch.cat([learner.generator_parameters, learner.discriminator_parameters])
    alone = Ranks(dist.group.WORLD) if gang.reduces_alone else None
    while (command := connection.recv()) != "end":
        if gang.ranks > 1:
            dist.barrier()
        begun = perf_counter()
        if alone is None:
            learner.meta_step(batch)
        else:
            alone.sum(initial)
        if command == "time":
            connection.send(perf_counter() - begun)
        else:
            connection.send(torch.cat([learner.generator_parameters, learner.discriminator_parameters]) - initial)
