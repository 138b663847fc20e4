"""Self-check of an installation: kernels and engine against PyTorch, in about a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import MAML, InnerLoop, MetaGAN, Noise, TaskBatch, _native, functional, models
from .._utils.draws import draws_from_seed
from .._utils.pair import Pair
from ..ops import _dispatch

_OP_LIMIT = 1e-6
"""Relative error of a float32 op: all but `clip_grad_norm` have the reference's bits on a CPU."""

_ENGINE_LIMIT = 1e-3
"""Relative error of a float32 update against float64; rounding gives 1e-5, a wrong term more than 1e-2."""

_WGAN_GP: dict[str, Any] = {"loss": "wgan-gp"}
_MAML: dict[str, Any] = {"loss": "non-saturating", "meta": MAML()}


class Check(NamedTuple):
    """A comparison and its outcome: the relative error in L2, which passes up to `limit`; or why it did not run."""

    name: str
    error: float | None
    limit: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        """True unless the check ran and failed."""
        return not self.problem and self.error is not None and self.error <= self.limit


def checks() -> Iterator[Check]:
    """Yield the checks of every compiled backend that can run here, and of the engine."""
    for row in _dispatch.BACKENDS:
        if row.device != _dispatch.ANY and row.is_available()[0]:
            for op, call in _OPS.items():
                yield _run(f"{row.name} {op} on {row.device}", _OP_LIMIT, partial(_op_error, row, call))
    if _native.is_available()[0]:
        yield _run("engine inner step, WGAN-GP", _ENGINE_LIMIT, lambda: _engine_error(_inner_step, **_WGAN_GP))
        yield _run("engine MAML meta-gradient", _ENGINE_LIMIT, lambda: _engine_error(_meta_gradient, **_MAML))


def _run(name: str, limit: float, compare: Callable[[], float]) -> Check:
    try:
        return Check(name, compare(), limit)
    except Exception as error:  # a broken build may raise anything
        return Check(name, None, limit, f"{type(error).__name__}: {' '.join(str(error).split())}")


_OPS: dict[str, Callable[[list[Tensor]], Any]] = {
    "sgd_step": lambda x: functional.sgd_step(x[0], x[1], 0.1, momentum_buffer=x[2], momentum=0.9),
    "adam_step": lambda x: functional.adam_step(x[0], x[1], x[2], x[3], 0.1, step=3),
    "rmsprop_step": lambda x: functional.rmsprop_step(x[0], x[1], x[3], 0.1),
    "reptile_interpolate": lambda x: functional.reptile_interpolate(x[0][0], x[1], 0.1),
    "reptile_gradient": lambda x: functional.reptile_gradient(x[0][0], x[1]),
    "meta_adam_step": lambda x: functional.meta_adam_step(x[0][0], x[1], x[2][0], x[3][0], 0.1, step=3),
    "clip_grad_norm": lambda x: functional.clip_grad_norm(x[1], 0.5),
    "ema_update": lambda x: functional.ema_update(x[0], x[1], 0.9),
}
"""Each op's call for four tensors [2, 1000]; the last is positive."""


def _op_error(row: _dispatch.Backend, call: Callable[[list[Tensor]], Any]) -> float:
    with draws_from_seed(0):
        tensors = list(torch.randn(4, 2, 1000))
    tensors[3] = tensors[3].abs()
    with functional.use_backend("reference"):
        expected = call(tensors)
    with functional.use_backend(row.name):
        actual = call([x.to(row.device) for x in tensors])
    return _error(_flat(actual), _flat(expected))


def _engine_error(result: Callable[[MetaGAN, TaskBatch, Noise], Pair[Tensor]], **settings: Any) -> float:
    """Return the larger relative error of both networks' results: the engine's against float64 on PyTorch."""
    with draws_from_seed(0):
        networks = models.build("dcgan", image_size=8, width=4, blocks=2, latent_dim=6)
        batch = TaskBatch(torch.rand(2, 4, 1, 8, 8) * 2 - 1, torch.rand(2, 4, 1, 8, 8) * 2 - 1)

    def run(executor: str, dtype: torch.dtype) -> Pair[Tensor]:
        learner = MetaGAN(
            *(network.to(dtype) for network in networks),
            latent_dim=6,
            inner=InnerLoop(lr=0.05, steps=1),
            executor=executor,
            **settings,
        )
        return result(learner, batch.to(dtype=dtype), learner.draw_noise(batch))

    actual = run("native", torch.float32)
    expected = run("torch", torch.float64)
    return max(map(_error, actual, expected))


def _inner_step(learner: MetaGAN, batch: TaskBatch, noise: Noise) -> Pair[Tensor]:
    """Return the change that one inner step makes."""
    adapted = learner.inner_loop(batch, noise=noise)
    start = learner.generator_parameters, learner.discriminator_parameters
    return Pair(adapted.generator, adapted.discriminator).map(torch.sub, start)


def _meta_gradient(learner: MetaGAN, batch: TaskBatch, noise: Noise) -> Pair[Tensor]:
    gradient = learner.meta_gradient(batch, noise=noise)
    return Pair(gradient.generator, gradient.discriminator)


def _flat(results: Any) -> Tensor:
    tensors = (results,) if isinstance(results, Tensor) else results
    return torch.cat([x.detach().cpu().double().reshape(-1) for x in tensors])


def _error(actual: Tensor, expected: Tensor) -> float:
    """Return |actual - expected| / |expected| in L2; infinity if it is not a number."""
    error = float((actual.double() - expected.double()).norm() / expected.double().norm())
    return error if error == error else float("inf")
