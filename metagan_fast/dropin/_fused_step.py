"""Differentiable optimizer step as a single autograd node, from lists of tensors to lists of tensors.

The forward is the fused op; the backward calls the op's own `autograd.Function`, which holds the formulas. The node
saves the copies: parameters that lie in one buffer are read in place, and SGD saves nothing for the backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import _native, functional
from ..ops import adam_step, sgd_step
from ..ops._op import in_transform, is_traced
from ._flat_module import Layout, aliases, join, split


@dataclass(frozen=True)
class FusedOp:
    """A fused op that can be a single autograd node.

    Attributes:
        forward: the op: (params, grads, state buffers, lr, options) -> (params, *state).
        backward: the node's backward: (context, gradients by the results) -> gradients by params, grads, the state
            buffers and lr.
        state: names of the state buffers.
        keeps_inputs: True if the backward needs parameters and gradients even if lr is a number.
    """

    forward: Callable[..., Any]
    backward: Callable[..., tuple[Any, ...]]
    state: tuple[str, ...]
    keeps_inputs: bool


def _sgd_forward(params: Tensor, grads: Tensor, state: Sequence[Tensor], lr: Any, options: Mapping[str, Any]) -> Any:
    result = functional.sgd_step(params, grads, lr, momentum_buffer=state[0] if state else None, **options)
    return result if isinstance(result, tuple) else (result,)


def _sgd_backward(context: Any, *d_results: Tensor) -> tuple[Any, ...]:
    d_params, d_grads, d_lr, d_buffer, _ = sgd_step._SGDStep.backward(context, *d_results)
    return d_params, d_grads, (d_buffer,), d_lr


def _adam_forward(params: Tensor, grads: Tensor, state: Sequence[Tensor], lr: Any, options: Mapping[str, Any]) -> Any:
    m, v = state
    return functional.adam_step(params, grads, m, v, lr, **options)


def _adam_backward(context: Any, *d_results: Tensor) -> tuple[Any, ...]:
    d_params, d_grads, d_m, d_v, d_lr, _ = adam_step._AdamStep.backward(context, *d_results)
    return d_params, d_grads, (d_m, d_v), d_lr


SGD = FusedOp(_sgd_forward, _sgd_backward, ("momentum_buffer",), keeps_inputs=False)
ADAM = FusedOp(_adam_forward, _adam_backward, ("exp_avg", "exp_avg_sq"), keeps_inputs=True)


def is_fusible(params: Sequence[Tensor], lr: Any, numbers: Mapping[str, Any]) -> bool:
    """Return whether a step can be one node: grad is enabled and no option but the learning rate is a tensor."""
    return (
        torch.is_grad_enabled()
        and params[0].dtype in _native.DTYPES
        and not (isinstance(lr, Tensor) and lr.ndim > 0)
        and not any(isinstance(x, (Tensor, tuple, list)) and _has_tensor(x) for x in numbers.values())
        and not in_transform()
        and not is_traced()
    )


def fused_step(
    op: FusedOp,
    layout: Layout,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: Sequence[Tensor],
    lr: Any,
    options: Mapping[str, Any],
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Take one step; return the new parameters, in the memory of one buffer, and the new state.

    Args:
        op: the fused op.
        layout: the parameters' layout.
        params, grads: parameters and gradients in the layout's order.
        state: flat buffers in the order of `op.state`; empty for SGD without a momentum buffer.
        lr: learning rate, a number or a tensor without dimensions.
        options: the op's other hyper-parameters.
    """
    results = _FusedStep.apply(op, layout, options, lr, *params, *grads, *state)
    count = len(layout.slots)
    return list(results[:count]), dict(zip(op.state, results[count:], strict=False))


def _has_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or any(isinstance(x, Tensor) for x in value)


class _FusedStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, op: FusedOp, layout: Layout, options: Mapping[str, Any], lr: Any, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        count = len(layout.slots)
        params, grads, state = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        flat, *new_state = op.forward(join(layout, params), layout.concatenate(grads), state, lr, options)
        ctx.set_materialize_grads(False)
        ctx.op, ctx.layout, ctx.options, ctx.lr = op, layout, options, lr
        ctx.states, ctx.kind = len(state), (flat.dtype, flat.device)
        ctx.by_lr = isinstance(lr, Tensor) and ctx.needs_input_grad[3]
        ctx.keeps_inputs = op.keeps_inputs or ctx.by_lr
        inputs = (*params, *grads) if ctx.keeps_inputs else ()
        if isinstance(lr, Tensor):
            inputs = (lr, *inputs)
        ctx.save_for_backward(*inputs, *(new_state if ctx.keeps_inputs else ()))
        return *aliases(layout, flat), *new_state

    @staticmethod
    def backward(ctx: Any, *d_results: Tensor | None) -> tuple[Any, ...]:
        op, layout, saved = ctx.op, ctx.layout, list(ctx.saved_tensors)
        count = len(layout.slots)
        dtype, device = ctx.kind
        if all(d is None for d in d_results):
            return (None,) * (4 + 2 * count + ctx.states)
        if op is SGD and not (ctx.by_lr or ctx.options["momentum"] or ctx.options["weight_decay"]):
            return None, None, None, None, *d_results, *_scaled(d_results, ctx.lr)
        lr = saved.pop(0) if isinstance(ctx.lr, Tensor) else torch.full((), ctx.lr, dtype=torch.float64, device=device)

        present = [
            torch.zeros(slot.shape, dtype=dtype, device=device) if d is None else d
            for slot, d in zip(layout.slots, d_results[:count], strict=True)
        ]
        d_flat = layout.concatenate(present)
        d_state = [torch.zeros_like(d_flat) if d is None else d for d in d_results[count:]]
        inputs = [d_flat, d_flat]  # placeholders of the right dtype, not read
        if ctx.keeps_inputs:
            inputs = [join(layout, saved[:count]), join(layout, saved[count : 2 * count]), *saved[2 * count :]]
        context = SimpleNamespace(
            saved_tensors=tuple(_row(x) for x in (*inputs[:2], lr, *inputs[2:])),
            options=ctx.options,
            needs_input_grad=(True, True, ctx.by_lr, True, ctx.by_lr),
        )
        d_params, d_grads, d_old_state, d_lr = op.backward(context, _row(d_flat), *(_row(d) for d in d_state))
        return (
            None,
            None,
            None,
            d_lr.reshape(()) if ctx.by_lr else None,
            *split(layout, d_params[0]),
            *split(layout, d_grads[0]),
            *(d[0] for d in d_old_state[: ctx.states]),
        )


def _scaled(d_params: Sequence[Tensor | None], lr: float | Tensor) -> list[Tensor | None]:
    """Return plain SGD's gradients by its gradients, `-lr d_params`; None for unused parameters."""
    products = iter(torch._foreach_mul([d for d in d_params if d is not None], -lr))
    return [None if d is None else next(products) for d in d_params]


def _row(x: Tensor) -> Tensor:
    return x.reshape(1, -1)
