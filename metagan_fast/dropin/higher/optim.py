"""Differentiable counterparts of `torch.optim` optimizers: one fused step per parameter group."""

from __future__ import annotations

import abc
import collections
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ... import optim as native
from .. import _updates
from .._flat_module import Part, Rule, advance, parts_of, states_of
from .._originals import fall_back_to
from .patch import FunctionalModule
from .utils import flatten, map_leaves

__getattr__, __dir__ = fall_back_to(__name__, "higher.optim")

Override = Mapping[str, Sequence[Any]]
"""Hyper-parameters by name: a list of one value for all groups, or of one value per group."""

GradCallback = Callable[[Sequence["Tensor | None"]], Sequence["Tensor | None"]]


class DifferentiableOptimizer(abc.ABC):
    """Optimizer whose steps return new parameters with a graph.

    For a custom optimizer, subclass it and register both with `register_optim`: `_update(grouped_grads)` reads
    `self.param_groups[group]["params"]` and `self.state[group][parameter]` and replaces their entries.

    Args:
        other: optimizer whose groups and state are copied.
        reference_params: the module's parameters, in its order.
        fmodel: functional module whose fast weights are stepped if `step` is given no `params`.
        device: device of the state; by default unchanged.
        override: hyper-parameters by name: a list of one value for all groups or one per group; tensors may require
            grad.
        grad_callback: function of the gradients, in the order of `reference_params`, applied before each step.
        track_higher_grads: keep the graph; False: new parameters are leaves.

    Raises:
        ValueError: a parameter of `other` is not among `reference_params`, or `override` does not fit the groups.
    """

    def __init__(
        self,
        other: torch.optim.Optimizer,
        reference_params: Iterable[Tensor],
        fmodel: FunctionalModule | None = None,
        device: torch.device | None = None,
        override: Override | None = None,
        grad_callback: GradCallback | None = None,
        track_higher_grads: bool = True,
        **kwargs: Any,
    ) -> None:
        positions = {id(p): index for index, p in enumerate(reference_params)}
        self.param_groups: list[dict[str, Any]] = []
        self.state: list[dict[int, dict[str, Any]]] = []
        self._positions: list[list[int]] = []
        for group in other.param_groups:
            members = group["params"]
            missing = [tuple(p.shape) for p in members if id(p) not in positions]
            if missing:
                raise ValueError(
                    f"parameters of shapes {missing} of the optimizer are not among the reference parameters; "
                    "pass the parameters of the module that it optimizes"
                )
            options = {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
            self.param_groups.append({"params": [None] * len(members), **options})
            self._positions.append([positions[id(p)] for p in members])
            state: dict[int, dict[str, Any]] = collections.defaultdict(dict)
            for index, p in enumerate(members):
                if p in other.state:
                    state[index] = map_leaves(dict(other.state[p]), lambda x: _detached_copy(x, device))
            self.state.append(state)
        self._fmodel = fmodel
        self._grad_callback = grad_callback
        self._track_higher_grads = track_higher_grads
        self._apply_override(override)

    def step(
        self,
        loss: Tensor,
        params: Iterable[Tensor] | None = None,
        override: Override | None = None,
        grad_callback: GradCallback | None = None,
        **kwargs: Any,
    ) -> list[Tensor]:
        """Step the parameters down the gradient of a loss.

        Args:
            loss: a scalar with a graph.
            params: parameters to differentiate by and step; by default the functional module's fast weights. Those that
                do not require grad, or on which the loss does not depend, are unchanged.
            override: hyper-parameters from this step on.
            grad_callback: replaces the optimizer's own for this step.

        Returns:
            The new parameters, also assigned to the functional module, if there is one.

        Raises:
            ValueError: there are no parameters.
            RuntimeError: the loss has no graph, or is not a scalar.
        """
        self._apply_override(override)
        if params is None:
            params = None if self._fmodel is None else self._fmodel.fast_params
            if params is None:
                raise ValueError("step() needs params=: this optimizer has no functional module with fast weights")
        params = list(params)
        if not loss.requires_grad:
            raise RuntimeError(
                "the loss has no graph (does not require grad): compute it from the fast weights, with grad enabled"
            )
        targets = [i for i, p in enumerate(params) if p.requires_grad]
        found = torch.autograd.grad(
            loss, [params[i] for i in targets], create_graph=self._track_higher_grads, allow_unused=True
        )
        grads: list[Tensor | None] = [None] * len(params)
        for i, gradient in zip(targets, found, strict=True):
            grads[i] = gradient
        callback = grad_callback or self._grad_callback
        if callback is not None:
            grads = list(callback(grads))

        grouped = []
        for group, positions in zip(self.param_groups, self._positions, strict=True):
            group["params"] = [params[i] for i in positions]
            grouped.append([grads[i] for i in positions])
        with torch.set_grad_enabled(self._track_higher_grads and torch.is_grad_enabled()):
            self._update(grouped)
        new_params = list(params)
        for group, positions in zip(self.param_groups, self._positions, strict=True):
            for i, p in zip(positions, group["params"], strict=True):
                new_params[i] = p if self._track_higher_grads else p.detach().requires_grad_(params[i].requires_grad)
        if self._fmodel is not None:
            self._fmodel.update_params(new_params)
        return new_params

    @abc.abstractmethod
    def _update(self, grouped_grads: list[list[Tensor | None]], **kwargs: Any) -> None:
        """Replace the parameters that have a gradient, group by group."""

    def _apply_override(self, override: Override | None) -> None:
        for name, values in (override or {}).items():
            for group, value in zip(self.param_groups, _value_per_group(name, values, self.param_groups), strict=True):
                group[name] = value


class _FusedOptimizer(DifferentiableOptimizer):
    """Differentiable optimizer over flat buffers; `state` presents them per parameter."""

    _rule: ClassVar[tuple[Rule, Mapping[str, Any]]]  # with the options fixed by the type
    _parts: list[list[Part]] | None = None

    @property
    def state(self) -> list[dict[int, dict[str, Any]]]:
        """Read-only optimizer state by group and parameter."""
        if self._parts is None:
            return self._initial_state
        return [states_of(parts) for parts in self._parts]

    @state.setter
    def state(self, value: list[dict[int, dict[str, Any]]]) -> None:
        self._initial_state, self._parts = value, None

    def _update(self, grouped_grads: list[list[Tensor | None]], **kwargs: Any) -> None:
        groups = self.param_groups
        if self._parts is None:
            self._parts = [
                parts_of(state, group["params"]) for state, group in zip(self._initial_state, groups, strict=True)
            ]
        for index, (group, grads) in enumerate(zip(groups, grouped_grads, strict=True)):
            rule, fixed = self._rule
            group["params"], self._parts[index] = advance(
                rule, {**group, **fixed}, self._parts[index], group["params"], grads
            )


class DifferentiableSGD(_FusedOptimizer):
    """Differentiable `torch.optim.SGD`."""

    _rule = (_updates.sgd, {})


class DifferentiableAdam(_FusedOptimizer):
    """Differentiable `torch.optim.Adam`, including amsgrad."""

    _rule = (_updates.adam, {})


class DifferentiableAdamW(_FusedOptimizer):
    """Differentiable `torch.optim.AdamW`, including amsgrad."""

    _rule = (_updates.adam, {"decoupled": True})


class DifferentiableRMSprop(_FusedOptimizer):
    """Differentiable `torch.optim.RMSprop`; the square root of a zero centered variance has derivative 0."""

    _rule = (_updates.rmsprop, {})


class DifferentiableAdadelta(_FusedOptimizer):
    """Differentiable `torch.optim.Adadelta`."""

    _rule = (_updates.adadelta, {})


class DifferentiableAdagrad(_FusedOptimizer):
    """Differentiable `torch.optim.Adagrad`; the square root of a zero sum of squares has derivative 0."""

    _rule = (_updates.adagrad, {})


class DifferentiableAdamax(_FusedOptimizer):
    """Differentiable `torch.optim.Adamax`."""

    _rule = (_updates.adamax, {})


class DifferentiableASGD(_FusedOptimizer):
    """Differentiable `torch.optim.ASGD`; as there, a new learning rate takes effect one step later."""

    _rule = (_updates.asgd, {})


class DifferentiableRprop(_FusedOptimizer):
    """Differentiable `torch.optim.Rprop`; its derivative by the gradient is 0, since only the sign is used."""

    _rule = (_updates.rprop, {})


# The original's name: users' code registers its own types in it.
_opt_mapping: dict[type, type[DifferentiableOptimizer]] = {
    torch.optim.SGD: DifferentiableSGD,
    torch.optim.Adam: DifferentiableAdam,
    torch.optim.AdamW: DifferentiableAdamW,
    torch.optim.RMSprop: DifferentiableRMSprop,
    torch.optim.Adadelta: DifferentiableAdadelta,
    torch.optim.Adagrad: DifferentiableAdagrad,
    torch.optim.Adamax: DifferentiableAdamax,
    torch.optim.ASGD: DifferentiableASGD,
    torch.optim.Rprop: DifferentiableRprop,
    native.SGD: DifferentiableSGD,
    native.Adam: DifferentiableAdam,
    native.AdamW: DifferentiableAdamW,
    native.RMSprop: DifferentiableRMSprop,
}


def get_diff_optim(
    opt: torch.optim.Optimizer,
    reference_params: Iterable[Tensor],
    fmodel: FunctionalModule | None = None,
    device: torch.device | None = None,
    override: Override | None = None,
    track_higher_grads: bool = True,
    **kwargs: Any,
) -> DifferentiableOptimizer:
    """Return an optimizer's differentiable counterpart; arguments as in `DifferentiableOptimizer`.

    Raises:
        ValueError: the optimizer's type has no differentiable counterpart.
    """
    return _differentiable(type(opt))(
        opt,
        reference_params,
        fmodel=fmodel,
        device=device,
        override=override,
        track_higher_grads=track_higher_grads,
        **kwargs,
    )


def create_diff_optim(
    opt_type: type[torch.optim.Optimizer],
    opt_kwargs: Mapping[str, Any] | None = None,
    params: Iterable[Any] | None = None,
    fmodel: FunctionalModule | None = None,
    device: torch.device | None = None,
    override: Override | None = None,
    track_higher_grads: bool = True,
    **kwargs: Any,
) -> DifferentiableOptimizer:
    """Create the differentiable counterpart of an optimizer type.

    Args:
        opt_type: optimizer type, for example `torch.optim.SGD`.
        opt_kwargs: its constructor's arguments.
        params: tensors or groups `{"params": tensors, ...}` in the order in which `step` will receive them; only their
            shapes are read. By default `fmodel`'s parameters.
        fmodel, device, override, track_higher_grads: as in `DifferentiableOptimizer`.

    Raises:
        ValueError: the type has no differentiable counterpart, or neither `params` nor `fmodel` is given.
    """
    kind = _differentiable(opt_type)
    if params is None:
        if fmodel is None:
            raise ValueError("create_diff_optim needs fmodel= or params=")
        params = fmodel.parameters()
    groups = list(params)
    if not isinstance(groups[0], dict):
        groups = [{"params": groups}]
    groups = [{**group, "params": _placeholders(group["params"])} for group in groups]
    reference = [p for group in groups for p in group["params"]]
    opt = opt_type(groups, **(opt_kwargs or {}))
    return kind(
        opt,
        reference,
        fmodel=fmodel,
        device=device,
        override=override,
        track_higher_grads=track_higher_grads,
        **kwargs,
    )


def register_optim(optim_type: type[torch.optim.Optimizer], diff_optim_type: type[DifferentiableOptimizer]) -> None:
    """Register the differentiable counterpart of an optimizer type."""
    _opt_mapping[optim_type] = diff_optim_type


def get_trainable_opt_params(opt: torch.optim.Optimizer, device: torch.device | None = None) -> dict[str, list[Any]]:
    """Return an optimizer's numeric hyper-parameters as an `override` of tensors that require grad.

    Numbers and trees of numbers are included, one per group; other hyper-parameters are not.
    """
    override: dict[str, list[Any]] = {}
    for group in opt.param_groups:
        for name, value in group.items():
            if name != "params" and all(isinstance(x, (int, float)) for x in flatten(value)):
                leaves = map_leaves(value, lambda x: torch.tensor(float(x), device=device, requires_grad=True))
                override.setdefault(name, []).append(leaves)
    return override


def apply_trainable_opt_params(opt: torch.optim.Optimizer, override: Override) -> None:
    """Write learned hyper-parameters back into an optimizer's groups.

    Raises:
        ValueError: an override fits neither the number of groups nor the form of the hyper-parameter.
    """
    for name, values in override.items():
        for group, value in zip(opt.param_groups, _value_per_group(name, values, opt.param_groups), strict=True):
            group[name] = _convert_back(name, value, group[name])


def _differentiable(kind: type) -> type[DifferentiableOptimizer]:
    if kind not in _opt_mapping:
        known = ", ".join(sorted({known.__name__ for known in _opt_mapping}))
        raise ValueError(
            f"optimizers of type {kind.__name__} have no differentiable counterpart; use one of {known}, or "
            "register_optim()"
        )
    return _opt_mapping[kind]


def _value_per_group(name: str, values: Sequence[Any], groups: Sequence[Any]) -> Sequence[Any]:
    if len(values) not in (1, len(groups)):
        raise ValueError(
            f"override of {name!r} must be a list of one value, or of one for each of the {len(groups)} parameter "
            f"groups, got {len(values)}"
        )
    return [values[0]] * len(groups) if len(values) == 1 else values


def _placeholders(params: Any) -> list[Tensor]:
    """Return placeholder tensors of the same shapes that a `torch.optim` optimizer accepts."""
    params = [params] if isinstance(params, Tensor) else list(params)
    return [torch.empty_like(p, requires_grad=True) for p in params]


def _detached_copy(x: Any, device: torch.device | None) -> Any:
    return x.detach().clone().to(device=device) if isinstance(x, Tensor) else x


def _convert_back(name: str, value: Any, old: Any) -> Any:
    """Convert a learned value to the structure and type of the old one."""
    if isinstance(old, (list, tuple)) and isinstance(value, (list, tuple)) and len(value) == len(old):
        return type(old)(_convert_back(name, v, o) for v, o in zip(value, old, strict=True))
    if isinstance(old, dict) and isinstance(value, dict) and value.keys() == old.keys():
        return {key: _convert_back(name, value[key], old[key]) for key in old}
    if isinstance(value, Tensor) and isinstance(old, Tensor):
        old.data = value.detach().to(old.device)
        return old
    if isinstance(value, Tensor) and isinstance(old, (bool, int, float)):
        return type(old)(value.item())
    raise ValueError(f"expected {name!r} of the form of {old!r}, got {value!r}")
