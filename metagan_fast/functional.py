"""Fused optimizer and meta-learning updates over flat buffers: one pass over memory each.

**Buffers** are `[numel]`, or `[tasks, numel]` with one row a task, in float32, bfloat16 or float64; all
buffers of a call share shape, dtype and device. bfloat16 is storage: arithmetic is float32, rounded once at
the end. float32 and float64 compute in their own precision. Rows may be any distance apart; inputs whose
elements are not adjacent are copied first. Zero padding (see `metagan_fast.flat`) stays zero.

**Learning rates** are a number, a 0-dim tensor, or a tensor: `[tasks]` or `[tasks, 1]` (one a task),
`[numel]` or `[tasks, numel]` (one an element), and with `layout=` `[slots]` or `[tasks, slots]` (one a
parameter tensor, in the order of `layout.slots`). Tensors are not checked for sign.

**Results.** A function returns new tensors; its twin with a trailing underscore overwrites the tensors it
names and returns those. A twin refuses tensors that require grad while grad mode is on, memory that overlaps,
and `torch.func` transforms. On every backend, instruction set and number of threads the result has the bits
of `metagan_fast.ops.reference`, except for `clip_grad_norm` and steps with `max_norm`. A step with `max_norm` has
the bits of the same backend's `clip_grad_norm` followed by the step; Triton saves a launch: one for rows of at most
8192 elements (two with `zero_grads`), two for longer ones.

**Derivatives.** The functions (not the twins) can be differentiated to any order by every tensor argument,
learning rates included, under autograd, `torch.func` (grad, vmap, jvp and their compositions) and
torch.compile. `sgd_step` and `adam_step` keep the fused kernel then; the others, and everything under
torch.compile, become plain PyTorch. The derivative of a square root at 0 is defined as 0, as in the library
`higher`.

`use_backend("native" | "triton" | "cuda" | "reference")` is a context manager that chooses the backend.

Example:
    >>> import torch
    >>> from metagan_fast import functional
    >>> params, grads = torch.zeros(2, 3), torch.ones(2, 3)  # two tasks
    >>> functional.sgd_step(params, grads, lr=torch.tensor([0.5, 1.0])).tolist()  # a learning rate a task
    [[-0.5, -0.5, -0.5], [-1.0, -1.0, -1.0]]
    >>> functional.sgd_step_(params, grads, lr=0.5) is params  # in place
    True
    >>> with functional.use_backend("reference"):
    ...     clipped, norms = functional.clip_grad_norm(torch.tensor([3.0, 4.0]), max_norm=1.0)
    >>> round(norms.item(), 4)
    5.0
"""

from __future__ import annotations

from .ops._dispatch import use_backend
from .ops.adam_step import adam_step, adam_step_
from .ops.clip_grad_norm import clip_grad_norm, clip_grad_norm_
from .ops.ema_update import ema_update, ema_update_
from .ops.meta_adam_step import meta_adam_step, meta_adam_step_
from .ops.reptile_gradient import reptile_gradient, reptile_gradient_
from .ops.reptile_interpolate import reptile_interpolate, reptile_interpolate_
from .ops.rmsprop_step import rmsprop_step, rmsprop_step_
from .ops.sgd_step import sgd_step, sgd_step_

__all__ = [
    "adam_step",
    "adam_step_",
    "clip_grad_norm",
    "clip_grad_norm_",
    "ema_update",
    "ema_update_",
    "meta_adam_step",
    "meta_adam_step_",
    "reptile_gradient",
    "reptile_gradient_",
    "reptile_interpolate",
    "reptile_interpolate_",
    "rmsprop_step",
    "rmsprop_step_",
    "sgd_step",
    "sgd_step_",
    "use_backend",
]
