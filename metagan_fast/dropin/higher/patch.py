"""Functional copies of modules that compute with arbitrary tensors as parameters (fast weights)."""

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
from .._originals import fall_back_to

__getattr__, __dir__ = fall_back_to(__name__, "higher.patch")


class FunctionalModule(nn.Module):
    """Module whose parameters are fast weights: tensors, possibly with a graph, replaced at every step.

    A functional copy's class derives from this one and from the original's class. The root holds the history of fast
    weights; submodules refer to it and can be called on their own. A submodule that occurs twice has one copy.
    """

    _assigned_forward: Callable[..., Any] | None  # the original's instance-level override of forward
    _fast_params: list[list[Tensor]] | None
    _track_higher_grads: bool
    _fast_indices: dict[str, int]  # own parameter name -> index in the root's fast weights
    _fast_root: weakref.ref[FunctionalModule] | None
    _fast_count: int  # root only, like `_fast_places`
    _fast_places: list[tuple[dict[str, Tensor], str, int]]  # (parameter dictionary, name, index) of every fast weight

    def forward(self, *args: Any, params: Iterable[Tensor] | None = None, **kwargs: Any) -> Any:
        """Run the original's forward with the fast weights; `params` replaces them first."""
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
        """Whether this is the copy of the patched module itself, not of a submodule."""
        return self._fast_root is None

    @property
    def root(self) -> FunctionalModule:
        """Functional copy of the patched module."""
        root = self if self._fast_root is None else self._fast_root()
        if root is None:
            raise ReferenceError("the functional module that this submodule belongs to is gone; keep it alive")
        return root

    @property
    def fast_params(self) -> list[Tensor] | None:
        """Latest fast weights in the order of the original's `parameters()`; None before the first assignment."""
        history = self._fast_params
        return None if history is None else history[-1]

    @fast_params.setter
    def fast_params(self, value: Iterable[Tensor]) -> None:
        self.update_params(value)

    @property
    def init_fast_params(self) -> list[Tensor]:
        """Initial fast weights."""
        if not self._track_higher_grads or self._fast_params is None:
            raise Exception("only a functional module with track_higher_grads=True keeps its initial fast weights")
        return self._fast_params[0]

    @property
    def track_higher_grads(self) -> bool:
        """Whether every step's fast weights are kept."""
        return self._track_higher_grads

    @track_higher_grads.setter
    def track_higher_grads(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise ValueError(f"track_higher_grads must be True or False, got {value!r}")
        self.__dict__["_track_higher_grads"] = value

    def update_params(self, params: Iterable[Tensor]) -> None:
        """Append new fast weights to the history, or replace the latest ones without tracking.

        Raises:
            IndexError: their number is not the module's number of parameters.
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
            recurse: accepted; False only warns.
            time: number of updates since creation, 0 for the initial fast weights; by default the latest ones.

        Raises:
            ValueError: earlier fast weights are asked for without tracking.
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
        """Do nothing: recurrent layers cannot fuse fast weights into one contiguous buffer."""

    def __setattr__(self, name: str, value: Any) -> None:
        parameters = self.__dict__.get("_parameters", {})
        if parameters.get(name) is not None:
            self._replace(name, value)
        elif isinstance(value, nn.Parameter):  # not registered: the parameters are the original's
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
"""The original's name of the class, for `isinstance` checks in users' code."""


def make_functional(
    module: nn.Module, encapsulator: Callable[[FunctionalModule, nn.Module], None] | None = None
) -> FunctionalModule:
    """Return a functional copy of a module without fast weights; call it with `params=`.

    Args:
        module: any module; it is not changed. Buffers are copied, and of its hooks only weight norm's, spectral norm's
            and pruning's.
        encapsulator: called with the copy and the module, to set up the copy further.

    Raises:
        ValueError: the module or a submodule is functional already, or its parameters cannot be replaced.
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
    """Return a functional copy of a module with its own fast weights.

    Args:
        module: any module; it is not changed. Buffers are copied, and of its hooks only weight norm's, spectral norm's
            and pruning's.
        device: device of weights and buffers; by default unchanged.
        copy_initial_weights: initial fast weights are leaves; False: they are functions of `module`'s parameters.
        track_higher_grads: keep every step's fast weights.

    Raises:
        ValueError: the module or a submodule is functional already, or its parameters cannot be replaced.
    """
    fmodule = _functional(module, device)
    fmodule.update_params(flat_copies(module.parameters(), device=device, detach=copy_initial_weights))
    fmodule.track_higher_grads = track_higher_grads
    return fmodule


def buffer_sync(module: nn.Module, fmodule: FunctionalModule, device: torch.device | None = None) -> None:
    """Copy a module's buffers into its functional copy.

    Raises:
        KeyError: the functional copy lacks a submodule.
    """
    fmodule._buffers.update(_copied_buffers(module, device))
    for name, child in module._modules.items():
        if child is None:
            continue
        if name not in fmodule._modules:
            raise KeyError(f"the functional module has no submodule {name!r}; is it another module's functional copy?")
        buffer_sync(child, fmodule._modules[name], device)  # type: ignore[arg-type]


def _functional(module: nn.Module, device: torch.device | None) -> FunctionalModule:
    check_rebindable(module, scripted, compiled, closed)
    indices = {id(p): index for index, p in enumerate(module.parameters())}
    copies: dict[int, FunctionalModule] = {}
    root = _copy(module, device, indices, copies)
    root.__dict__.update(
        _fast_count=len(indices),
        _fast_places=[
            (copied._parameters, name, i) for copied in copies.values() for name, i in copied._fast_indices.items()
        ],
    )
    reference = weakref.ref(root)
    for copied in copies.values():
        rebind_attributes(copied, lambda original: copies.get(id(original), original))
        copied.__dict__.update(
            _assigned_forward=copied.__dict__.pop("forward", None), _fast_root=None if copied is root else reference
        )
    return root


def _copy(
    module: nn.Module, device: torch.device | None, indices: dict[int, int], copies: dict[int, FunctionalModule]
) -> FunctionalModule:
    """Return the functional copy of a module, one for all its occurrences."""
    if id(module) in copies:
        return copies[id(module)]
    if isinstance(module, FunctionalModule):
        raise ValueError("this module is functional already; patch the original, or call it with params=")
    kind = _functional_class(type(module))  # type: ignore[arg-type]
    copied = copies[id(module)] = kind.__new__(kind)
    copied.__dict__.update(
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
        copied._modules[name] = None if child is None else _copy(child, device, indices, copies)
    return copied


def _recomputing_hooks(module: nn.Module) -> OrderedDict[int, Any]:
    """Return the hooks that compute a weight from the module's parameters before each call."""
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
