"""`python -m metagan_fast.benchmarks memory`: predicted memory of meta-steps beside the measured one.

Each row has a process of its own, which imports everything, takes a meta-step of a small learner on the same executor,
builds the row's learner and its batch, and reads its resident memory. Then the peak is reset (`/proc/self/clear_refs`),
two meta-steps are taken, and the peak is read: `VmHWM` in `/proc/self/status`. glibc's malloc returns freed memory at
once in that process (fixed thresholds for mmap and trim, one arena): by default it keeps some of it, up to 32 MB a
block size, which is its own and not the meta-step's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from metagan_fast.benchmarks import workload_networks
from metagan_fast.benchmarks.memory import status_bytes

import metagan_fast as mgf
from metagan_fast._utils.coerce import in_units

TOLERANCE, SMALL = 0.10, 6_000_000
"""Fraction by which a prediction may differ from the measured peak, and bytes by which it may differ in any case."""

_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class Case:
    """A row: workload, algorithm, executor and sizes."""

    workload: str
    algorithm: str
    executor: str
    tasks: int = 4
    shots: int = 4
    steps: int = 3
    precision: str = "float32"
    max_memory: int | None = None

    @property
    def name(self) -> str:
        """The row's name."""
        bound = "" if self.max_memory is None else f", at most {in_units(self.max_memory)}"
        bf16 = "" if self.precision == "float32" else f" {self.precision}"
        return f"{self.workload} {self.algorithm} {self.executor}{bf16}, {self.tasks} tasks{bound}"

    def learner(self) -> mgf.MetaGAN:
        """Return a new learner."""
        torch.manual_seed(0)
        generator, discriminator, latent_dim, _ = workload_networks.workload(self.workload)
        loss, meta, inner = _ALGORITHMS[self.algorithm]
        return mgf.MetaGAN(
            generator,
            discriminator,
            latent_dim=latent_dim,
            loss=loss,
            inner=dataclasses.replace(inner, steps=self.steps),
            meta=meta,
            executor=self.executor,
            precision=self.precision,
            max_memory=self.max_memory,
        )

    def batch(self, learner: mgf.MetaGAN) -> mgf.TaskBatch:
        """Return a batch of random images."""
        image_shape = workload_networks.workload(self.workload).image_shape
        images = torch.rand(self.tasks, 2 * self.shots, *image_shape) * 2 - 1
        query = images[:, self.shots :].contiguous() if learner.meta.needs_query else None
        return mgf.TaskBatch(images[:, : self.shots].contiguous(), query)


_SGD, _ADAM = mgf.InnerLoop("sgd", lr=1e-3), mgf.InnerLoop("adam", lr=1e-3)
_ALGORITHMS: dict[str, tuple[str, Any, mgf.InnerLoop]] = {
    "reptile": ("wgan-gp", mgf.Reptile(), _SGD),
    "reptile-adam": ("r1", mgf.Reptile(optimizer="sgd", lr=0.3), _ADAM),
    "reptile-serial": ("wgan-gp", mgf.Reptile(serial=True), _SGD),
    "fomaml": ("wgan-gp", mgf.FOMAML(clip_norm=1.0), _SGD),
    "maml": ("non-saturating", mgf.MAML(), _SGD),
    "maml-sqrt": ("non-saturating", mgf.MAML(checkpointing="sqrt"), _SGD),
}

_EVERY = tuple(_ALGORITHMS)
_MAML = ("maml", "maml-sqrt")
CASES = (
    *(
        Case(workload, algorithm, executor, tasks, steps=9 if algorithm in _MAML else 2)
        for workload, tasks in (("mlp-8", 16), ("dcgan-32", 8))
        for algorithm in _EVERY
        for executor in ("native", "torch")
    ),
    *(Case("figr", algorithm, "native", 2, steps=1) for algorithm in _EVERY if algorithm not in _MAML),
    *(Case("figr", algorithm, "native", 1, steps=6) for algorithm in _MAML),
    *(Case("figr", algorithm, "torch", 1, steps=2) for algorithm in ("reptile", "reptile-adam", "fomaml")),
    *(Case("figr", algorithm, "torch", 1, steps=4) for algorithm in _MAML),
    Case("figr", "reptile", "native", 8, steps=1),
    Case("figr", "reptile", "torch", 2, steps=2),
    Case("figr-resnet", "reptile", "native", 1, steps=1),
    Case("rgb-64", "reptile-adam", "native", 4, steps=1),
    Case("rgb-64", "reptile-adam", "torch", 2, steps=2),
    Case("dcgan-32", "reptile", "native", 8, steps=1, precision="bf16"),
    Case("dcgan-32", "reptile", "torch", 8, steps=2, precision="bf16"),
    Case("figr", "reptile", "native", 2, steps=1, precision="bf16"),
)


@dataclass(frozen=True)
class Result:
    """Predicted and measured bytes of a case."""

    case: Case
    predicted: int
    measured: int
    parts: dict[str, int]

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / max(1, self.measured)

    @property
    def is_close(self) -> bool:
        """Whether they agree within `TOLERANCE`, or within `SMALL` bytes."""
        return abs(self.predicted - self.measured) <= max(TOLERANCE * self.measured, SMALL)


def measure(case: Case, *, threads: int = 2, default_malloc: bool = False) -> Result:
    """Run a case in a new process."""
    program = "from metagan_fast.benchmarks import memory_plan; memory_plan._child()"
    environment = {**os.environ, **({} if default_malloc else _MALLOC), "METAGAN_FAST_THREADS": str(threads)}
    given = json.dumps(dataclasses.asdict(case))
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, input=given, text=True, stdout=subprocess.PIPE, check=True
    )
    found = json.loads(run.stdout.splitlines()[-1])
    return Result(case, found["predicted"], found["measured"], found["parts"])


def _child() -> None:
    """Measure the case on standard input; print the result."""
    case = Case(**json.load(sys.stdin))
    torch.set_num_threads(int(os.environ["METAGAN_FAST_THREADS"]))
    for warm in (dataclasses.replace(case, workload=name, tasks=2, steps=2) for name in ("mlp-8", "dcgan-16")):
        warm = dataclasses.replace(warm, max_memory=None)
        small = warm.learner()
        small.meta_step(warm.batch(small))
    learner = case.learner()
    batch = case.batch(learner)
    plan = learner.plan_memory(batch)
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(2):
        learner.meta_step(batch)
    measured = status_bytes("VmHWM") - before
    print(json.dumps({"predicted": plan.peak, "measured": measured, "parts": dict(plan.parts)}))


def table(results: Iterator[Result]) -> Iterator[str]:
    """Yield the lines of a table of results."""
    yield f"{'case':52} {'predicted':>10} {'measured':>10} {'ratio':>6}"
    for result in results:
        mark = "" if result.is_close else "  differs"
        yield (
            f"{result.case.name:52} {in_units(result.predicted):>10} {in_units(result.measured):>10} "
            f"{result.ratio:6.2f}{mark}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if a prediction differs from what is measured."""
    parser = argparse.ArgumentParser(prog="python -m metagan_fast.benchmarks memory", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    parser.add_argument("--threads", type=int, default=2, help="threads of the engine")
    parser.add_argument("--default-malloc", action="store_true", help="leave malloc as it is")
    parser.add_argument("--parts", action="store_true", help="show the parts of each prediction")
    options = parser.parse_args(arguments)
    results = []

    def each() -> Iterator[Result]:
        for case in CASES:
            if options.only in case.name:
                results.append(measure(case, threads=options.threads, default_malloc=options.default_malloc))
                yield results[-1]

    for line in table(each()):
        print(line, flush=True)
        if options.parts and results:
            print("    " + ", ".join(f"{name} {in_units(size)}" for name, size in results[-1].parts.items()))
    return 0 if all(result.is_close for result in results) else 1
