"""Argument checks of the ops; every error says in one line what was expected, what came and what to do.

`op` is the name of the public function in the error. Checks of `options`, a call's keyword arguments, convert the
numbers that they name in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _native
from .._utils import coerce
from ._op import in_transform, is_traced

if TYPE_CHECKING:
    from ..flat import FlatLayout


def buffers(op: str, **tensors: Tensor | None) -> None:
    """Check that the first is `[numel]` or `[tasks, numel]` in a supported dtype, and that the rest match."""
    (name, first), *others = tensors.items()
    if not isinstance(first, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(first).__name__}")
    shape, dtype, device = first.shape, first.dtype, first.device
    if len(shape) not in (1, 2):
        raise ValueError(f"{op}: {name} must be [numel] or [tasks, numel], got {list(shape)}; see FlatLayout.flatten")
    if dtype not in _native.DTYPES:
        raise ValueError(f"{op}: {name} must be float32, bfloat16 or float64, got {dtype}; convert it")
    for other_name, x in others:
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: {other_name} must be a tensor, got {type(x).__name__}")
        if x.shape != shape:
            raise ValueError(f"{op}: {other_name} must have the shape {list(shape)} of {name}, got {list(x.shape)}")
        _same_kind(op, other_name, x, name, dtype, device)


def tasks(op: str, name: str, initial: Tensor, adapted: Tensor, weights: Tensor | None) -> None:
    """Check one row `initial [numel]` against `adapted [tasks, numel]` and `weights [tasks]`."""
    buffers(op, **{name: initial})
    if initial.ndim != 1:
        raise ValueError(f"{op}: {name} must be [numel], got {list(initial.shape)}")
    if not isinstance(adapted, Tensor) or adapted.ndim != 2 or adapted.shape[1:] != initial.shape:
        got = str(list(adapted.shape)) if isinstance(adapted, Tensor) else type(adapted).__name__
        raise ValueError(f"{op}: adapted must be [tasks, {initial.shape[0]}], one row a task, got {got}")
    if adapted.shape[0] == 0:
        raise ValueError(f"{op}: adapted has no tasks; expected at least one row")
    _same_kind(op, "adapted", adapted, name, initial.dtype, initial.device)
    if weights is None:
        return
    if not isinstance(weights, Tensor) or weights.shape != adapted.shape[:1] or not weights.is_floating_point():
        got = f"{weights.dtype} {list(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"{op}: weights must be a floating-point tensor [{adapted.shape[0]}], one a task, got {got}")
    if weights.device != initial.device:
        raise ValueError(f"{op}: weights must be on {initial.device} as {name}, got {weights.device}")


def learning_rate(op: str, lr: float | Tensor, params: Tensor, layout: FlatLayout | None) -> float | Tensor:
    """Return a learning rate that broadcasts against `params`, or with `layout` against `[tasks, slots]`."""
    if not isinstance(lr, Tensor):
        lr = _non_negative(op, "lr", lr)
        if layout is not None:
            _fits_layout(op, params, layout)
        return lr
    if not lr.is_floating_point():
        raise ValueError(f"{op}: lr must be a floating-point tensor, got {lr.dtype}")
    if lr.device != params.device and (lr.ndim > 0 or lr.device.type != "cpu"):
        raise ValueError(f"{op}: lr must be on {params.device} as the parameters, got {lr.device}; move it")
    rows, numel = params.shape[:-1], params.shape[-1]
    shape = lr.shape
    if layout is not None:
        _fits_layout(op, params, layout)
        slots = len(layout.slots)
        if shape not in ((), (slots,), (*rows, slots)):
            expected = f"[{slots}]" + "".join(f" or [{tasks}, {slots}]" for tasks in rows)
            raise ValueError(f"{op}: with layout= lr must be one value a tensor, {expected}, got {list(shape)}")
        return lr
    if len(shape) == 1 and rows and shape[0] == rows[0]:
        if shape[0] == numel:
            raise ValueError(
                f"{op}: lr {list(shape)} could be one value a task or one an element; pass [{numel}, 1] or [1, {numel}]"
            )
        return lr.unsqueeze(-1)
    if shape not in ((), (numel,), (1,)) and not (
        rows and len(shape) == 2 and all(size in (1, full) for size, full in zip(shape, params.shape, strict=True))
    ):
        forms = f"[{numel}]" + "".join(f", [{tasks}], [{tasks}, 1] or [{tasks}, {numel}]" for tasks in rows)
        raise ValueError(f"{op}: lr must be a number, a 0-dim tensor, or {forms}, got {list(shape)}")
    return lr


def number(op: str, name: str, value: float) -> float:
    """Return a Python, NumPy or PyTorch number as a float."""
    if type(value) is float or type(value) is int:
        return value
    try:
        return coerce.real(name, value)
    except ValueError as error:
        raise ValueError(f"{op}: {error}") from None


def non_negative(op: str, options: dict[str, Any], *names: str) -> None:
    """Convert options to numbers that are finite and not negative."""
    for name in names:
        options[name] = _non_negative(op, name, options[name])


def below_one(op: str, options: dict[str, Any], *names: str) -> None:
    """Convert options to numbers in [0, 1)."""
    for name in names:
        options[name] = _below_one(op, name, options[name])


def positive(op: str, options: dict[str, Any], *names: str) -> None:
    """Convert options to numbers that are finite and above 0."""
    for name in names:
        options[name] = value = number(op, name, options[name])
        if not 0 < value < math.inf:
            raise ValueError(f"{op}: {name} must be a finite number above 0, got {value}")


def max_norm(op: str, options: dict[str, Any]) -> None:
    """Convert the norm to which gradients are clipped, None for no clipping."""
    if options["max_norm"] is not None:
        non_negative(op, options, "max_norm")


def adam(op: str, options: dict[str, Any], device: torch.device) -> None:
    """Convert the numbers of Adam; `step` may be inverse bias corrections, two in a tensor."""
    step = options["step"]
    if isinstance(step, Tensor) and (step.ndim > 0 or step.is_floating_point()):
        corrections(op, step, device)
    else:
        options["step"] = step_number(op, step)
    beta1, beta2 = options["betas"]
    options["betas"] = _below_one(op, "beta1", beta1), _below_one(op, "beta2", beta2)
    non_negative(op, options, *(name for name in ("eps", "eps_root", "weight_decay") if name in options))
    if options["eps"] == 0 and options.get("eps_root", 0) == 0:  # padding, among others, would become 0 / 0
        raise ValueError(f"{op}: eps and eps_root are both 0, and elements without a gradient would become NaN")


def step_number(op: str, step: int | Tensor) -> int:
    """Return the number of a step, from 1."""
    if type(step) is not int:
        try:
            step = coerce.count("step", step)
        except ValueError as error:
            raise ValueError(f"{op}: {error}") from None
    if step < 1:
        raise ValueError(f"{op}: step counts from 1, got {step}; pass the number of this step")
    return step


def corrections(op: str, step: Tensor, device: torch.device) -> None:
    """Check Adam's inverse bias corrections in a tensor."""
    if (step.shape, step.dtype, step.device) != ((2,), torch.float64, device) or step.requires_grad:
        raise ValueError(
            f"{op}: step must be a number, or two inverse bias corrections in float64 on {device} that require no "
            f"grad; got {list(step.shape)}, {step.dtype} on {step.device}, requires_grad={step.requires_grad}"
        )


def step_size(op: str, value: float | Tensor) -> float | Tensor:
    """Return the step size of an interpolation, which may be negative."""
    if isinstance(value, Tensor):
        if value.ndim != 0:
            raise ValueError(f"{op}: step_size must be a number or a 0-dim tensor, got {list(value.shape)}")
        return value
    value = number(op, "step_size", value)
    if not math.isfinite(value):
        raise ValueError(f"{op}: step_size must be finite, got {value}")
    return value


def targets(op: str, written: Mapping[str, Tensor | None], **read: object) -> tuple[Tensor, ...] | None:
    """Return None for a functional op, and for an in-place one the tensors to write.

    Checks that they need no derivative and share no memory.
    """
    if not op.endswith("_"):
        return None
    outputs = {}
    for name, x in written.items():
        if x is None:
            raise ValueError(f"{op}: {name} is needed to write to; pass zeros before the first step")
        outputs[name] = x
    if not is_traced():  # a tracer turns the op into a functional one
        _writable(op, outputs, {name: x for name, x in read.items() if isinstance(x, Tensor)})
    return tuple(outputs.values())


def step_targets(
    op: str,
    written: Mapping[str, Tensor | None],
    grads: Tensor,
    lr: float | Tensor,
    zero_grads: bool,
) -> tuple[Tensor, ...] | None:
    """Return the `targets` of a step; `zero_grads` adds the gradients, which are then written too."""
    if not zero_grads:
        return targets(op, written, grads=grads, lr=lr)
    out = targets(op, {**written, "grads": grads}, lr=lr)
    return out and out[:-1]


def _writable(op: str, written: dict[str, Tensor], inputs: dict[str, Tensor]) -> None:
    functional = op.removesuffix("_")
    if in_transform():
        raise RuntimeError(f"{op}: cannot write in place under torch.func or forward-mode AD; use {functional}")
    if torch.is_grad_enabled():
        for name, x in (*written.items(), *inputs.items()):
            if x.requires_grad:
                raise RuntimeError(
                    f"{op}: {name} requires grad, and in-place ops have no derivative; "
                    f"call it under torch.no_grad(), or use {functional}"
                )
    for name, x in written.items():
        shape, strides = x.shape, x.stride()
        if strides[-1] != 1 and shape[-1] > 1:
            raise ValueError(f"{op}: elements of {name} must be adjacent, got strides {strides}; make it contiguous")
        if len(shape) == 2 and strides[0] < shape[1] and shape[0] > 1:
            raise ValueError(f"{op}: rows of {name} overlap in memory, got strides {strides}; clone it")
    if pair := _native.find_overlap(written, inputs):
        raise ValueError(f"{op}: {pair[0]} and {pair[1]} share memory; clone one of them")


def _non_negative(op: str, name: str, value: float) -> float:
    value = number(op, name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{op}: {name} must be a finite number of at least 0, got {value}")
    return value


def _below_one(op: str, name: str, value: float) -> float:
    value = number(op, name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{op}: {name} must be in [0, 1), got {value}")
    return value


def _same_kind(op: str, name: str, x: Tensor, like: str, dtype: torch.dtype, device: torch.device) -> None:
    if x.dtype != dtype:
        raise ValueError(f"{op}: {name} must be {dtype} as {like}, got {x.dtype}; convert one of them")
    if x.device != device:
        raise ValueError(f"{op}: {name} must be on {device} as {like}, got {x.device}; move one of them")


def _fits_layout(op: str, params: Tensor, layout: FlatLayout) -> None:
    if params.shape[-1] != layout.numel:
        raise ValueError(
            f"{op}: expected parameters of {layout.numel} elements as layout, got {params.shape[-1]}; "
            "is it another module's layout?"
        )
