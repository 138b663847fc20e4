"""Optimizers that replace a module's parameters by new tensors with a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metagan_fast.dropin._flat_module import advance
from metagan_fast.dropin.torchopt._trees import containers, leaves, rebuild
from metagan_fast.dropin.torchopt.transforms import (
    FusedTransformation,
    GradientTransformation,
    Rate,
    adam,
    adamw,
    apply_updates,
    rmsprop,
    sgd,
)


class MetaOptimizer:
    """An optimizer of a module whose steps can be differentiated.

    A step puts new tensors in the place of the module's parameters, in the modules' own dictionaries: the
    `nn.Parameter` objects stay what they were, and are what the steps depend on. Tied parameters stay tied.

    Args:
        module: what is optimized; more by `add_param_group`.
        impl: a transformation, say `sgd(lr=0.1)`.

    Raises:
        TypeError: `impl` is none.
    """

    def __init__(self, module: nn.Module, impl: GradientTransformation) -> None:
        _check_transformation(impl)
        self.impl = impl
        self.param_containers_groups: list[tuple[dict[str, Tensor | None], ...]] = []
        self.state_groups: list[Any] = []
        self.add_param_group(module)

    def step(self, loss: Tensor) -> None:
        """Replace the parameters by those one step down the gradient of a loss.

        Those that do not contribute to the loss, or do not require grad, stay.

        Args:
            loss: a scalar with a graph.

        Raises:
            RuntimeError: the loss has no graph, or is not a scalar.
        """
        for index, held in enumerate(self.param_containers_groups):
            places = [(container, name) for container in held for name in container]
            unique = {id(p): p for c, name in places if (p := c[name]) is not None and p.requires_grad}
            params = list(unique.values())
            grads = _gradients(loss, params)
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
        """Return the optimizer's states, one a module, None before its first step; references, not copies."""
        return tuple(self.state_groups)

    def load_state_dict(self, state_dict: Sequence[Any]) -> None:
        """Go on from states that `state_dict` or `extract_state_dict` returned."""
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


class FuncOptimizer:
    """A transformation with its state.

    Args:
        impl: a transformation.
        inplace: whether `step` writes to the parameters, unless it is told.

    Raises:
        TypeError: `impl` is none.
    """

    def __init__(self, impl: GradientTransformation, *, inplace: bool = False) -> None:
        _check_transformation(impl)
        self.impl, self.inplace = impl, bool(inplace)
        self.optim_state: Any = None

    def step(self, loss: Tensor, params: Any, inplace: bool | None = None) -> Any:
        """Return the parameters one step down the gradient of a loss.

        Args:
            loss: a scalar with a graph.
            params: a tree of tensors.
            inplace: write to them.
        """
        if self.optim_state is None:
            self.optim_state = self.impl.init(params)
        inplace = self.inplace if inplace is None else inplace
        grads = rebuild(params, _gradients(loss, leaves(params)))
        updates, self.optim_state = self.impl.update(grads, self.optim_state, params=params, inplace=inplace)
        return apply_updates(params, updates, inplace=inplace)

    def state_dict(self) -> Any:
        """Return the state, None before the first step; a reference, not a copy."""
        return self.optim_state

    def load_state_dict(self, state_dict: Any) -> None:
        """Go on from a state that `state_dict` returned."""
        self.optim_state = state_dict


def _gradients(loss: Tensor, params: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not loss.requires_grad:
        raise RuntimeError("the loss has no graph (does not require grad): compute it with grad enabled")
    return torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)


def _check_transformation(impl: Any) -> None:
    if not (callable(getattr(impl, "init", None)) and callable(getattr(impl, "update", None))):
        raise TypeError(f"expected a gradient transformation, with init() and update(), got {type(impl).__name__}")
