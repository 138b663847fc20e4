"""Differentiable optimizers that replace a module's parameters by tensors with a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..._flat_module import advance
from ..._originals import fall_back_to
from .._trees import containers
from ..alias import FusedTransformation, Rate, adam, adamw, rmsprop, sgd
from ..base import GradientTransformation
from ..update import apply_updates
from ._inputs import check_transformation, gradients

__getattr__, __dir__ = fall_back_to(__name__, "torchopt.optim.meta")


class MetaOptimizer:
    """Differentiable optimizer of a module.

    A step replaces the entries of the submodules' parameter dictionaries by new tensors, which are functions of the
    original `nn.Parameter` objects; those are not changed. Tied parameters stay tied.

    Args:
        module: module to optimize; `add_param_group` adds more.
        impl: a gradient transformation, for example `sgd(lr=0.1)`.

    Raises:
        TypeError: `impl` is not a transformation.
    """

    def __init__(self, module: nn.Module, impl: GradientTransformation) -> None:
        check_transformation(impl)
        self.impl = impl
        self.param_containers_groups: list[tuple[dict[str, Tensor | None], ...]] = []
        self.state_groups: list[Any] = []
        self.add_param_group(module)

    def step(self, loss: Tensor) -> None:
        """Replace the parameters by the result of one step down the gradient of a loss.

        Parameters that do not require grad, or on which the loss does not depend, are unchanged.

        Args:
            loss: a scalar with a graph.

        Raises:
            RuntimeError: the loss has no graph, or is not a scalar.
        """
        for index, held in enumerate(self.param_containers_groups):
            places = [(container, name) for container in held for name in container]
            unique = {id(p): p for c, name in places if (p := c[name]) is not None and p.requires_grad}
            params = list(unique.values())
            grads = gradients(loss, params)
            state = self.state_groups[index]
            if isinstance(self.impl, FusedTransformation):
                new_params, parts = advance(self.impl.rule, self.impl.options, state or (), params, grads)
                self.state_groups[index] = tuple(parts)
            else:
                state = self.impl.init(tuple(params)) if state is None else state
                updates, self.state_groups[index] = self.impl.update(grads, state, params=tuple(params), inplace=False)
                new_params = apply_updates(params, updates, inplace=False)
            replaced = dict(zip(unique, new_params, strict=True))
            for container, name in places:
                container[name] = replaced.get(id(container[name]), container[name])

    def add_param_group(self, module: nn.Module) -> None:
        """Optimize another module as well."""
        self.param_containers_groups.append(containers(module, "_parameters"))
        self.state_groups.append(None)

    def state_dict(self) -> tuple[Any, ...]:
        """Return references to the states, one per module; None before the first step."""
        return tuple(self.state_groups)

    def load_state_dict(self, state_dict: Sequence[Any]) -> None:
        """Restore a result of `state_dict` or `extract_state_dict`."""
        self.state_groups[:] = list(state_dict)


class MetaSGD(MetaOptimizer):
    """Differentiable SGD of a module; arguments as in `sgd`."""

    def __init__(
        self,
        module: nn.Module,
        lr: Rate,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        moment_requires_grad: bool = True,
        maximize: bool = False,
    ) -> None:
        super().__init__(module, sgd(lr, momentum, dampening, weight_decay, nesterov, maximize=maximize))


class MetaAdam(MetaOptimizer):
    """Differentiable Adam of a module; arguments as in `adam`."""

    def __init__(
        self,
        module: nn.Module,
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        eps_root: float = 0.0,
        moment_requires_grad: bool = True,
        maximize: bool = False,
        use_accelerated_op: bool = False,
    ) -> None:
        super().__init__(module, adam(lr, betas, eps, weight_decay, eps_root=eps_root, maximize=maximize))


class MetaAdamW(MetaOptimizer):
    """Differentiable AdamW of a module; arguments as in `adamw`."""

    def __init__(
        self,
        module: nn.Module,
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        eps_root: float = 0.0,
        moment_requires_grad: bool = False,
        maximize: bool = False,
        use_accelerated_op: bool = False,
    ) -> None:
        super().__init__(module, adamw(lr, betas, eps, weight_decay, eps_root=eps_root, maximize=maximize))


class MetaRMSProp(MetaOptimizer):
    """Differentiable RMSprop of a module; arguments as in `rmsprop`."""

    def __init__(
        self,
        module: nn.Module,
        lr: Rate = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        initial_scale: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
    ) -> None:
        impl = rmsprop(
            *(lr, alpha, eps, weight_decay, momentum, centered),
            initial_scale=initial_scale,
            nesterov=nesterov,
            maximize=maximize,
        )
        super().__init__(module, impl)


MetaRMSprop = MetaRMSProp
