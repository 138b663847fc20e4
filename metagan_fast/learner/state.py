"""State of meta-training: the initialisation, the meta-optimizer's buffers, persistent inner optimizers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._utils import coerce
from .._utils.modules import Snapshot
from ..executors import Parameters, TrainStates
from ..flat import FlatLayout
from ..inner import OPTIMIZERS, InnerLoop, TrainState
from .algorithms import MetaAlgorithm

ROLES = ("generator", "discriminator")


@dataclass(frozen=True)
class RollbackPoint:
    """Copy of a learner's state before a meta-step's updates; the next one overwrites it."""

    step: int
    updates: int
    carried: TrainStates | None
    tensors: Sequence[Tensor]


class LearnerState:
    """Tensors of a learner: they follow its modules across devices and are saved by name.

    The modules' parameters become views of `initial`. A copy, pickled ones included, owns its modules and buffers.

    Args:
        generator, discriminator: the modules.
        meta: the algorithm; its optimizer defines the buffers.
        inner: the inner loop, whose optimizer state may persist.

    Attributes:
        modules, layouts: the generator's and the discriminator's.
        initial: the initialisation of both, `[numel]` each.
        buffers: buffers of the meta-optimizer, by network.
        carried: with `inner_state="persist"`, the final state of the last inner loop.

    Raises:
        ValueError: parameters of several dtypes or devices, or one that both networks share.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, meta: MetaAlgorithm, inner: InnerLoop) -> None:
        self.modules = generator, discriminator
        self.layouts = FlatLayout.from_module(generator), FlatLayout.from_module(discriminator)
        _check_not_shared(generator, discriminator)
        self.initial = self._bind()
        self._snapshots = [Snapshot(module) for module in self.modules]
        self.buffers = [meta.initial_state(params) for params in self.initial]
        self.carried: TrainStates | None = None
        self._copies: list[Tensor] = []
        self._inner = inner

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with modules that own their parameters: views would each be pickled as the whole buffer."""
        pairs = zip(self.layouts, self.modules, self.initial, strict=True)
        modules = tuple(layout.instantiate(module, params) for layout, module, params in pairs)
        return {**self.__dict__, "modules": modules, "initial": None, "_snapshots": None, "_copies": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.initial = self._bind()
        self._snapshots = [Snapshot(module) for module in self.modules]

    def __deepcopy__(self, memo: dict[int, Any]) -> LearnerState:
        """Copy the modules through `memo`, so that modules shared with the enclosing structure stay shared."""
        copied = memo[id(self)] = object.__new__(type(self))
        copied.__setstate__(copy.deepcopy({**self.__dict__, "initial": None, "_snapshots": None, "_copies": []}, memo))
        return copied

    def follow_modules(self) -> bool:
        """Rebind modules that have changed and return whether any has.

        Modules are bound again if `.to()`, `.double()` or `assign=True` ended the binding.

        Raises:
            ValueError: a module has other parameters than before.
        """
        places = zip(self.layouts, self.modules, self.initial, strict=True)
        bound = all(layout.is_bound(module, params) for layout, module, params in places)
        if bound and all(snapshot.is_current() for snapshot in self._snapshots):
            return False
        if not bound:
            self._bind_again()
        self._snapshots = [Snapshot(module) for module in self.modules]
        return True

    def _bind_again(self) -> None:
        for role, layout, module in zip(ROLES, self.layouts, self.modules, strict=True):
            if FlatLayout.from_module(module) != layout:
                raise ValueError(
                    f"expected the {role}'s parameters to keep the names and shapes that MetaGAN was built with; "
                    "they have changed: build another MetaGAN for the module"
                )
        _check_not_shared(*self.modules)
        self.initial = self._bind()
        like = self.initial.generator
        self.buffers = [tuple(buffer.to(like) for buffer in buffers) for buffers in self.buffers]
        if self.carried is not None:
            self.carried = TrainStates(*(n.with_tensors([t.to(like) for t in n.tensors]) for n in self.carried))

    def _bind(self) -> Parameters:
        """Flatten both modules and make their parameters views of the result."""
        places = list(zip(self.layouts, self.modules, strict=True))
        initial = Parameters(*(layout.flatten(module) for layout, module in places))
        generator, discriminator = initial
        if (generator.dtype, generator.device) != (discriminator.dtype, discriminator.device):
            raise ValueError(
                f"expected both networks in one dtype on one device, got {generator.dtype} on {generator.device} and "
                f"{discriminator.dtype} on {discriminator.device}; call .to() on one of them"
            )
        for (layout, module), params in zip(places, initial, strict=True):
            layout.bind(module, params)
        return initial

    def _updated(self) -> list[Tensor]:
        """Return the tensors that an update overwrites."""
        return [*self.initial, *(buffer for buffers in self.buffers for buffer in buffers)]

    def rollback_point(self, step: int, updates: int) -> RollbackPoint:
        """Copy everything that an update changes, with the learner's counters.

        The copies' memory is kept from call to call: fresh pages would cost more than the copying.
        """
        live = self._updated()
        if list(map(_kind, self._copies)) != list(map(_kind, live)):
            self._copies = [torch.empty_like(tensor) for tensor in live]
        with torch.no_grad():
            for kept, tensor in zip(self._copies, live, strict=True):
                kept.copy_(tensor)
        return RollbackPoint(step, updates, self.carried, self._copies)

    def roll_back(self, point: RollbackPoint) -> None:
        """Restore the state of `point`; idempotent, so an interrupted rollback can be repeated."""
        with torch.no_grad():
            for live, old in zip(self._updated(), point.tensors, strict=True):
                live.copy_(old)
        self.carried = point.carried

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint by name; they are the live ones, not copies."""
        tensors = self._live_tensors()
        if self.carried is not None:
            for role, state in zip(ROLES, self.carried, strict=True):
                tensors |= {f"inner.{role}.{i}": value for i, value in enumerate(state.tensors)}
        return tensors

    def _live_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for role, module in zip(ROLES, self.modules, strict=True):
            tensors |= {f"{role}.{name}": value for name, value in module.state_dict().items()}
        for role, buffers in zip(ROLES, self.buffers, strict=True):
            tensors |= {f"meta.{role}.{i}": value for i, value in enumerate(buffers)}
        return tensors

    @property
    def inner_updates(self) -> list[int] | None:
        """Update counts of the persistent inner optimizers; None without."""
        return None if self.carried is None else [state.updates for state in self.carried]

    def load(self, saved: Mapping[str, Tensor], inner_updates: Any) -> None:
        """Load saved `tensors` and `inner_updates`.

        Raises:
            ValueError: names, shapes or kinds of dtype differ; nothing is changed.
        """
        live = self._live_tensors()
        carried = self._carried_names() if inner_updates is not None else []
        like = {
            name: params.unsqueeze(0) for params, names in zip(self.initial, carried, strict=False) for name in names
        }
        persists = self._inner.inner_state == "persist"
        _check_fit(live | like, {n: x for n, x in saved.items() if persists or not n.startswith("inner.")})
        updates = coerce.counts("inner_updates", inner_updates, len(ROLES)) if carried else ()
        with torch.no_grad():
            for name, value in live.items():
                value.copy_(saved[name])
        self.carried = None
        if carried:
            rows = [[saved[name].to(self.initial.generator) for name in names] for names in carried]
            states = (TrainState(row[0], tuple(row[1:]), n) for row, n in zip(rows, updates, strict=True))
            self.carried = TrainStates(*states)

    def _carried_names(self) -> list[list[str]]:
        """Return the names of each network's persistent inner state; none without."""
        if self._inner.inner_state != "persist":
            return []
        tensors = range(1 + OPTIMIZERS[self._inner.optimizer].buffers(self._inner))
        return [[f"inner.{role}.{i}" for i in tensors] for role in ROLES]


def _check_not_shared(generator: nn.Module, discriminator: nn.Module) -> None:
    """Raise ValueError if both networks hold one parameter, or two parameters on one tensor."""
    places = {_memory(p): name for name, p in generator.named_parameters() if p.numel()}
    for name, parameter in discriminator.named_parameters():
        if _memory(parameter) in places and parameter.numel():
            raise ValueError(
                f"the generator's parameter {places[_memory(parameter)]!r} is the discriminator's {name!r} too; each "
                "network adapts on its own: give the discriminator a copy, by copy.deepcopy(layer)"
            )


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _memory(parameter: Tensor) -> tuple[object, int]:
    """Return a key of a tensor's memory, or of the tensor if it has none."""
    address = parameter.data_ptr()
    return parameter.device, address or id(parameter)


def _check_fit(live: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raise ValueError if saved tensors differ from the live ones in names, shapes or kinds of dtype."""
    different = live.keys() ^ saved.keys()
    if different:
        name = min(different)
        raise ValueError(
            f"it does not fit this learner: {name!r} is {'missing' if name in live else 'unknown'}; "
            "build the same networks with the same meta-optimizer"
        )
    for name, value in live.items():
        if saved[name].shape != value.shape or saved[name].is_floating_point() != value.is_floating_point():
            raise ValueError(
                f"it does not fit this learner: expected {name!r} to be {value.dtype} "
                f"{list(value.shape)}, got {saved[name].dtype} {list(saved[name].shape)}"
            )
