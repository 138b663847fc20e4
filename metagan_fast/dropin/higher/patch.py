"""Functional twins of modules, which compute with parameters that are any tensors."""

from __future__ import annotations

import functools
import types
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..._utils.rebinding import check_rebindable, closed, compiled, rebind_attributes, scripted
from .._flat_module import flat_copies
from .._originals import hand_on

__getattr__, __dir__ = hand_on(__name__, "higher.patch")


class FunctionalModule(nn.Module):
    """A module whose parameters are fast weights: tensors, perhaps with a graph, replaced from step to step.

    A twin has a class of its own, derived from this one and from the original's. The root holds the history of fast
    weights; submodules refer to it, and can be called by themselves. A submodule that occurs twice has one twin.
    """

    _assigned_forward: Callable[..., Any] | None  # in the place of the class's, if one was assigned to the original
    _fast_params: list[list[Tensor]] | None
    _track_higher_grads: bool
    _fast_indices: dict[str, int]  # of this module's own parameters, among the root's fast weights
    _fast_root: weakref.ref[FunctionalModule] | None
    _fast_count: int  # these two of the root alone
    _fast_places: list[tuple[dict[str, Tensor], str, int]]  # where the fast weights go

    def forward(self, *args: Any, params: Iterable[Tensor] | None = None, **kwargs: Any) -> Any:
        """Compute what the original computes, with all fast weights replaced first if `params` is given."""
        root = self.root
        if params is not None:
            root.fast_params = params
        elif root._fast_params is None:
            raise ValueError(
                "this functional module has no fast weights yet: call it with params=, or make it with monkeypatch()"
            )
        forward = self._assigned_forward or super().forward
        return forward(*args, **kwargs)

    @property
    def is_root(self) -> bool:
        """Whether this is the twin of the module that was patched, not of a submodule."""
        return self._fast_root is None

    @property
    def root(self) -> FunctionalModule:
        """The twin of the module that was patched."""
        root = self if self._fast_root is None else self._fast_root()
        if root is None:
            raise ReferenceError("the functional module that this submodule belongs to is gone; keep it alive")
        return root

    @property
    def fast_params(self) -> list[Tensor] | None:
        """The newest fast weights, in the order of the original's `parameters()`; None if there are none yet."""
        history = self._fast_params
        return None if history is None else history[-1]

    @fast_params.setter
    def fast_params(self, value: Iterable[Tensor]) -> None:
        self.update_params(value)

    @property
    def init_fast_params(self) -> list[Tensor]:
        """The first fast weights."""
        if not self._track_higher_grads or self._fast_params is None:
            raise Exception("only a functional module with track_higher_grads=True keeps its initial fast weights")
        return self._fast_params[0]

    @property
    def track_higher_grads(self) -> bool:
        """Whether the fast weights of every step are kept."""
        return self._track_higher_grads

    @track_higher_grads.setter
    def track_higher_grads(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise ValueError(f"track_higher_grads must be True or False, got {value!r}")
        self.__dict__["_track_higher_grads"] = value

    def update_params(self, params: Iterable[Tensor]) -> None:
        """Take new fast weights: the next in the history, or without tracking in place of the last.

        Raises:
            IndexError: there are not as many as the module has parameters.
        """
        params = list(params)
        if len(params) != self._fast_count:
            raise IndexError(
                f"expected one tensor for each of the {self._fast_count} parameters, in the order of "
                f"fmodel.parameters(), got {len(params)}"
            )
        if self._fast_params is None or not self._track_higher_grads:
            self.__dict__["_fast_params"] = [params]
        else:
            self._fast_params.append(params)
        for container, name, index in self._fast_places:
            container[name] = params[index]

    def parameters(self, recurse: bool = True, time: int | None = None) -> Iterator[Tensor]:  # type: ignore[override]
        """Return the fast weights.

        Args:
            recurse: False warns, and changes nothing.
            time: number of updates since the module was made, 0 for the initial ones; by default the newest.

        Raises:
            ValueError: without tracking there are none but the newest.
        """
        if not self.is_root:
            return super().parameters(recurse)
        if self._fast_params is None:
            raise Exception("this functional module has no fast weights yet: call it with params=")
        if not recurse:
            warnings.warn("a functional module returns all its fast weights, recurse=False or not", stacklevel=2)
        if not self._track_higher_grads and time not in (None, -1, 0):
            raise ValueError(f"only the newest fast weights are kept with track_higher_grads=False, got time={time}")
        return iter(self._fast_params[-1 if time is None else time])

    def flatten_parameters(self) -> None:
        """Do nothing: fast weights are not the contiguous ones that recurrent layers ask for."""

    def __setattr__(self, name: str, value: Any) -> None:
        parameters = self.__dict__.get("_parameters", {})
        if parameters.get(name) is not None:
            self._replace(name, value)
        elif isinstance(value, nn.Parameter):  # the original's parameters are all there are
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _replace(self, name: str, value: Any) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"fast weight {name!r} must be a tensor, got {torch.typename(value)}")
        root = self.root
        if root.fast_params is None:
            raise Exception(f"cannot assign {name!r}: this functional module has no fast weights yet")
        params = list(root.fast_params)
        params[self._fast_indices[name]] = value
        root.update_params(params)


_MonkeyPatchBase = FunctionalModule
"""The original's name, which code asks `isinstance` about."""


def make_functional(
    module: nn.Module, encapsulator: Callable[[FunctionalModule, nn.Module], None] | None = None
) -> FunctionalModule:
    """Return a functional twin of a module, without fast weights: call it with `params=`.

    Args:
        module: any module; it is not changed. Buffers are copied, and of its hooks those of weight norm,
            spectral norm and pruning.
        encapsulator: called with the twin and the module, to give the twin what it should hold.

    Raises:
        ValueError: the module or a part of it is functional already, or computes with its own parameters, whatever
            takes their places.
    """
    fmodule = _functional(module, None)
    if encapsulator is not None:
        encapsulator(fmodule, module)
    return fmodule


def monkeypatch(
    module: nn.Module,
    device: torch.device | None = None,
    copy_initial_weights: bool = True,
    track_higher_grads: bool = True,
) -> FunctionalModule:
    """Return a functional twin of a module with fast weights of its own.

    Args:
        module: any module; it is not changed. Buffers are copied, and of its hooks those of weight norm,
            spectral norm and pruning.
        device: where weights and buffers go; by default where they are.
        copy_initial_weights: the initial fast weights are leaves; with False they depend on `module`'s parameters.
        track_higher_grads: keep the fast weights of every step.

    Raises:
        ValueError: the module or a part of it is functional already, or computes with its own parameters, whatever
            takes their places.
    """
    fmodule = _functional(module, device)
    fmodule.update_params(flat_copies(module.parameters(), device=device, detach=copy_initial_weights))
    fmodule.track_higher_grads = track_higher_grads
    return fmodule


def buffer_sync(module: nn.Module, fmodule: FunctionalModule, device: torch.device | None = None) -> None:
    """Copy the buffers of a module into its functional twin.

    Raises:
        KeyError: the twin lacks a submodule.
    """
    fmodule._buffers.update(_copied_buffers(module, device))
    for name, child in module._modules.items():
        if child is None:
            continue
        if name not in fmodule._modules:
            raise KeyError(f"the functional module has no submodule {name!r}; is it another module's twin?")
        buffer_sync(child, fmodule._modules[name], device)  # type: ignore[arg-type]


def _functional(module: nn.Module, device: torch.device | None) -> FunctionalModule:
    check_rebindable(module, scripted, compiled, closed)
    indices = {id(p): index for index, p in enumerate(module.parameters())}
    twins: dict[int, FunctionalModule] = {}
    root = _twin(module, device, indices, twins)
    root.__dict__.update(
        _fast_count=len(indices),
        _fast_places=[(twin._parameters, name, i) for twin in twins.values() for name, i in twin._fast_indices.items()],
    )
    reference = weakref.ref(root)
    for twin in twins.values():
        rebind_attributes(twin, lambda original: twins.get(id(original), original))
        twin.__dict__.update(
            _assigned_forward=twin.__dict__.pop("forward", None), _fast_root=None if twin is root else reference
        )
    return root


def _twin(
    module: nn.Module, device: torch.device | None, indices: dict[int, int], twins: dict[int, FunctionalModule]
) -> FunctionalModule:
    """Return the twin of a module, the same one wherever the module occurs."""
    if id(module) in twins:
        return twins[id(module)]
    if isinstance(module, FunctionalModule):
        raise ValueError("this module is functional already; patch the original, or call it with params=")
    kind = _functional_class(type(module))  # type: ignore[arg-type]
    twin = twins[id(module)] = kind.__new__(kind)
    twin.__dict__.update(
        {name: type(value)() if name in _HOOKS else value for name, value in module.__dict__.items()},
        _forward_pre_hooks=_recomputing_hooks(module),
        _parameters=dict(module._parameters),
        _buffers=_copied_buffers(module, device),
        _modules={},
        _fast_indices={name: indices[id(p)] for name, p in module._parameters.items() if p is not None},
        _fast_params=None,
        _track_higher_grads=True,
    )
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else _twin(child, device, indices, twins)
    return twin


def _recomputing_hooks(module: nn.Module) -> OrderedDict[int, Any]:
    """Return the hooks that compute one of the module's weights from its parameters before each call."""
    kinds = (WeightNorm, SpectralNorm, BasePruningMethod)
    return OrderedDict((key, hook) for key, hook in module._forward_pre_hooks.items() if isinstance(hook, kinds))


_HOOKS = {name for name in nn.Module().__dict__ if "_hooks" in name}


def _copied_buffers(module: nn.Module, device: torch.device | None) -> dict[str, Tensor | None]:
    return {
        name: None if buffer is None else buffer.detach().clone().to(device=device)
        for name, buffer in module._buffers.items()
    }


@functools.lru_cache(maxsize=1024)
def _functional_class(kind: type[nn.Module]) -> type[FunctionalModule]:
    def body(namespace: dict[str, Any]) -> None:
        namespace["__module__"] = kind.__module__
        namespace["__doc__"] = kind.__doc__

    return types.new_class(f"Functional{kind.__name__}", (FunctionalModule, kind), exec_body=body)
