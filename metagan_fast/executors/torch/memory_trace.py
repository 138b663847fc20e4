"""Peak memory of a function of tensors, found by running it on fake tensors, which have shapes and no values."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...inner import InnerLoop, TrainState


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations make while it is active, as long as they live.

    Attributes:
        live: bytes at the moment.
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = {id(storage) for storage in _storages((args, kwargs))}
        results = func(*args, **(kwargs or {}))
        for storage in _storages(results):
            if id(storage) not in before and id(storage) not in self._known:
                self._begin(storage)
        return results

    def _begin(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        self._known[id(storage)] = weakref.finalize(storage, self._end, id(storage), size)

    def _end(self, key: int, size: int) -> None:
        self.live -= size
        del self._known[key]


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class WithoutUpdates(InnerLoop):
    """Inner loop whose in-place updates, which take no memory, are left out of a trace."""

    def update(self, network: TrainState, grads: Tensor, lr: float, *, in_place: bool) -> TrainState:
        if in_place:
            return network._replace(updates=network.updates + 1)
        return super().update(network, grads, lr, in_place=in_place)


def peak_bytes(make: Callable[[], Any], function: Callable[[Any], object]) -> int:
    """Return the most bytes that `function` holds at once in tensors that it makes; nothing is computed.

    Temporary memory within an operation of PyTorch is not seen.

    Args:
        make: makes the argument, whose tensors are not counted.
        function: is run once on it.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        argument = make()
        with LiveBytes() as counted:
            function(argument)
    return counted.peak
