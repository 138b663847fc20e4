"""Cases of whole inner loops: contenders are checked against float64, then timed in alternation."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from metagan_fast.benchmarks import machine, operations
from metagan_fast.benchmarks.contenders import BASELINE, CONTENDERS, OURS, Contender, Result
from metagan_fast.benchmarks.problem import Problem
from metagan_fast.benchmarks.records import Record, timed
from metagan_fast.benchmarks.timing import Run, alternate
from torch import Tensor

from metagan_fast import InnerLoop

# Allowed distance to the float64 plain loop after one step and after all, in multiples of the float32 plain loop's own:
# a GAN's inner loop amplifies rounding, so no absolute tolerance holds.
ONE_STEP, ALL_STEPS = 3.0, 10.0
LEAST_ERROR = 1e-5

PENALISED = ("wgan-gp", "figr", "r1")
"""Losses whose discriminator step has a gradient penalty."""

# MAML is checked on smooth copies of the networks (SiLU) and timed on the real ones: under PReLU the meta-gradient
# jumps where an activation changes sign between inner steps, so two correct float32 implementations may diverge
# (docs/tuning.md#benchmarks-maml-checks-on-smooth-networks). So does Adam, with a larger eps: its first step is the
# gradient's sign, which jumps too (docs/tuning.md#benchmarks-adam-checks-with-a-smooth-step).


@dataclass(frozen=True)
class WorkloadCase:
    """One inner loop: networks, tasks, algorithm and loss.

    `contenders` are names of `contenders.CONTENDERS`; `checked_tasks` is the number of tasks that are checked.
    """

    name: str
    workload: str
    tasks: int
    contenders: tuple[str, ...]
    algorithm: str = "reptile"
    loss: str = "wgan-gp"
    steps: int = 10
    shots: int = 4
    query: int = 0
    lr: float = 1e-3
    optimizer: str = "sgd"
    betas: tuple[float, float] = InnerLoop.betas
    batch_size: int | None = None
    rounds: int = 5
    checked_tasks: int = 2

    @property
    def inner(self) -> InnerLoop:
        """The inner loop's settings."""
        return InnerLoop(self.optimizer, self.lr, self.steps, batch_size=self.batch_size, betas=self.betas)

    @property
    def rows(self) -> int:
        """Support images that an update draws."""
        return self.shots if self.batch_size is None else self.batch_size

    def draw(self) -> Problem:
        """Draw the problem that all contenders solve."""
        return Problem.draw(
            self.workload,
            algorithm=self.algorithm,
            loss=self.loss,
            inner=self.inner,
            tasks=self.tasks,
            shots=self.shots,
            query=self.query,
        )

    def quick(self) -> WorkloadCase:
        """Return a short form of the case."""
        return dataclasses.replace(self, steps=min(self.steps, 2), rounds=2, checked_tasks=1)

    def chosen(self, quick: bool, contenders: Sequence[str] | None) -> WorkloadCase:
        """Return the case under the command's options; `contenders` run beside the baseline."""
        case = self.quick() if quick else self
        if contenders is None:
            return case
        return dataclasses.replace(case, contenders=(BASELINE, *(name for name in contenders if name != BASELINE)))

    def measure(
        self,
        *,
        thread_counts: Sequence[int] | None = None,
        quick: bool = False,
        rounds: int | None = None,
        contenders: Sequence[str] | None = None,
    ) -> Iterator[Record]:
        """Time whole inner loops; see `case.Case.measure`. Results are compared with the float64 plain loop's."""
        case = self.chosen(quick, contenders)
        problem = case.draw()
        for count in thread_counts or [torch.get_num_threads()]:
            with machine.threads(count):
                yield from _measure(case, problem, count, quick, rounds or case.rounds)


def _adam(name: str, tasks: int, contenders: tuple[str, ...], **options: Any) -> WorkloadCase:
    """Return a case with R1 and the default run's inner optimizer (`training/presets.py`)."""
    return WorkloadCase(
        name, name, tasks, contenders, loss="r1", lr=2e-3, optimizer="adam", betas=(0.0, 0.9), **options
    )


_OURS = (OURS, "torch executor")
_SMALL = (BASELINE, *_OURS, "vmap", "compile", "jax")
_LARGE = (BASELINE, *_OURS, "native bf16", "vmap")
CASES = (
    WorkloadCase("mlp-8", "mlp-8", 16, _SMALL, rounds=15),
    WorkloadCase("dcgan-16", "dcgan-16", 16, _SMALL, rounds=7),
    WorkloadCase("dcgan-32", "dcgan-32", 8, _SMALL),
    WorkloadCase("figr", "figr", 1, _LARGE, rounds=3, checked_tasks=1),
    WorkloadCase("figr-8", "figr", 8, _LARGE, rounds=2, checked_tasks=1),
    WorkloadCase("figr-resnet", "figr-resnet", 1, _LARGE, rounds=3, checked_tasks=1),
    WorkloadCase(
        "maml-32",
        "maml-32",
        8,
        (BASELINE, *_OURS, "higher", "torchopt"),
        algorithm="maml",
        loss="non-saturating",
        steps=5,
        query=4,
        rounds=3,
    ),
    _adam("glyphs-32", 4, (*_SMALL, "native bf16"), shots=12, batch_size=8),  # the default run's networks
    _adam("rgb-64", 4, _LARGE, rounds=3, checked_tasks=1),
)


def find(name: str) -> WorkloadCase:
    """Return the case of that name."""
    return next(case for case in CASES if case.name == name)


def against_baseline(measured: str, name: str) -> WorkloadCase:
    """Return the case `name` with only the engine and the baseline, renamed `<measured>-<name>`."""
    return dataclasses.replace(find(name), name=f"{measured}-{name}", contenders=(BASELINE, OURS))


def _measure(case: WorkloadCase, problem: Problem, count: int, quick: bool, rounds: int) -> Iterator[Record]:
    runs: dict[str, Run] = {}
    records: dict[str, Record] = {}
    for record in admit(case, problem, count, quick):
        if record.skipped is not None:
            yield record
            continue
        runs[record.contender] = CONTENDERS[record.contender].prepare(problem).run
        before = time.perf_counter()
        runs[record.contender]()
        first = time.perf_counter() - before
        records[record.contender] = dataclasses.replace(record, first_call_seconds=first)
    timings = alternate(runs, rounds=rounds, warm_up=0 if quick else 1, settle=0.03)
    seconds, kind = floor(case, problem)
    for name, timing in timings.items():
        yield timed(records[name], timing, BASELINE, timings[BASELINE], seconds, kind)


def admit(case: WorkloadCase, problem: Problem, count: int, quick: bool) -> Iterator[Record]:
    """Yield a record for each contender, with its checked error or the reason why it is skipped.

    Raises:
        AssertionError: a result is further from float64 than allowed.
    """
    judge = Judge(case, problem)
    for name in case.contenders:
        record = Record(case.name, name, count)
        reason = CONTENDERS[name].left_out(problem, quick)
        if reason is not None:
            yield dataclasses.replace(record, skipped=reason)
        else:
            error, allowed = judge.check(CONTENDERS[name])
            yield dataclasses.replace(record, error=error, error_allowed=allowed)


def floor(case: WorkloadCase, problem: Problem) -> tuple[float, str]:
    """Return the seconds of a case at this machine's peak, and the limiting resource."""
    latents = problem.noise.generator_latents[0, 0]
    generator = operations.cost(problem.generator, latents)
    discriminator = operations.cost(problem.discriminator, problem.batch.support[0])
    if case.algorithm == "maml":
        multiply_adds = operations.maml_step(generator, discriminator, case.shots)
    else:
        penalty, at_real = case.loss in PENALISED, case.loss == "r1"
        costs = generator, discriminator
        multiply_adds = operations.inner_step(*costs, case.rows, penalty=penalty, at_real=at_real)
    elements = sum(p.numel() for n in (problem.generator, problem.discriminator) for p in n.parameters())
    runs = case.tasks * case.steps
    by_arithmetic = runs * multiply_adds / machine.multiply_add_rate()
    arrays = 1  # of each parameter and of its optimizer state, read and written every step
    if case.optimizer == "adam":
        arrays += 1 + (case.betas[0] > 0)  # without momentum the mean is the gradient
    by_memory = runs * elements * 4 * 2 * arrays / machine.copy_bandwidth()
    return max((by_arithmetic, "multiply-adds"), (by_memory, "copy bandwidth"))


class Judge:
    """Reference results of a case; the float64 loop runs once for all contenders."""

    def __init__(self, case: WorkloadCase, problem: Problem) -> None:
        self._name = case.name
        if case.algorithm == "maml" or case.optimizer == "adam":
            problem = problem.smooth()
        self._stages = []
        for steps, factor in ((1, ONE_STEP), (case.steps, ALL_STEPS)):
            part = problem.first(tasks=case.checked_tasks, steps=steps)
            exact = _solve(CONTENDERS[BASELINE], part.double())
            own = _distances(_solve(CONTENDERS[BASELINE], part), exact, part)
            self._stages.append((part, exact, [max(factor * error, LEAST_ERROR) for error in own]))

    def check(self, contender: Contender) -> tuple[float, float]:
        """Return the worse network's distance to float64 after all steps, and the distance allowed.

        Raises:
            AssertionError: a distance exceeds the one allowed.
        """
        worst = (0.0, 1.0)
        stages = self._stages
        if contender.allowed is not None:
            stages = [(part, exact, [contender.allowed] * len(own)) for part, exact, own in stages[:1]]
        for part, exact, allowed in stages:
            errors = _distances(_solve(contender, part), exact, part)
            worst = max(zip(errors, allowed, strict=True), key=lambda pair: pair[0] / pair[1])
            assert worst[0] <= worst[1], (
                f"{contender.name} on {self._name}: {worst[0]:.1e} of the change away from float64 after "
                f"{part.steps} steps, allowed {worst[1]:.1e}"
            )
        return worst


def _solve(contender: Contender, problem: Problem) -> Result:
    prepared = contender.prepare(problem)
    return prepared.collect(prepared.run())


def _distances(actual: Result, exact: Result, problem: Problem) -> list[float]:
    """Return each network's L2 distance to `exact`, relative to the change (or to the meta-gradient)."""
    starts: tuple[Tensor | float, Tensor | float] = (0.0, 0.0)
    if problem.algorithm != "maml":
        starts = problem.initial()
    return [
        ((a.double() - e).norm() / (e - start).norm()).item() for a, e, start in zip(actual, exact, starts, strict=True)
    ]
