"""Pairs of a layer and the activation that follows it, found while a network runs, so that later they run as one.

A layer's function is called before its activation's, and alone does not know of it. So the first pass of a network is
watched: a layer whose output goes to an activation in the very next call of PyTorch, and nowhere else, makes a pair. In
later passes its output is `Deferred` until that call, which runs both. Should another call come instead, the layer runs
at once, before that call, and is no pair from then on: what a module does in between, or does differently from pass to
pass, costs a launch and is never wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from . import activated_layers, task_layers
from .activations import Activation


class Following(NamedTuple):
    """An activation as it is called."""

    input: Any
    activation: Activation
    slope: Tensor | None = None
    in_place: bool = False


@dataclass(frozen=True)
class Call:
    """A layer with its operands, each with tasks first.

    Attributes:
        join: makes the layer's output that of the function which the layer stands in for.
        shape: of that output.
        channels: which of its dimensions a PReLU would take for its channels is that of the layer's outputs.
    """

    layer: task_layers.Layer
    operands: tuple[Tensor, Tensor, Tensor | None]
    join: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    channels: bool = True

    def run(self) -> Tensor:
        """Run the layer alone."""
        return self.join(task_layers.run(self.layer, *self.operands))

    def takes(self, following: Following) -> bool:
        """Return whether the layer can run together with an activation."""
        slope, x = following.slope, self.operands[0]
        if slope is None:
            return True
        if slope.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            return False  # PyTorch says what is wrong
        return slope.numel() == 1 or (self.channels and slope.shape == self.shape[1:2])

    def run_with(self, following: Following) -> Tensor:
        """Run the layer and its activation."""
        slope, x = following.slope, self.operands[0]
        if slope is not None:
            tasks = x.shape[0]
            slope = slope.to(x.dtype).view(-1).expand(self.shape[1] if self.channels else self.shape[-1])
            slope = slope.view(tasks, -1)
        layer = replace(self.layer, activation=following.activation)
        return self.join(activated_layers.run(layer, *self.operands, slope))


class Deferred(Tensor):
    """The output of a layer that has not run yet. Any function of PyTorch but the activation gets the real one."""

    _call: Call
    _value: Tensor | None
    _versions: list[int]
    _has_gradients: bool

    @staticmethod
    def __new__(cls, call: Call) -> Deferred:
        x = call.operands[0]
        deferred = Tensor._make_wrapper_subclass(cls, call.shape, dtype=x.dtype, device=x.device)
        deferred._call, deferred._value = call, None
        deferred._versions, deferred._has_gradients = _versions(call), torch.is_grad_enabled()
        return deferred

    def activate(self, following: Following) -> Tensor:
        """Run the layer with its activation."""
        y = self._call.run_with(following)
        if following.in_place:
            self._value = y
        return y

    def settle(self) -> Tensor:
        """Return the layer's output, which runs it if nothing has."""
        if self._value is None:
            if self._versions != _versions(self._call):
                raise RuntimeError(
                    "a layer's output is read after its activation, as it was not in the first pass, and its input has "
                    "been overwritten since; set METAGAN_FAST_TASK_LAYERS=off"
                )
            with torch.set_grad_enabled(self._has_gradients):
                self._value = self._call.run()
        return self._value

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map_only(Deferred, Deferred.settle, (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} reads a layer's output by a way round PyTorch's functions")


def settled(x: Any) -> Any:
    """Return what a network returns with every layer run."""
    return tree_map_only(Deferred, Deferred.settle, x)


class Pairs:
    """The pairs of one network, by the number of the layer in a pass; None until a pass has been watched."""

    def __init__(self) -> None:
        self.found: set[int] | None = None

    def begin(self) -> Pass:
        """Return what accompanies a pass of the network."""
        return _Watching(self) if self.found is None else _Fusing(self, self.found)


class Pass:
    """What happens to layers and other functions in one pass of a network."""

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs
        self._layers = 0

    def layer(self, call: Call) -> Tensor:
        """Run a layer, or put it off."""
        self._layers += 1
        return self._run(self._layers, call)

    def _run(self, number: int, call: Call) -> Tensor:
        raise NotImplementedError

    def before(self, func: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Look at a function that is called next: return its result, or NotImplemented to have it called."""
        return NotImplemented

    def end(self) -> None:
        """Finish a pass without errors."""


class _Watching(Pass):
    """Run everything one by one, and find the pairs."""

    def __init__(self, pairs: Pairs) -> None:
        super().__init__(pairs)
        self._last: tuple[int, Call, Tensor] | None = None
        self._outputs: dict[int, tuple[int, Tensor]] = {}  # of pairs, by identity; held, so that none is another's
        self._found: set[int] = set()

    def _run(self, number: int, call: Call) -> Tensor:
        output = call.run()
        self._last = number, call, output
        return output

    def before(self, func: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        last, self._last = self._last, None
        for leaf in tree_leaves((args, kwargs)):
            number, _ = self._outputs.get(id(leaf), (None, None))
            self._found.discard(number)
        following = None if last is None else _following(func, args, kwargs)
        if last is not None and following is not None:
            number, call, output = last
            if following.input is output and call.takes(following):
                self._found.add(number)
                if not following.in_place:  # else the output is the activation's from here on
                    self._outputs[id(output)] = number, output
        return NotImplemented

    def end(self) -> None:
        self._pairs.found = self._found


class _Fusing(Pass):
    """Put off the layers of pairs until their activations are called."""

    def __init__(self, pairs: Pairs, found: set[int]) -> None:
        super().__init__(pairs)
        self._found = found
        self._pending: tuple[int, Deferred] | None = None

    def _run(self, number: int, call: Call) -> Tensor:
        if number not in self._found:
            return call.run()
        deferred = Deferred(call)
        self._pending = number, deferred
        return deferred

    def before(self, func: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self._pending is None:
            return NotImplemented
        (number, deferred), self._pending = self._pending, None
        following = _following(func, args, kwargs)
        if following is not None and following.input is deferred and deferred._call.takes(following):
            return deferred.activate(following)
        deferred.settle()
        self._found.discard(number)
        return NotImplemented


def _versions(call: Call) -> list[int]:
    """Return how often each operand's memory has been written to."""
    return [_memory(x)._version for x in call.operands if x is not None]


def _memory(x: Tensor) -> Tensor:
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def _plain(name: str, in_place: bool = False) -> Callable[..., Following]:
    """Return how to read the call of an activation without numbers."""

    def read(input: Any, inplace: bool = False) -> Following:
        return Following(input, Activation(name), in_place=in_place or inplace)

    return read


def _leaky_relu(in_place: bool = False) -> Callable[..., Following | None]:
    def read(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Following | None:
        if not isinstance(negative_slope, int | float) or negative_slope < 0:
            return None  # below 0 the output does not tell the side of the kink
        return Following(input, Activation("leaky_relu", (float(negative_slope),)), in_place=in_place or inplace)

    return read


def _elu(in_place: bool = False) -> Callable[..., Following | None]:
    def read(input: Any, alpha: float = 1.0, inplace: bool = False) -> Following | None:
        if not isinstance(alpha, int | float) or alpha <= 0:
            return None
        return Following(input, Activation("elu", (float(alpha),)), in_place=in_place or inplace)

    return read


def _prelu(input: Any, weight: Any) -> Following | None:
    one_each = isinstance(weight, Tensor) and weight.ndim <= 1
    return Following(input, Activation("prelu"), weight) if one_each else None


def _gelu(input: Any, *, approximate: str = "none") -> Following | None:
    return Following(input, Activation("gelu")) if approximate == "none" else None


def _softplus(input: Any, beta: Any = 1.0, threshold: Any = 20.0) -> Following | None:
    if (
        not isinstance(beta, int | float)
        or beta <= 0
        or threshold != 20
        or (isinstance(input, Tensor) and torch.is_autocast_enabled(input.device.type))
    ):
        return None  # under autocast its result is float32
    return Following(input, Activation("softplus", (float(beta),)))


_READERS: dict[Callable, Callable[..., Following | None]] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _plain("relu")),
    **dict.fromkeys((torch.relu_, Tensor.relu_), _plain("relu", in_place=True)),
    **dict.fromkeys((torch.tanh, Tensor.tanh), _plain("tanh")),
    **dict.fromkeys((torch.tanh_, Tensor.tanh_), _plain("tanh", in_place=True)),
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid), _plain("sigmoid")),
    **dict.fromkeys((torch.sigmoid_, Tensor.sigmoid_), _plain("sigmoid", in_place=True)),
    **dict.fromkeys((torch.prelu, Tensor.prelu), _prelu),
    F.silu: _plain("silu"),
    F.leaky_relu: _leaky_relu(),
    F.leaky_relu_: _leaky_relu(in_place=True),
    F.elu: _elu(),
    F.elu_: _elu(in_place=True),
    F.gelu: _gelu,
    F.softplus: _softplus,
}


def _following(func: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Following | None:
    """Read a call: the activation that it is, or None."""
    reader = _READERS.get(func)
    if reader is None:
        return None
    try:
        return reader(*args, **kwargs)
    except TypeError:  # of no arguments that are known here
        return None
