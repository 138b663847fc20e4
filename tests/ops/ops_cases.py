"""The fused ops as data: every op in every mode, with arguments of any shape, dtype and rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metagan_fast import functional
from metagan_fast.ops.reference import inverse_bias_corrections

Arguments = dict[str, Any]

LR_FORMS = ("number", "scalar", "task", "task-column", "element", "task-element", "shared-element")
MARGIN = 3  # canary elements around each row
CANARY = 1234.0


@dataclass(frozen=True)
class Case:
    """An op in one mode: its buffers by name; overwritten ones are in the order of the results."""

    op: str
    buffers: tuple[str, ...]
    written: tuple[str, ...]
    options: Arguments = field(default_factory=dict)
    combines_tasks: bool = False
    weighted: bool = False
    has_lr: bool = False

    @property
    def function(self) -> Callable[..., Any]:
        return getattr(functional, self.op)

    @property
    def twin(self) -> Callable[..., Any]:
        return getattr(functional, self.op + "_")

    def rounds_exactly(self, dtype: torch.dtype) -> bool:
        """Tell whether the reference is correctly rounded: `torch.sqrt` is not quite, in float64 on a CPU."""
        return dtype != torch.float64 or self.op not in ("adam_step", "meta_adam_step", "rmsprop_step")

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.options.items()] + ["weighted"] * self.weighted
        return "-".join([self.op, *options])


def _sgd(**options: Any) -> Case:
    state = ("momentum_buffer",) if options.get("momentum") else ()
    return Case("sgd_step", ("params", "grads", *state), ("params", *state), options, has_lr=True)


def _adam(**options: Any) -> Case:
    buffers = ("params", "grads", "exp_avg", "exp_avg_sq")
    written = ("params", "exp_avg", "exp_avg_sq")
    return Case("adam_step", buffers, written, {"step": 3, **options}, has_lr=True)


def _rmsprop(**options: Any) -> Case:
    state = ("momentum_buffer",) if options.get("momentum") else ()
    state += ("grad_avg",) if options.get("centered") else ()
    written = ("params", "square_avg", *state)
    return Case("rmsprop_step", ("params", "grads", "square_avg", *state), written, options, has_lr=True)


def _meta_adam(weighted: bool = False, **options: Any) -> Case:
    written = ("params", "exp_avg", "exp_avg_sq")
    options = {"step": 2, **options}
    return Case("meta_adam_step", written, written, options, combines_tasks=True, weighted=weighted, has_lr=True)


def _reptile(op: str, written: str, weighted: bool, **options: Any) -> Case:
    return Case(op, ("initial",), (written,), options, combines_tasks=True, weighted=weighted)


CASES = (
    _sgd(),
    _sgd(weight_decay=0.1),
    _sgd(momentum=0.9),
    _sgd(momentum=0.9, dampening=0.3, weight_decay=0.1),
    _sgd(momentum=0.9, nesterov=True, weight_decay=0.1),
    _adam(),
    _adam(weight_decay=0.1),
    _adam(weight_decay=0.1, decoupled=True),
    _adam(betas=(0.5, 0.9), eps=1e-3, eps_root=1e-2, step=1000),
    _rmsprop(),
    _rmsprop(weight_decay=0.1, momentum=0.9),
    _rmsprop(centered=True),
    _rmsprop(alpha=0.5, eps=1e-3, momentum=0.9, centered=True),
    _reptile("reptile_interpolate", "initial", False, step_size=0.3),
    _reptile("reptile_interpolate", "initial", True, step_size=0.3),
    _reptile("reptile_gradient", "gradient", False),
    _reptile("reptile_gradient", "gradient", True),
    _meta_adam(),
    _meta_adam(weight_decay=0.1),
    _meta_adam(weight_decay=0.1, decoupled=True, weighted=True),
    Case("ema_update", ("average", "params"), ("average",), {"decay": 0.99}),
)
BY_NAME = {str(case): case for case in CASES}
NUMBERED = tuple(case for case in CASES if case.op in ("adam_step", "reptile_interpolate"))
"""Cases of ops that also take numbers as tensors, which a replayed launch reads again."""
CLIP_CASES = (
    Case("clip_grad_norm", ("grads",), ("grads",), {"max_norm": 0.5}),
    Case("clip_grad_norm", ("grads",), ("grads",), {"max_norm": 1e9}),
)


def make(
    case: Case,
    rows: int | None,
    numel: int,
    dtype: torch.dtype = torch.float64,
    *,
    lr_form: str = "number",
    tasks: int = 3,
    margin: int = 0,
) -> Arguments:
    """Return arguments for `case.function`: random buffers, `margin` canaries on both sides of each row."""

    def buffer(*shape: int) -> Tensor:
        whole = torch.full((*shape[:-1], shape[-1] + 2 * margin), CANARY, dtype=dtype)
        inner = whole[..., margin : margin + shape[-1]]
        inner.copy_(torch.randn(shape, dtype=torch.float64))
        return inner

    shape = (numel,) if rows is None or case.combines_tasks else (rows, numel)
    arguments: Arguments = {}
    for name in case.buffers:
        arguments[name] = buffer(*shape)
        if name == "exp_avg_sq":
            arguments[name].abs_()
        if name == "square_avg":  # a variance: at least the square of any mean
            arguments[name].abs_().add_(9)
    if case.combines_tasks:
        arguments["adapted"] = buffer(tasks, numel)
        arguments["weights"] = torch.rand(tasks, dtype=dtype) if case.weighted else None
    if case.has_lr:
        arguments["lr"] = learning_rate(lr_form, shape, dtype)
    return {**arguments, **case.options}


def learning_rate(form: str, shape: tuple[int, ...], dtype: torch.dtype) -> float | Tensor:
    """Return a learning rate of one of LR_FORMS for buffers of a shape; a single row has no per-task rate."""
    rows, numel = (shape[0], shape[-1]) if len(shape) == 2 else (None, shape[-1])
    forms: dict[str, tuple[int, ...]] = {"scalar": (), "element": (numel,)}
    if rows is not None:
        forms |= {"task-column": (rows, 1), "task-element": (rows, numel), "shared-element": (1, numel)}
        if rows != numel:
            forms["task"] = (rows,)
        else:
            del forms["element"]
    return 0.1 if form not in forms else torch.rand(forms[form], dtype=dtype)


def in_tensors(case: Case, arguments: Arguments) -> Arguments:
    """Return arguments of one of NUMBERED with their numbers in tensors, side by side in one float64 buffer."""
    if case.op == "reptile_interpolate":
        return {**arguments, "step_size": torch.tensor([torch.nan, arguments["step_size"]], dtype=torch.float64)[1]}
    corrections = inverse_bias_corrections(arguments["step"], arguments.get("betas", (0.9, 0.999)))
    numbers = torch.tensor([arguments["lr"], *corrections], dtype=torch.float64)
    return {**arguments, "lr": numbers[0], "step": numbers[1:]}


def clone(arguments: Arguments) -> Arguments:
    """Return a copy whose tensors are cloned with their strides and margins."""

    def copy(x: Any) -> Any:
        if not isinstance(x, Tensor) or x._base is None:
            return x.clone() if isinstance(x, Tensor) else x
        return x._base.clone().as_strided(x.shape, x.stride(), x.storage_offset())

    return {name: copy(x) for name, x in arguments.items()}


def call(function: Callable[..., Any], arguments: Arguments) -> tuple[Tensor, ...]:
    """Return the results as a tuple."""
    results = function(**arguments)
    return results if isinstance(results, tuple) else (results,)


def bits(x: Tensor) -> Tensor:
    """Return the bits as integers, NaNs made alike."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return torch.where(x.isnan(), torch.full_like(x, torch.nan), x).contiguous().view(integers)


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    """Tell whether two tensors are equal to the bit, signs of zeros included."""
    return (
        actual.shape == expected.shape and actual.dtype == expected.dtype and torch.equal(bits(actual), bits(expected))
    )
