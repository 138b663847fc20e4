"""`SGD`, `Adam`, `AdamW` and `RMSprop` of `torch.optim`, with one native call a step.

Each is a subclass of torch's optimizer of the same name: the same arguments, parameter groups, hooks and state, so
that checkpoints go from one to the other and back. What differs is `step`: all tensors of a group on a CPU in float32,
bfloat16 or float64 are updated by one call of the compiled extension, whose threads share the elements. bfloat16 is
widened to float32, and each result is rounded once.

Parameters, or steps, for which there is no native call are updated by torch's own function, which is logged once at
level INFO: other dtypes and devices, sparse gradients, tensors whose gradient or state lies otherwise in memory than
they do or has gaps, subclasses of `Tensor`, parameters that overlap; `differentiable`, `capturable`, tensors as
hyperparameters (but for a learning rate on a CPU that needs no gradient), gradients that `torch.amp.GradScaler` leaves
to the optimizer to unscale; torch.compile and `torch.func`; installations without the extension, and PyTorch before it
had DLPack's C interface. `foreach` and `fused` choose among torch's own functions and have no say in the native call.
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
from .ops._common import in_transform, is_traced

if TYPE_CHECKING:
    from ._core import OptimizerBatch

__all__ = ["SGD", "Adam", "AdamW", "RMSprop"]

logger = logging.getLogger(__name__)

Group = dict[str, Any]


def __getattr__(name: str) -> Any:
    raise AttributeError(f"{__name__} has {', '.join(__all__)}, not {name!r}; for other names use torch.optim")


class _NativeStep(torch.optim.Optimizer):
    """The step that the four have in common; in the order of inheritance before torch's class.

    A subclass says which tensors of the state its native step reads (`_keys`), runs it (`_native`), and runs torch's
    function (`_torch`) over a group.
    """

    _counted = True  # whether the state has a "step"

    def _keys(self, group: Group) -> tuple[str | None, ...]:
        raise NotImplementedError

    def _native(self, batch: OptimizerBatch, group: Group, threads: int, lr: float) -> None:
        raise NotImplementedError

    def _torch(self, group: Group) -> None:
        raise NotImplementedError

    def _initialize(self, group: Group) -> None:
        """Give a group's parameters the state that they lack; raise what torch raises where it cannot be."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        Args:
            closure: computes the loss and its gradients anew; called first, with gradients enabled.

        Returns:
            What `closure` returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            for group in self.param_groups:
                why_not = self._obstacle(group)
                if why_not:
                    log_once(logger, logging.INFO, f"{type(self).__name__}: torch's own step is used: {why_not}")
                    self._torch(group)
                else:
                    self._step_group(group)
        return loss

    def _step_group(self, group: Group) -> None:
        """Update what fits by one native call, and leave the rest to torch."""
        keys, threads = self._keys(group), _native.threads()
        batch = _native.gather(group["params"], self.state, keys, self._counted)
        if batch.rest:  # first of all: this may raise, as long as nothing has changed
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
        batch.sgd_step(
            threads,
            group["maximize"],
            lr,
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
        )

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

    Numerics: `reference.adam_step`, with the largest second moment so far in the place of the second moment if
    `amsgrad`; bias corrections in float64, the rest as in `SGD`.
    """

    def _keys(self, group: Group) -> tuple[str | None, ...]:
        return "exp_avg", "exp_avg_sq", "max_exp_avg_sq" if group["amsgrad"] else None

    def _initialize(self, group: Group) -> None:
        self._init_group(group, [], [], [], [], [], [])

    def _native(self, batch: OptimizerBatch, group: Group, threads: int, lr: float) -> None:
        beta1, beta2 = group["betas"]
        batch.adam_step(
            threads,
            group["maximize"],
            lr,
            beta1,
            beta2,
            group["eps"],
            group["weight_decay"],
            group["decoupled_weight_decay"],
        )

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
        batch.rmsprop_step(
            threads,
            group["maximize"],
            lr,
            group["alpha"],
            group["eps"],
            group["weight_decay"],
            group["momentum"],
        )

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
    """Refuse, as torch does, to be captured in a graph unless all groups are `capturable`."""
    check = getattr(optimizer, "_accelerator_graph_capture_health_check", None)
    if check is None:  # its name in earlier versions
        check = optimizer._cuda_graph_capture_health_check
    check()
