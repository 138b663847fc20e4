"""Cases of the fused ops: in-place twins against plain PyTorch, with the time to copy as many bytes as the floor.

All contenders run on the same memory, as in a trainer: with separate buffers, each would run on caches that the others
have evicted.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from metagan_fast.benchmarks import machine
from metagan_fast.benchmarks.records import Record, timed
from metagan_fast.benchmarks.timing import Run, alternate
from torch import Tensor

from metagan_fast import functional


class Buffers(dict[str, Tensor]):
    """Tensors by name, and shrinking norm bounds, so that every call of a clipping op clips."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self.bounds = (0.9**number for number in itertools.count())


Contender = Callable[[Buffers], Run]

LR, BETAS, EPS, STEP = 1e-3, (0.9, 0.999), 1e-8, 10
OURS = "ours"
PLAIN = "plain"


@dataclass(frozen=True)
class OpCase:
    """One op on buffers of one size.

    Attributes:
        name: the op's stem, with a suffix for variants.
        task_buffers: names of the buffers `[tasks, numel]`.
        buffers: names of the buffers `[numel]`.
        traffic: (task buffers, buffers) read plus written, each counted once a pass.
        results: names of the buffers that every contender must leave equal.
        contenders: contenders by name, including "ours" and the baseline "plain".
    """

    name: str
    task_buffers: tuple[str, ...]
    traffic: tuple[int, int]
    results: tuple[str, ...]
    contenders: Mapping[str, Contender]
    buffers: tuple[str, ...] = ()
    tasks: int = 16
    tolerance: float = 1e-6

    def draw(self, numel: int) -> Buffers:
        """Return fresh random buffers; second moments (`*_sq`) are positive."""
        generator = torch.Generator().manual_seed(0)
        shapes = dict.fromkeys(self.task_buffers, (self.tasks, numel)) | dict.fromkeys(self.buffers, (numel,))
        drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return Buffers({name: value.square() if name.endswith("_sq") else value for name, value in drawn.items()})

    def bytes(self, numel: int) -> int:
        """Return the bytes that the op reads plus writes."""
        return 4 * numel * (self.tasks * self.traffic[0] + self.traffic[1])

    def measure(
        self,
        *,
        thread_counts: Sequence[int] | None = None,
        quick: bool = False,
        rounds: int | None = None,
        contenders: Sequence[str] | None = None,
        numel: int = 1_000_000,
    ) -> Iterator[Record]:
        """Measure the op on rows of `numel` elements; see `case.Case.measure`. `contenders` is ignored."""
        chosen = {name: c for name, c in self.contenders.items() if not (quick and name in SLOW)}
        errors = {}
        expected: dict[str, Tensor] = {}
        for name in sorted(chosen, key=lambda name: name != PLAIN):
            buffers = self.draw(numel)
            chosen[name](buffers)()
            expected = expected or {key: buffers[key] for key in self.results}
            errors[name] = max(_relative_error(buffers[key], expected[key]) for key in self.results)
            message = f"{name} differs from {PLAIN} on {self.name} by {errors[name]:.1e}"
            assert errors[name] <= self.tolerance, message
        shared = self.draw(numel)
        runs = {name: contender(shared) for name, contender in chosen.items()}
        source, destination = torch.ones(2, 16, numel)
        rounds = rounds or (7 if quick else 25)
        for count in thread_counts or sorted({1, torch.get_num_threads()}):
            with machine.threads(count):
                timings = alternate(runs, rounds=rounds, warm_up=2)
                copies = alternate(machine.copy_runs(source, destination), rounds=rounds, warm_up=2)
            bandwidth = 2 * 4 * source.numel() / min(timing.best for timing in copies.values())
            floor = self.bytes(numel) / bandwidth
            for name in self.contenders:
                if name not in runs:
                    yield Record(self.name, name, count, skipped="left out by --quick")
                    continue
                record = Record(self.name, name, count, error=errors[name], error_allowed=self.tolerance)
                yield timed(record, timings[name], PLAIN, timings[PLAIN], floor, "copy bandwidth")


def _sgd_plain(b: Buffers) -> Run:
    return lambda: b["params"].sub_(LR * b["grads"])


def _sgd_ours(b: Buffers) -> Run:
    return lambda: functional.sgd_step_(b["params"], b["grads"], LR)


def _momentum_plain(b: Buffers) -> Run:
    def run() -> None:
        b["momentum_buffer"].mul_(0.9).add_(b["grads"])
        b["params"].sub_(LR * b["momentum_buffer"])

    return run


def _momentum_ours(b: Buffers) -> Run:
    return lambda: functional.sgd_step_(b["params"], b["grads"], LR, momentum_buffer=b["momentum_buffer"], momentum=0.9)


def _adam_update(params: Tensor, grads: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
    """Apply Adam in place, as written in plain PyTorch."""
    correction1, correction2 = 1 - BETAS[0] ** STEP, 1 - BETAS[1] ** STEP
    exp_avg.mul_(BETAS[0]).add_(grads, alpha=1 - BETAS[0])
    exp_avg_sq.mul_(BETAS[1]).addcmul_(grads, grads, value=1 - BETAS[1])
    denominator = (exp_avg_sq / correction2).sqrt_().add_(EPS)
    params.addcdiv_(exp_avg, denominator, value=-LR / correction1)


def _adam_plain(b: Buffers) -> Run:
    return lambda: _adam_update(b["params"], b["grads"], b["exp_avg"], b["exp_avg_sq"])


def _adam_ours(b: Buffers) -> Run:
    state = b["exp_avg"], b["exp_avg_sq"]
    return lambda: functional.adam_step_(b["params"], b["grads"], *state, LR, step=STEP, betas=BETAS, eps=EPS)


def _clipped_adam_plain(b: Buffers) -> Run:
    clip, step = _clip_plain(b), _adam_plain(b)
    return lambda: (clip(), step())


def _clipped_adam_ours(b: Buffers) -> Run:
    state = b["exp_avg"], b["exp_avg_sq"]
    step = functools.partial(functional.adam_step_, step=STEP, betas=BETAS, eps=EPS)
    return lambda: step(b["params"], b["grads"], *state, LR, max_norm=next(b.bounds))


def _rmsprop_plain(b: Buffers) -> Run:
    def run() -> None:
        b["average_sq"].mul_(0.99).addcmul_(b["grads"], b["grads"], value=0.01)
        b["params"].addcdiv_(b["grads"], b["average_sq"].sqrt().add_(EPS), value=-LR)

    return run


def _rmsprop_ours(b: Buffers) -> Run:
    return lambda: functional.rmsprop_step_(b["params"], b["grads"], b["average_sq"], LR, alpha=0.99, eps=EPS)


def _interpolate_plain(b: Buffers) -> Run:
    return lambda: b["initial"].add_(0.1 * (b["adapted"] - b["initial"]).mean(0))


def _interpolate_ours(b: Buffers) -> Run:
    return lambda: functional.reptile_interpolate_(b["initial"], b["adapted"], 0.1)


def _gradient_plain(b: Buffers) -> Run:
    return lambda: b["gradient"].copy_(b["initial"] - b["adapted"].mean(0))


def _gradient_ours(b: Buffers) -> Run:
    return lambda: functional.reptile_gradient_(b["gradient"], b["initial"], b["adapted"])


def _clip_plain(b: Buffers) -> Run:
    def run() -> None:
        scale = (next(b.bounds) / (b["grads"].norm(dim=1, keepdim=True) + 1e-6)).clamp_(max=1.0)
        b["grads"].mul_(scale)

    return run


def _clip_ours(b: Buffers) -> Run:
    return lambda: functional.clip_grad_norm_(b["grads"], next(b.bounds))


def _ema_plain(b: Buffers) -> Run:
    return lambda: b["average"].mul_(0.999).add_(b["params"], alpha=0.001)


def _ema_ours(b: Buffers) -> Run:
    return lambda: functional.ema_update_(b["average"], b["params"], 0.999)


def _meta_adam_ours(b: Buffers) -> Run:
    state = b["exp_avg"], b["exp_avg_sq"]
    return lambda: functional.meta_adam_step_(b["params"], b["adapted"], *state, LR, step=STEP, betas=BETAS, eps=EPS)


def _meta_adam_plain(b: Buffers) -> Run:
    return lambda: _adam_update(b["params"], b["params"] - b["adapted"].mean(0), b["exp_avg"], b["exp_avg_sq"])


def _meta_adam_out(b: Buffers) -> Run:
    """Plain expression with preallocated temporaries."""
    params, m, v = b["params"], b["exp_avg"], b["exp_avg_sq"]
    g, denominator = torch.empty_like(params), torch.empty_like(params)
    correction1, correction2 = 1 - BETAS[0] ** STEP, 1 - BETAS[1] ** STEP

    def run() -> None:
        torch.mean(b["adapted"], 0, out=g)
        torch.sub(params, g, out=g)
        m.mul_(BETAS[0]).add_(g, alpha=1 - BETAS[0])
        v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
        torch.div(v, correction2, out=denominator)
        params.addcdiv_(m, denominator.sqrt_().add_(EPS), value=-LR / correction1)

    return run


def _meta_adam_fused(b: Buffers) -> Run:
    """`torch.optim.Adam(fused=True)` on the difference."""
    parameter = torch.nn.Parameter(b["params"])
    optimizer = torch.optim.Adam([parameter], lr=LR, betas=BETAS, eps=EPS, fused=True)
    step = torch.tensor(float(STEP - 1))
    optimizer.state[parameter].update(step=step, exp_avg=b["exp_avg"], exp_avg_sq=b["exp_avg_sq"])

    def run() -> None:
        step.fill_(STEP - 1)
        parameter.grad = b["params"] - b["adapted"].mean(0)
        optimizer.step()

    return run


def _meta_adam_foreach(b: Buffers) -> Run:
    """`torch._foreach_*` over 16 parameter tensors, as in torch's optimizers."""
    params, m, v = ([*b[name].chunk(16)] for name in ("params", "exp_avg", "exp_avg_sq"))
    correction1, correction2 = 1 - BETAS[0] ** STEP, 1 - BETAS[1] ** STEP

    def run() -> None:
        means = [*b["adapted"].mean(0).chunk(16)]
        g = torch._foreach_sub(params, means)
        torch._foreach_mul_(m, BETAS[0])
        torch._foreach_add_(m, g, alpha=1 - BETAS[0])
        torch._foreach_mul_(v, BETAS[1])
        torch._foreach_addcmul_(v, g, g, 1 - BETAS[1])
        denominator = torch._foreach_div(v, correction2)
        torch._foreach_sqrt_(denominator)
        torch._foreach_add_(denominator, EPS)
        torch._foreach_addcdiv_(params, m, denominator, -LR / correction1)

    return run


def _meta_adam_compile(b: Buffers) -> Run:
    """Plain expression under `torch.compile`; the first call takes seconds."""
    compiled = torch.compile(_compilable_meta_adam, fullgraph=True, dynamic=False)
    return lambda: compiled(b["params"], b["adapted"], b["exp_avg"], b["exp_avg_sq"])


def _compilable_meta_adam(params: Tensor, adapted: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
    _adam_update(params, params - adapted.mean(0), exp_avg, exp_avg_sq)


_META_ADAM: dict[str, Contender] = {
    OURS: _meta_adam_ours,
    PLAIN: _meta_adam_plain,
    "plain out=": _meta_adam_out,
    "fused Adam": _meta_adam_fused,
    "foreach": _meta_adam_foreach,
    "compile": _meta_adam_compile,
}

SLOW = ("compile",)
"""Contenders that `--quick` leaves out."""


def _pair(ours: Contender, plain: Contender) -> dict[str, Contender]:
    return {OURS: ours, PLAIN: plain}


_STATE = ("params", "exp_avg", "exp_avg_sq")
CASES = (
    OpCase("sgd_step", ("params", "grads"), (3, 0), ("params",), _pair(_sgd_ours, _sgd_plain)),
    OpCase(
        "sgd_step-momentum",
        ("params", "grads", "momentum_buffer"),
        (5, 0),
        ("params", "momentum_buffer"),
        _pair(_momentum_ours, _momentum_plain),
    ),
    OpCase("adam_step", (*_STATE, "grads"), (7, 0), _STATE, _pair(_adam_ours, _adam_plain)),
    OpCase(
        "adam_step-clipped",
        (*_STATE, "grads"),
        (8, 0),
        _STATE,
        _pair(_clipped_adam_ours, _clipped_adam_plain),
        tolerance=1e-4,
    ),
    OpCase(
        "rmsprop_step",
        ("params", "grads", "average_sq"),
        (5, 0),
        ("params", "average_sq"),
        _pair(_rmsprop_ours, _rmsprop_plain),
    ),
    OpCase(
        "reptile_interpolate",
        ("adapted",),
        (1, 2),
        ("initial",),
        _pair(_interpolate_ours, _interpolate_plain),
        buffers=("initial",),
    ),
    OpCase(
        "reptile_gradient",
        ("adapted",),
        (1, 2),
        ("gradient",),
        _pair(_gradient_ours, _gradient_plain),
        buffers=("initial", "gradient"),
    ),
    OpCase("meta_adam_step", ("adapted",), (1, 6), _STATE, _META_ADAM, buffers=_STATE),
    OpCase("meta_adam_step-4", ("adapted",), (1, 6), _STATE, _META_ADAM, buffers=_STATE, tasks=4),
    OpCase("clip_grad_norm", ("grads",), (3, 0), ("grads",), _pair(_clip_ours, _clip_plain), tolerance=1e-4),
    OpCase("ema_update", ("average", "params"), (3, 0), ("average",), _pair(_ema_ours, _ema_plain)),
)


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()
