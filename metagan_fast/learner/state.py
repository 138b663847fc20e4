"""State of meta-training: the initialisation, the meta-optimizer's buffers, persistent inner optimizers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._utils import coerce
from .._utils.modules import Snapshot
from .._utils.pair import ROLES, Pair
from ..executors import Network
from ..inner import OPTIMIZERS, InnerLoop, TrainState
from .meta_optimizer import MetaOptimizer

_AVERAGE = "average."  # prefix of the names of averaged networks


@dataclass(frozen=True)
class _RollbackPoint:
    """Copy of a learner's state before a meta-step's updates; the next one overwrites it."""

    step: int
    updates: int
    carried: Pair[TrainState] | None
    tensors: Sequence[Tensor]


class LearnerState:
    """Tensors and counters of a learner: they follow its modules across devices and are saved by name.

    The modules' parameters become views of `initial`. A copy, pickled ones included, owns its modules and buffers.
    Updates in `with state.atomic():`, each after `begin_update`, happen together or not at all.

    Args:
        modules: generator and discriminator.
        meta: the meta-optimizer, which defines the buffers.
        inner: the inner loop, whose optimizer state may persist.

    Attributes:
        networks: the modules and their layouts.
        initial: the initialisation of both, `[numel]` each.
        buffers: buffers of the meta-optimizer, by network.
        carried: with `inner_state="persist"`, the final state of the last inner loop.
        step, updates: completed meta-steps, and updates by the meta-optimizer (several in a serial meta-step).

    Raises:
        ValueError: parameters of several dtypes or devices, or one that both networks share.
    """

    def __init__(self, modules: Pair[nn.Module], meta: MetaOptimizer, inner: InnerLoop) -> None:
        self.networks = modules.map(Network.of)
        _check_not_shared(*modules)
        self.initial = self._bind()
        self._snapshots = modules.map(Snapshot)
        self.buffers = self.initial.map(meta.initial_state)
        self.carried: Pair[TrainState] | None = None
        self.step = self.updates = 0
        self._rollback: _RollbackPoint | None = None  # set while an update is incomplete
        self._copies: list[Tensor] = []
        self._inner = inner

    def change_settings(self, meta: MetaOptimizer, inner: InnerLoop) -> None:
        """Go on with other settings; another inner optimizer starts afresh.

        Raises:
            ValueError: the meta-optimizer has another number of buffers.
        """
        if meta.buffers != len(self.buffers.generator):
            raise ValueError(
                f"expected a meta-optimizer with {len(self.buffers.generator)} state buffers, as the learner has, got "
                f"{meta.buffers} of {meta.optimizer!r}; build another MetaGAN"
            )
        if (inner.optimizer, inner.inner_state) != (self._inner.optimizer, self._inner.inner_state):
            self.carried = None
        self._inner = inner

    @property
    def modules(self) -> Pair[nn.Module]:
        """The generator and the discriminator."""
        return self.networks.map(lambda network: network.module)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with modules that own their parameters: views would each be pickled as the whole buffer."""
        networks = self.networks.map(Network.instantiate, self.initial)
        return {**self.__dict__, "networks": networks, "initial": None, "_snapshots": None, "_copies": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "networks" not in state:  # a pickle of 0.1: tuples of modules and layouts, and no counters
            networks = Pair(*map(Network, state.pop("modules"), state.pop("layouts")))
            state |= {"networks": networks, "buffers": Pair(*state["buffers"]), "_rollback": None}
        self.__dict__.update(state)
        self.initial = self._bind()
        self._snapshots = self.modules.map(Snapshot)

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
        bound = all(self.networks.map(Network.is_bound, self.initial))
        if bound and all(snapshot.is_current() for snapshot in self._snapshots):
            return False
        if not bound:
            self._bind_again()
        self._snapshots = self.modules.map(Snapshot)
        return True

    def _bind_again(self) -> None:
        for role, network in self.networks.items():
            if Network.of(network.module).layout != network.layout:
                raise ValueError(
                    f"expected the {role}'s parameters to keep the names and shapes that MetaGAN was built with; "
                    "they have changed: build another MetaGAN for the module"
                )
        _check_not_shared(*self.modules)
        self.initial = self._bind()
        like = self.initial.generator
        self.buffers = self.buffers.map(lambda buffers: tuple(buffer.to(like) for buffer in buffers))
        if self.carried is not None:
            self.carried = self.carried.map(lambda state: state.with_tensors([x.to(like) for x in state.tensors]))

    def _bind(self) -> Pair[Tensor]:
        """Flatten both modules and make their parameters views of the result."""
        initial = self.networks.map(Network.flatten)
        generator, discriminator = initial
        if (generator.dtype, generator.device) != (discriminator.dtype, discriminator.device):
            raise ValueError(
                f"expected both networks in one dtype on one device, got {generator.dtype} on {generator.device} and "
                f"{discriminator.dtype} on {discriminator.device}; call .to() on one of them"
            )
        self.networks.map(Network.bind, initial)
        return initial

    # Atomic updates

    @contextlib.contextmanager
    def atomic(self) -> Iterator[None]:
        """Roll back the updates of a meta-step that an exception ends."""
        if self._rollback is not None:
            self.roll_back()
        try:
            yield
            self._rollback = None
        except BaseException:
            while self._rollback is not None:
                with contextlib.suppress(KeyboardInterrupt):  # the first exception is raised below
                    self.roll_back()
            raise

    def begin_update(self) -> None:
        """Copy everything that an update changes, before the meta-step's first one.

        The copies' memory is kept from call to call: fresh pages would cost more than the copying.
        """
        if self._rollback is not None:
            return
        live = self._updated()
        if list(map(_kind, self._copies)) != list(map(_kind, live)):
            self._copies = [torch.empty_like(tensor) for tensor in live]
        with torch.no_grad():
            for kept, tensor in zip(self._copies, live, strict=True):
                kept.copy_(tensor)
        self._rollback = _RollbackPoint(self.step, self.updates, self.carried, self._copies)

    def roll_back(self) -> None:
        """Restore the state before the meta-step's updates; an interrupted rollback can be repeated."""
        point = self._rollback
        assert point is not None
        with torch.no_grad():
            for live, old in zip(self._updated(), point.tensors, strict=True):
                live.copy_(old)
        self.step, self.updates, self.carried = point.step, point.updates, point.carried
        self._rollback = None

    def _updated(self) -> list[Tensor]:
        """Return the tensors that an update overwrites."""
        return [*self.initial, *(buffer for buffers in self.buffers for buffer in buffers)]

    # Saving

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors of a checkpoint by name, live ones rather than copies, and the counters.

        Raises:
            RuntimeError: called during an update, when the state is partly new.
        """
        if self._rollback is not None:
            raise RuntimeError(
                "expected a complete meta-step, got one whose update is under way; save before meta_step or after it"
            )
        tensors, inner_updates = self._live_tensors(), None
        if self.carried is not None:
            inner_updates = [state.updates for state in self.carried]
            for role, state in self.carried.items():
                tensors |= {f"inner.{role}.{i}": value for i, value in enumerate(state.tensors)}
        step = coerce.count("step", self.step)
        return tensors, {"updates": self.updates, "inner_updates": inner_updates, "step": step}

    def _live_tensors(self) -> dict[str, Tensor]:
        tensors = self._network_tensors()
        for role, buffers in self.buffers.items():
            tensors |= {f"meta.{role}.{i}": value for i, value in enumerate(buffers)}
        return tensors

    def _network_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for role, module in self.modules.items():
            tensors |= {f"{role}.{name}": value for name, value in module.state_dict().items()}
        return tensors

    def save_average(self) -> dict[str, Tensor]:
        """Return the networks under the names of an average in another learner's checkpoint."""
        return {_AVERAGE + name: value for name, value in self._network_tensors().items()}

    def load_networks(self, saved: Mapping[str, Tensor]) -> None:
        """Load both networks; ignore all other tensors.

        Raises:
            ValueError: names, shapes or kinds of dtype differ; nothing is changed.
        """
        live = self._network_tensors()
        _check_fit(live, {name: value for name, value in saved.items() if name.partition(".")[0] in ROLES})
        with torch.no_grad():
            for name, value in live.items():
                value.copy_(saved[name])

    def load(self, saved: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Load the result of `save`; an average is ignored.

        Raises:
            KeyError, ValueError: a counter is missing or damaged, or names, shapes or kinds of dtype differ; nothing is
                changed.
        """
        step, updates = (coerce.count(name, counters[name]) for name in ("step", "updates"))
        inner_updates = counters["inner_updates"]
        persists = self._inner.inner_state == "persist"
        carried = self._carried_names() if persists and inner_updates is not None else None
        live = self._live_tensors()
        like: dict[str, Tensor] = {}
        if carried is not None:
            for params, names in zip(self.initial, carried, strict=True):
                like |= dict.fromkeys(names, params.unsqueeze(0))
        ignored = (_AVERAGE,) if persists else (_AVERAGE, "inner.")
        _check_fit(live | like, {name: value for name, value in saved.items() if not name.startswith(ignored)})
        if carried is not None:
            inner_updates = coerce.counts("inner_updates", inner_updates, len(carried))
        with torch.no_grad():
            for name, value in live.items():
                value.copy_(saved[name])

        def restore(names: list[str], count: int) -> TrainState:
            params, *buffers = (saved[name].to(self.initial.generator) for name in names)
            return TrainState(params, tuple(buffers), count)

        self.carried = None if carried is None else carried.map(restore, inner_updates)
        self.step, self.updates, self._rollback = step, updates, None

    def _carried_names(self) -> Pair[list[str]]:
        """Return the names of each network's persistent inner state."""
        tensors = range(1 + OPTIMIZERS[self._inner.optimizer].buffers(self._inner))
        return ROLES.map(lambda role: [f"inner.{role}.{i}" for i in tensors])


def averaged(saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's tensors with the average, where it has one, in the place of the networks."""
    average = {name.removeprefix(_AVERAGE): value for name, value in saved.items() if name.startswith(_AVERAGE)}
    return {name: average.get(name, value) for name, value in saved.items()}


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
