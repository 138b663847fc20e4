"""Contenders: the package and its alternatives behind one interface, `prepare`, then `run` and `collect`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from metagan_fast.benchmarks.baselines import meta_gradients, plain, vmap
from metagan_fast.benchmarks.problem import Problem, join
from torch import Tensor, nn

Result = tuple[Tensor, Tensor]
Collected = TypeVar("Collected")


@dataclass(frozen=True)
class Prepared(Generic[Collected]):
    """A contender set up for a problem: `run` is timed, `collect` converts its result for comparison."""

    run: Callable[[], Any]
    collect: Callable[[Any], Collected]


@dataclass(frozen=True)
class Contender:
    """One way to run a workload.

    Attributes:
        name: the contender's name in the records.
        prepare: sets it up for a problem; collected results are adapted parameters `[tasks, elements]` of generator
            and discriminator, or meta-gradients `[elements]`.
        algorithms: the algorithms it supports.
        package: the package it needs, or None.
        plain_loops_only: True if it runs SGD on all support images, and nothing else.
        slow_start: True if the first call compiles; `--quick` leaves such contenders out.
        allowed: largest distance to float64 after one step, for contenders below float32 precision, whose later steps
            diverge; None: a multiple of the plain loop's own distance.
    """

    name: str
    prepare: Callable[[Problem], Prepared[Result]]
    algorithms: tuple[str, ...] = ("reptile", "maml")
    package: str | None = None
    plain_loops_only: bool = False
    slow_start: bool = False
    allowed: float | None = None

    def missing(self) -> str | None:
        """Return why the contender cannot run here, or None."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        return None

    def left_out(self, problem: Problem, quick: bool) -> str | None:
        """Return why the contender is skipped, or None."""
        if self.plain_loops_only and not problem.is_plain:
            return "it has neither other inner optimizers than SGD nor mini-batches"
        return self.missing() or ("left out by --quick" if quick and self.slow_start else None)


def _named(named: tuple[dict[str, Tensor], dict[str, Tensor]], dims: int) -> Result:
    return join(named[0], dims), join(named[1], dims)


def _options(problem: Problem) -> dict[str, Any]:
    return {"loss": problem.loss, "lr": problem.lr, "steps": problem.steps}


def _maml(problem: Problem, gradient: Callable[..., Any]) -> Prepared[Result]:
    batch = problem.batch
    arguments = (problem.generator, problem.discriminator, batch.support, batch.query, problem.noise)
    return Prepared(lambda: gradient(*arguments, **_options(problem)), lambda named: _named(named, 0))


def _plain(problem: Problem) -> Prepared[Result]:
    if problem.algorithm == "maml":
        return _maml(problem, meta_gradients.maml_gradient)

    def run() -> Any:
        networks = problem.generator, problem.discriminator
        options = {**_options(problem), "optimizer": problem.inner.optimizer, **problem.optimizer_options}
        return plain.inner_loop(*networks, problem.batch.support, problem.noise, **options)

    def stack(networks: list[nn.Module]) -> Tensor:
        return torch.stack([join(dict(network.named_parameters())) for network in networks])

    return Prepared(run, lambda adapted: (stack(adapted[0]), stack(adapted[1])))


def _ours(problem: Problem, executor: str, precision: str = "float32") -> Prepared[Result]:
    learner = problem.learner(executor, precision)
    layouts = learner.generator_layout, learner.discriminator_layout
    maml = problem.algorithm == "maml"
    work = learner.meta_gradient if maml else learner.inner_loop

    def collect(result: Any) -> Result:
        flat = result.generator, result.discriminator
        return _named((layouts[0].views(flat[0]), layouts[1].views(flat[1])), 0 if maml else 1)

    return Prepared(lambda: work(problem.batch, noise=problem.noise), collect)


def _vectorised(problem: Problem, make_step: Callable[..., vmap.Step]) -> Prepared[Result]:
    networks = problem.generator, problem.discriminator
    optimizer = problem.inner.optimizer
    step = make_step(*networks, loss=problem.loss, lr=problem.lr, optimizer=optimizer, **problem.optimizer_options)
    arguments = *networks, problem.batch.support, problem.noise

    def run() -> Any:
        return vmap.inner_loop(*arguments, step=step, steps=problem.steps, optimizer=optimizer)

    return Prepared(run, lambda named: _named(named, 1))


def _compile(problem: Problem) -> Prepared[Result]:
    from metagan_fast.benchmarks.baselines.compile import compiled_step

    return _vectorised(problem, compiled_step)


def _jax(problem: Problem) -> Prepared[Result]:
    from metagan_fast.benchmarks.baselines import jax_dcgan

    if problem.loss != "wgan-gp":
        raise ValueError(f"expected wgan-gp for the JAX baseline, got {problem.loss}")
    networks = problem.generator, problem.discriminator
    step = jax_dcgan.compiled_step(*networks, lr=problem.lr)
    names = ("discriminator_latents", "generator_latents", "interpolation")
    noise = {name: jax_dcgan.to_jax(getattr(problem.noise, name)) for name in names}
    support = jax_dcgan.to_jax(problem.batch.support)

    def collect(named: Any) -> Result:
        as_torch = [{name: torch.tensor(jax_dcgan.to_numpy(a)) for name, a in arrays.items()} for arrays in named]
        return _named((as_torch[0], as_torch[1]), 1)

    return Prepared(lambda: jax_dcgan.inner_loop(*networks, support, noise, step=step, steps=problem.steps), collect)


def _higher(problem: Problem) -> Prepared[Result]:
    from metagan_fast.benchmarks.baselines.higher_maml import maml_gradient

    return _maml(problem, maml_gradient)


def _torchopt(problem: Problem) -> Prepared[Result]:
    from metagan_fast.benchmarks.baselines.torchopt_maml import maml_gradient

    return _maml(problem, maml_gradient)


BASELINE = "plain"
OURS = "native executor"
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(BASELINE, _plain),
        Contender(OURS, lambda problem: _ours(problem, "native")),
        Contender("native bf16", lambda problem: _ours(problem, "native", "bf16"), allowed=0.2),
        Contender("torch executor", lambda problem: _ours(problem, "torch")),
        Contender("vmap", lambda problem: _vectorised(problem, vmap.vectorised_step), ("reptile",)),
        Contender("compile", _compile, ("reptile",), slow_start=True),
        Contender("jax", _jax, ("reptile",), package="jax", plain_loops_only=True, slow_start=True),
        Contender("higher", _higher, ("maml",), package="higher", plain_loops_only=True),
        Contender("torchopt", _torchopt, ("maml",), package="torchopt", plain_loops_only=True),
    )
}
