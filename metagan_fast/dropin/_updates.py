"""Optimizer update rules over flat buffers, with hyper-parameters that may be tensors.

Rules such as `flat_sgd` step one buffer, rules such as `sgd` lists of tensors. They call the fused ops if every
hyper-parameter but the learning rate is a number; otherwise, and for rules without a fused op (Adadelta, amsgrad), they
are plain PyTorch over the whole buffer, differentiable by every hyper-parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native, functional
from ..ops import reference
from . import _fused_step
from ._flat_module import Layout, Rule, State, over_buffers


def flat_sgd(
    params: Tensor, grads: Tensor, state: Mapping[str, Tensor], step: int, options: Mapping[str, Any]
) -> tuple[Tensor, State]:
    """Apply `torch.optim.SGD`; the first step is not dampened.

    State: `momentum_buffer` with momentum.
    """
    numbers = {name: options[name] for name in ("momentum", "dampening", "weight_decay")}
    step_op = _select_op("sgd_step", params, numbers)
    results = step_op(
        params,
        _signed(grads, options),
        _rate(options),
        momentum_buffer=state.get("momentum_buffer"),
        nesterov=options["nesterov"],
        **numbers,
    )
    new_params, *buffer = results if isinstance(results, tuple) else (results,)
    return new_params, {"momentum_buffer": buffer[0]} if buffer else {}


def flat_adam(
    params: Tensor, grads: Tensor, state: Mapping[str, Tensor], step: int, options: Mapping[str, Any]
) -> tuple[Tensor, State]:
    """Apply `torch.optim.Adam`, or AdamW with `decoupled`; `eps_root` as in `adam_step`.

    State: `exp_avg`, `exp_avg_sq`, and `max_exp_avg_sq` with amsgrad.
    """
    grads = _signed(grads, options)
    zeros = torch.zeros_like(params, requires_grad=False)
    m, v = state.get("exp_avg", zeros), state.get("exp_avg_sq", zeros)
    numbers = {name: options[name] for name in ("betas", "eps", "weight_decay")}
    decoupled, eps_root = options.get("decoupled", False), options.get("eps_root", 0.0)
    if options.get("amsgrad"):
        return _amsgrad(params, grads, m, v, state.get("max_exp_avg_sq", zeros), step, options)
    results = _select_op("adam_step", params, numbers)(
        params, grads, m, v, _rate(options), step=step, decoupled=decoupled, eps_root=eps_root, **numbers
    )
    return results[0], dict(zip(("exp_avg", "exp_avg_sq"), results[1:], strict=True))


def flat_rmsprop(
    params: Tensor, grads: Tensor, state: Mapping[str, Tensor], step: int, options: Mapping[str, Any]
) -> tuple[Tensor, State]:
    """Apply `torch.optim.RMSprop`, optionally with Nesterov momentum.

    State: `square_avg` (`initial_scale` before the first step), `momentum_buffer` with momentum, `grad_avg` if
    `centered`.
    """
    numbers = {name: options[name] for name in ("alpha", "eps", "weight_decay")}
    square_avg = state.get("square_avg")
    if square_avg is None:
        square_avg = torch.full_like(params, options.get("initial_scale", 0.0), requires_grad=False)
    momentum, centered, rate = options["momentum"], options["centered"], _rate(options)
    step_op = _select_op("rmsprop_step", params, {**numbers, "momentum": momentum})
    given = {"centered": centered, "grad_avg": state.get("grad_avg"), **numbers}
    grads = _signed(grads, options)
    if options.get("nesterov"):
        if numbers["weight_decay"] != 0:
            grads, given["weight_decay"] = grads + numbers["weight_decay"] * params, 0.0
        moved, square_avg, *rest = step_op(torch.zeros_like(params), grads, square_avg, 1.0, **given)
        nesterov = {"momentum": momentum, "dampening": 0.0, "weight_decay": 0.0, "nesterov": True, "lr": rate}
        new_params, buffer = flat_sgd(params, -moved, state, step, nesterov)
        return new_params, {"square_avg": square_avg, **buffer, **({"grad_avg": rest[0]} if centered else {})}
    results = step_op(
        params, grads, square_avg, rate, momentum=momentum, momentum_buffer=state.get("momentum_buffer"), **given
    )
    names = ["square_avg", *(["momentum_buffer"] if momentum != 0 else []), *(["grad_avg"] if centered else [])]
    return results[0], dict(zip(names, results[1:], strict=True))


def flat_adadelta(
    params: Tensor, grads: Tensor, state: Mapping[str, Tensor], step: int, options: Mapping[str, Any]
) -> tuple[Tensor, State]:
    """Apply `torch.optim.Adadelta`.

    State: `square_avg`, `acc_delta`. Source: Zeiler 2012, arXiv:1212.5701, algorithm 1.
    """
    grads, zeros = _decayed(params, grads, options), torch.zeros_like(params)
    rho, eps = options["rho"], options["eps"]
    acc_delta = state.get("acc_delta", zeros)
    square_avg = rho * state.get("square_avg", zeros) + (1 - rho) * (grads * grads)
    delta = reference.safe_sqrt(acc_delta + eps) / reference.safe_sqrt(square_avg + eps) * grads
    acc_delta = rho * acc_delta + (1 - rho) * (delta * delta)
    return params - _rate(options) * delta, {"square_avg": square_avg, "acc_delta": acc_delta}


def flat_adagrad(
    params: Tensor, grads: Tensor, state: Mapping[str, Tensor], step: int, options: Mapping[str, Any]
) -> tuple[Tensor, State]:
    """Apply `torch.optim.Adagrad`.

    State: `sum`. Source: Duchi et al. 2011, JMLR 12, with diagonal matrices.
    """
    grads, total = _decayed(params, grads, options), state.get("sum")
    if total is None:
        total = torch.zeros_like(params) + options.get("initial_accumulator_value", 0.0)
    total = total + grads * grads
    rate = _rate(options) / (1 + (step - 1) * options["lr_decay"])
    return params - rate * (grads / (reference.safe_sqrt(total) + options["eps"])), {"sum": total}


def flat_adamax(
    params: Tensor, grads: Tensor, state: Mapping[str, Tensor], step: int, options: Mapping[str, Any]
) -> tuple[Tensor, State]:
    """Apply `torch.optim.Adamax`.

    State: `exp_avg`, `exp_inf`. Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 2; `eps` is added to `|grads|`.
    """
    grads, zeros = _decayed(params, grads, options), torch.zeros_like(params)
    beta1, beta2 = options["betas"]
    exp_avg = beta1 * state.get("exp_avg", zeros) + (1 - beta1) * grads
    exp_inf = torch.maximum(beta2 * state.get("exp_inf", zeros), grads.abs() + options["eps"])
    rate = _rate(options) / (1 - beta1**step)
    return params - rate * (exp_avg / exp_inf), {"exp_avg": exp_avg, "exp_inf": exp_inf}


def flat_asgd(
    params: Tensor, grads: Tensor, state: Mapping[str, Tensor], step: int, options: Mapping[str, Any]
) -> tuple[Tensor, State]:
    """Apply `torch.optim.ASGD`.

    State: `ax`, the parameters' average; `eta`, the rate set by the previous step, so a new learning rate takes effect
    one step later. Source: Polyak & Juditsky 1992.
    """
    grads, rate, lambd = _decayed(params, grads, options), _rate(options), options["lambd"]
    eta = state["eta"] if "eta" in state else torch.zeros_like(params) + rate
    params = params * (1 - lambd * eta) - eta * grads
    weight = 1 / max(1, step - 1 - options["t0"])
    average = state.get("ax", params)
    average = params if weight == 1 else average + weight * (params - average)
    eta = torch.zeros_like(params) + rate / (1 + lambd * rate * step) ** options["alpha"]
    return params, {"ax": average, "eta": eta}


def flat_rprop(
    params: Tensor, grads: Tensor, state: Mapping[str, Tensor], step: int, options: Mapping[str, Any]
) -> tuple[Tensor, State]:
    """Apply `torch.optim.Rprop`; its derivative by the gradient is 0, since only the sign is used.

    State: `prev`, the previous gradient; `step_size`. Source: Riedmiller & Braun 1993.
    """
    grads, zeros = _signed(grads, options), torch.zeros_like(params)
    (shrink, grow), (smallest, largest) = options["etas"], options["step_sizes"]
    step_size = state["step_size"] if "step_size" in state else zeros + _rate(options)
    agreement = grads * state.get("prev", zeros)
    factor = torch.where(agreement < 0, shrink, torch.where(agreement > 0, grow, zeros + 1))
    step_size = (step_size * factor).clamp(min=smallest).clamp(max=largest)
    grads = torch.where(agreement < 0, 0.0, grads)  # the sign changed: skip one step
    return params - step_size * grads.sign(), {"prev": grads, "step_size": step_size}


rmsprop: Rule = over_buffers(flat_rmsprop)
adadelta: Rule = over_buffers(flat_adadelta)
adagrad: Rule = over_buffers(flat_adagrad)
adamax: Rule = over_buffers(flat_adamax)
asgd: Rule = over_buffers(flat_asgd)
rprop: Rule = over_buffers(flat_rprop)


def sgd(
    layout: Layout,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: Mapping[str, Tensor],
    step: int,
    options: Mapping[str, Any],
) -> tuple[list[Tensor], State]:
    """Apply `flat_sgd` to lists, as a single autograd node if possible."""
    numbers = {name: options[name] for name in ("momentum", "dampening", "weight_decay")}
    if options.get("maximize") or not _fused_step.is_fusible(params, rate := _rate(options), numbers):
        return over_buffers(flat_sgd)(layout, params, grads, state, step, options)
    buffers = [state["momentum_buffer"]] if numbers["momentum"] != 0 and "momentum_buffer" in state else []
    if not buffers:  # the first step is not dampened
        numbers["dampening"] = 0.0
    numbers["nesterov"] = options["nesterov"]
    return _fused_step.fused_step(_fused_step.SGD, layout, params, grads, buffers, rate, numbers)


def adam(
    layout: Layout,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: Mapping[str, Tensor],
    step: int,
    options: Mapping[str, Any],
) -> tuple[list[Tensor], State]:
    """Apply `flat_adam` to lists, as a single autograd node if possible."""
    numbers = {name: options[name] for name in ("betas", "eps", "weight_decay")}
    plain = options.get("amsgrad") or options.get("maximize")
    if plain or not _fused_step.is_fusible(params, rate := _rate(options), numbers):
        return over_buffers(flat_adam)(layout, params, grads, state, step, options)
    moments = [state[name] if name in state else _zeros(layout, params[0]) for name in ("exp_avg", "exp_avg_sq")]
    numbers.update(decoupled=options.get("decoupled", False), eps_root=options.get("eps_root", 0.0), step=step)
    return _fused_step.fused_step(_fused_step.ADAM, layout, params, grads, moments, rate, numbers)


def _zeros(layout: Layout, like: Tensor) -> Tensor:
    return torch.zeros(layout.numel, dtype=like.dtype, device=like.device)


def _amsgrad(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    largest: Tensor,
    step: int,
    options: Mapping[str, Any],
) -> tuple[Tensor, State]:
    """Apply AMSGrad (Reddi et al. 2018): the second moment's maximum is taken before bias correction, as in PyTorch."""
    beta1, beta2 = options["betas"]
    inverse_bias1, inverse_bias2 = reference.inverse_bias_corrections(step, options["betas"])
    rate, weight_decay = _rate(options), options["weight_decay"]
    if options.get("decoupled"):
        params = params - (rate * weight_decay) * params
    else:
        grads = grads + weight_decay * params
    exp_avg = beta1 * exp_avg + (1 - beta1) * grads
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (grads * grads)
    largest = torch.maximum(largest, exp_avg_sq)
    denominator = reference.safe_sqrt(largest * inverse_bias2 + options.get("eps_root", 0.0)) + options["eps"]
    params = params - rate * (exp_avg * inverse_bias1) / denominator
    return params, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "max_exp_avg_sq": largest}


def _select_op(op: str, params: Tensor, numbers: Mapping[str, Any]) -> Any:
    """Return the fused op if it supports the options and the dtype, else the reference op."""
    flat = [x for value in numbers.values() for x in (value if isinstance(value, (tuple, list)) else (value,))]
    fused = params.dtype in _native.DTYPES and not any(isinstance(x, Tensor) for x in flat)
    return getattr(functional if fused else reference, op)


def _rate(options: Mapping[str, Any]) -> Any:
    """Return the learning rate; a one-element tensor is reshaped to no dimensions."""
    rate = options["lr"]
    return rate.reshape(()) if isinstance(rate, Tensor) and rate.numel() == 1 else rate


def _signed(grads: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Return the gradient to descend: negated for `maximize`."""
    return -grads if options.get("maximize") else grads


def _decayed(params: Tensor, grads: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Return the gradient, negated for `maximize`, plus L2 weight decay."""
    grads, weight_decay = _signed(grads, options), options["weight_decay"]
    return grads + weight_decay * params if isinstance(weight_decay, Tensor) or weight_decay != 0 else grads
