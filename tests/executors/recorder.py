"""A stand-in for CUDA graphs on a CPU: it records what a CUDA graph could capture, as far as a CPU can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Outputs = dict[str, Tensor]

# Operators that synchronise with the device, or whose result's shape depends on values.
SYNCHRONISING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::equal",
    "aten::is_nonzero",
    "aten::lift_fresh",  # torch.tensor(numbers): a copy from host memory
}
HOST = {"item", "tolist", "numpy", "cpu", "cuda", "__bool__", "__float__", "__int__", "__index__"}


class HostAccess(RuntimeError):
    """A recorded function needs the host."""


class _NoHostOperators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in SYNCHRONISING:
            raise HostAccess(f"{name} in a recorded function")
        masks = args[1] if name in ("aten::index", "aten::index_put", "aten::index_put_") else ()
        if any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in masks):
            raise HostAccess(f"{name} by a mask in a recorded function")
        device = (kwargs or {}).get("device")
        if name == "aten::_to_copy" and device is not None and torch.device(device) != args[0].device:
            raise HostAccess("a copy to another device in a recorded function")
        return func(*args, **(kwargs or {}))


class _NoHostMethods(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in HOST:
            raise HostAccess(f"Tensor.{func.__name__} in a recorded function")
        return func(*args, **(kwargs or {}))


class StandInRecorder:
    """Record a call, and run the same function over the same buffers when it is replayed.

    While it records nothing may need the host. A capture runs no kernel: so what a function writes in place is put
    back. Python numbers stay what they were at the recording, since the closure is the recorded one.

    Args:
        state: the tensors that the function updates in place.
    """

    def __init__(self, state: list[Tensor]) -> None:
        self.state = state
        self.warmed = self.recorded = self.replayed = 0

    def warm_up(self, run: Callable[[], Outputs]) -> Outputs:
        self.warmed += 1
        return run()

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        before = [x.clone() for x in self.state]
        addresses = [x.data_ptr() for x in self.state]
        with _NoHostMethods(), _NoHostOperators():
            results = run()
        for x, y in zip(self.state, before, strict=True):
            x.copy_(y)
        self.recorded += 1

        def replay() -> None:
            assert [x.data_ptr() for x in self.state] == addresses, "a recorded address has changed"
            for name, value in run().items():
                results[name].copy_(value)
            self.replayed += 1

        return replay, results
