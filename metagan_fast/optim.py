"""`SGD`, `Adam`, `AdamW` and `RMSprop` of `torch.optim`, with one native call a step.

Each subclasses torch's optimizer of the same name: same arguments, parameter groups, hooks and state, so checkpoints
move freely between the two. Only `step` differs: one call of the compiled extension updates all CPU tensors of a group
in float32, bfloat16 or float64, and its threads share the elements. bfloat16 is widened to float32, and each result is
rounded once.

Where no native call exists, torch's own function runs, which is logged once at level INFO: for other dtypes and
devices; sparse gradients; gradients or state whose memory layout differs from the parameter's or has gaps; subclasses
of `Tensor`; overlapping parameters; `differentiable` and `capturable`; hyperparameters that are tensors (except a CPU
learning rate that needs no gradient); gradients that `torch.amp.GradScaler` leaves to the optimizer to unscale;
torch.compile and `torch.func`; installations without the extension, and PyTorch without DLPack's C interface. `foreach`
and `fused` choose among torch's own functions and do not affect the native call.

Example:
    >>> import torch
    >>> from metagan_fast import optim
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = optim.Adam(model.parameters(), lr=0.1)
    >>> inputs = torch.randn(16, 4)
    >>> losses = []
    >>> for _ in range(20):
    ...     optimizer.zero_grad()
    ...     loss = model(inputs).square().mean()
    ...     loss.backward()
    ...     optimizer.step()
    ...     losses.append(loss.item())
    >>> losses[-1] < losses[0]
    True
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from . import _native
from ._utils.log import log_once
from .ops._op import in_transform, is_traced

if TYPE_CHECKING:
    from ._core import OptimizerBatch

__all__ = ["SGD", "Adam", "AdamW", "RMSprop"]

logger = logging.getLogger(__name__)

Group = dict[str, Any]


def __getattr__(name: str) -> Any:
    raise AttributeError(f"{__name__} has {', '.join(__all__)}, not {name!r}; for other names use torch.optim")


class _NativeStep(torch.optim.Optimizer):
    """Mixin with the `step` of all four optimizers; it precedes torch's class in the bases.

    A subclass names the state tensors that its native step reads (`_keys`), runs that step (`_native`), and runs
    torch's function over a group (`_torch`).
    """

    _counted = True  # whether the state has a "step"

    def _keys(self, group: Group) -> tuple[str | None, ...]:
        raise NotImplementedError

    def _native(self, batch: OptimizerBatch, group: Group, threads: int, lr: float) -> None:
        raise NotImplementedError

    def _torch(self, group: Group) -> None:
        raise NotImplementedError

    def _initialize(self, group: Group) -> None:
        """Create missing state of a group's parameters; raise torch's errors where it cannot be created."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        Args:
            closure: recomputes the loss and its gradients; called first, with gradients enabled.

        Returns:
            The value of `closure`, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            for group in self.param_groups:
                reason = self._obstacle(group)
                if reason:
                    log_once(logger, logging.INFO, f"{type(self).__name__}: torch's own step is used: {reason}")
                    self._torch(group)
                else:
                    self._step_group(group)
        return loss

    def _step_group(self, group: Group) -> None:
        """Update supported parameters by one native call, and the rest by torch."""
        keys, threads = self._keys(group), _native.threads()
        batch = _native.gather(group["params"], self.state, keys, self._counted)
        if batch.rest:  # first: it may raise, and nothing has changed yet
            self._initialize({**group, "params": batch.rest})
            batch = _native.gather(group["params"], self.state, keys, self._counted)
        if batch.rest:
            self._torch({**group, "params": batch.rest})
            self._log_rest(batch.rest[0])
        if batch.written:
            self._native(batch, group, threads, float(group["lr"]))
            torch.autograd.graph.increment_version(batch.written)

    def _obstacle(self, group: Group) -> str | None:
        """Return why no parameter of a group can be updated natively, or None."""
        for name in ("differentiable", "capturable"):
            if group.get(name):
                return f"{name}=True"
        for name, value in group.items():
            for number in value if name == "betas" else (value,):
                if isinstance(number, Tensor) and (name != "lr" or number.requires_grad or not number.is_cpu):
                    return f"{name} is a tensor that it may have to record"
        if getattr(self, "grad_scale", None) is not None or getattr(self, "found_inf", None) is not None:
            return "gradients are scaled (torch.amp.GradScaler)"
        if is_traced() or in_transform():
            return "it is traced or transformed"
        if torch.is_inference_mode_enabled():
            return "inference mode"
        available, reason = _native.can_gather()
        return None if available else reason

    def _log_rest(self, param: Tensor) -> None:
        grad = param.grad
        assert grad is not None
        log_once(
            logger,
            logging.INFO,
            f"{type(self).__name__}: torch's own step is used for some parameters, among them one of {param.dtype} on "
            f"{param.device} with a gradient of {grad.dtype}, {grad.layout}",
        )


class SGD(_NativeStep, torch.optim.SGD):
    """Update parameters by stochastic gradient descent, as `torch.optim.SGD` does: same arguments, state and errors.

    Numerics: `reference.sgd_step`; products and sums are rounded one by one in float32 (bfloat16: rounded once) or
    float64, torch's may be fused or in another order.
    """

    _counted = False

    def _keys(self, group: Group) -> tuple[str | None, ...]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def _initialize(self, group: Group) -> None:
        if group["momentum"] == 0 or group["dampening"] != 0:  # torch's first step is not dampened
            return
        for param in group["params"]:
            if param.grad.layout is torch.strided and self.state[param].get("momentum_buffer") is None:
                self.state[param]["momentum_buffer"] = torch.zeros_like(param.grad)

    def _native(self, batch: OptimizerBatch, group: Group, threads: int, lr: float) -> None:
        options = group["momentum"], group["dampening"], group["weight_decay"], group["nesterov"]
        batch.sgd_step(threads, group["maximize"], lr, options)

    def _torch(self, group: Group) -> None:
        params: list[Tensor] = []
        grads: list[Tensor] = []
        buffers: list[Tensor | None] = []
        has_sparse_grad = self._init_group(group, params, grads, buffers)
        sgd(
            params,
            grads,
            buffers,
            has_sparse_grad=has_sparse_grad,
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            **_options(group, "weight_decay momentum lr dampening nesterov maximize foreach fused"),
        )
        for param, buffer in zip(params, buffers, strict=False):  # without momentum there are none
            self.state[param]["momentum_buffer"] = buffer


class Adam(_NativeStep, torch.optim.Adam):
    """Update parameters by Adam, as `torch.optim.Adam` does: same arguments, state and errors.

    Numerics: `reference.adam_step`, with `amsgrad` on the running maximum of the second moment; bias corrections in
    float64, the rest as in `SGD`.
    """

    def _keys(self, group: Group) -> tuple[str | None, ...]:
        return "exp_avg", "exp_avg_sq", "max_exp_avg_sq" if group["amsgrad"] else None

    def _initialize(self, group: Group) -> None:
        self._init_group(group, [], [], [], [], [], [])

    def _native(self, batch: OptimizerBatch, group: Group, threads: int, lr: float) -> None:
        beta1, beta2 = group["betas"]
        corrections = (1.0, 1.0)  # replaced by those of each tensor's step
        decay = group["weight_decay"], group["decoupled_weight_decay"]
        batch.adam_step(threads, group["maximize"], lr, (beta1, beta2, *corrections, group["eps"], 0.0, *decay))

    def _torch(self, group: Group) -> None:
        _check_capture(self)
        params: list[Tensor] = []
        grads: list[Tensor] = []
        exp_avgs: list[Tensor] = []
        exp_avg_sqs: list[Tensor] = []
        max_exp_avg_sqs: list[Tensor] = []
        steps: list[Tensor] = []
        has_complex = self._init_group(group, params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps)
        beta1, beta2 = group["betas"]
        adam(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            max_exp_avg_sqs,
            steps,
            has_complex=has_complex,
            beta1=beta1,
            beta2=beta2,
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            **_options(group, "amsgrad lr weight_decay eps maximize foreach capturable differentiable fused"),
            **_options(group, "decoupled_weight_decay"),
        )


class AdamW(Adam, torch.optim.AdamW):
    """Update parameters by Adam with decoupled weight decay, as `torch.optim.AdamW` does; see `Adam`."""


class RMSprop(_NativeStep, torch.optim.RMSprop):
    """Update parameters by RMSprop, as `torch.optim.RMSprop` does: same arguments, state and errors.

    Numerics: `reference.rmsprop_step`. With `centered`, a variance that rounding leaves below zero counts as zero;
    torch's root of it is NaN.
    """

    def _keys(self, group: Group) -> tuple[str | None, ...]:
        return (
            "square_avg",
            "momentum_buffer" if group["momentum"] > 0 else None,
            "grad_avg" if group["centered"] else None,
        )

    def _initialize(self, group: Group) -> None:
        self._init_group(group, [], [], [], [], [], [])

    def _native(self, batch: OptimizerBatch, group: Group, threads: int, lr: float) -> None:
        options = group["alpha"], group["eps"], group["weight_decay"], group["momentum"]
        batch.rmsprop_step(threads, group["maximize"], lr, options)

    def _torch(self, group: Group) -> None:
        _check_capture(self)
        params: list[Tensor] = []
        grads: list[Tensor] = []
        square_avgs: list[Tensor] = []
        buffers: list[Tensor] = []
        grad_avgs: list[Tensor] = []
        steps: list[Tensor] = []
        has_complex = self._init_group(group, params, grads, square_avgs, buffers, grad_avgs, steps)
        rmsprop(
            params,
            grads,
            square_avgs,
            grad_avgs,
            buffers,
            steps,
            has_complex=has_complex,
            **_options(group, "lr alpha eps weight_decay momentum centered maximize foreach capturable differentiable"),
        )


def _options(group: Group, names: str) -> Group:
    return {name: group[name] for name in names.split()}


def _check_capture(optimizer: torch.optim.Optimizer) -> None:
    """Raise, as torch does, under graph capture unless all groups are `capturable`."""
    check = getattr(optimizer, "_accelerator_graph_capture_health_check", None)
    if check is None:  # its name in earlier versions
        check = optimizer._cuda_graph_capture_health_check
    check()
