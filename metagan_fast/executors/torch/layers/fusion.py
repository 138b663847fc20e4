"""Fusion of a layer with the activation that follows it, detected while the network runs.

A layer's function is called before its activation's, so it cannot know it. The first pass of a network is observed: a
layer whose output is read by an activation in the very next PyTorch call, and by nothing else, is fused from then on.
In later passes its output is a `DeferredOutput` until that call, which runs both in one kernel. If another call comes
first, the layer runs before that call and is no longer fused: a module that changes between passes costs one more
launch, and its results stay correct.
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


class ActivationCall(NamedTuple):
    """Arguments of a call of an activation function."""

    input: Any
    activation: Activation
    slope: Tensor | None = None
    in_place: bool = False


@dataclass(frozen=True)
class LayerCall:
    """A per-task layer with its operands, each with tasks first.

    Attributes:
        restore: reshapes the layer's output to the output of the PyTorch function that the layer replaces.
        shape: shape of that function's output.
        dim1_is_output: True if dim 1, PReLU's channel dim, is the output-feature dim.
    """

    layer: task_layers.Layer
    operands: tuple[Tensor, Tensor, Tensor | None]
    restore: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    dim1_is_output: bool = True

    def run(self) -> Tensor:
        """Run the layer without an activation."""
        return self.restore(task_layers.run(self.layer, *self.operands))

    def can_fuse(self, activation_call: ActivationCall) -> bool:
        """Return whether the layer's kernels support the activation, PReLU's slopes included."""
        slope, x = activation_call.slope, self.operands[0]
        if slope is None:
            return True
        if slope.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            return False  # PyTorch raises the error
        return slope.numel() == 1 or (self.dim1_is_output and slope.shape == self.shape[1:2])

    def run_fused(self, activation_call: ActivationCall) -> Tensor:
        """Run the layer and its activation in one kernel."""
        slope, x = activation_call.slope, self.operands[0]
        if slope is not None:
            tasks = x.shape[0]
            slope = slope.to(x.dtype).view(-1).expand(self.shape[1] if self.dim1_is_output else self.shape[-1])
            slope = slope.view(tasks, -1)
        layer = replace(self.layer, activation=activation_call.activation)
        return self.restore(activated_layers.run(layer, *self.operands, slope))


class DeferredOutput(Tensor):
    """Placeholder for the output of a layer that has not run; PyTorch functions materialize it first."""

    _call: LayerCall
    _value: Tensor | None
    _versions: list[int]
    _has_gradients: bool

    @staticmethod
    def __new__(cls, call: LayerCall) -> DeferredOutput:
        x = call.operands[0]
        deferred = Tensor._make_wrapper_subclass(cls, call.shape, dtype=x.dtype, device=x.device)
        deferred._call, deferred._value = call, None
        deferred._versions, deferred._has_gradients = _versions(call), torch.is_grad_enabled()
        return deferred

    def activate(self, activation_call: ActivationCall) -> Tensor:
        """Run the layer with its activation."""
        y = self._call.run_fused(activation_call)
        if activation_call.in_place:
            self._value = y
        return y

    def materialize(self) -> Tensor:
        """Return the layer's output; run the layer if it has not run."""
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
        args, kwargs = tree_map_only(DeferredOutput, DeferredOutput.materialize, (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(
            f"{func} reads a layer's output past __torch_function__; set METAGAN_FAST_TASK_LAYERS=off to run the layer "
            "without fusion"
        )


def materialized(x: Any) -> Any:
    """Return a network's output with every `DeferredOutput` in it materialized."""
    return tree_map_only(DeferredOutput, DeferredOutput.materialize, x)


class Fusion:
    """Fusion state of one network.

    Attributes:
        fused_layers: positions, in call order, of the layers that are fused; None before the first pass.
    """

    def __init__(self) -> None:
        self.fused_layers: set[int] | None = None

    def begin_pass(self) -> ForwardPass:
        """Start a pass of the network: an observed one at first, then fused ones."""
        return _ObservedPass(self) if self.fused_layers is None else _FusedPass(self, self.fused_layers)


class ForwardPass:
    """Hooks on the layers and function calls of one pass of a network."""

    def __init__(self, fusion: Fusion) -> None:
        self._fusion = fusion
        self._layers = 0

    def layer(self, call: LayerCall) -> Tensor:
        """Run a layer, or defer it."""
        self._layers += 1
        return self._run(self._layers, call)

    def _run(self, number: int, call: LayerCall) -> Tensor:
        raise NotImplementedError

    def intercept(self, func: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the result of a function call, or NotImplemented to let PyTorch run it."""
        return NotImplemented

    def end(self) -> None:
        """Finish a pass that raised no error."""


class _ObservedPass(ForwardPass):
    """The first pass: runs every layer alone, and detects the layers to fuse."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__(fusion)
        self._last: tuple[int, LayerCall, Tensor] | None = None
        self._outputs: dict[int, tuple[int, Tensor]] = {}  # by id; references keep ids unique
        self._found: set[int] = set()

    def _run(self, number: int, call: LayerCall) -> Tensor:
        output = call.run()
        self._last = number, call, output
        return output

    def intercept(self, func: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        last, self._last = self._last, None
        for leaf in tree_leaves((args, kwargs)):
            number, _ = self._outputs.get(id(leaf), (None, None))
            self._found.discard(number)
        activation_call = None if last is None else _parse_activation(func, args, kwargs)
        if last is not None and activation_call is not None:
            number, call, output = last
            if activation_call.input is output and call.can_fuse(activation_call):
                self._found.add(number)
                if not activation_call.in_place:  # in place, later readers get the activation's result
                    self._outputs[id(output)] = number, output
        return NotImplemented

    def end(self) -> None:
        self._fusion.fused_layers = self._found


class _FusedPass(ForwardPass):
    """A later pass: defers the fused layers until their activations are called."""

    def __init__(self, fusion: Fusion, found: set[int]) -> None:
        super().__init__(fusion)
        self._found = found
        self._pending: tuple[int, DeferredOutput] | None = None

    def _run(self, number: int, call: LayerCall) -> Tensor:
        if number not in self._found:
            return call.run()
        deferred = DeferredOutput(call)
        self._pending = number, deferred
        return deferred

    def intercept(self, func: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self._pending is None:
            return NotImplemented
        (number, deferred), self._pending = self._pending, None
        activation_call = _parse_activation(func, args, kwargs)
        if (
            activation_call is not None
            and activation_call.input is deferred
            and deferred._call.can_fuse(activation_call)
        ):
            return deferred.activate(activation_call)
        deferred.materialize()
        self._found.discard(number)
        return NotImplemented


def _versions(call: LayerCall) -> list[int]:
    """Return the version counters of the operands, which count in-place writes."""
    return [_unwrapped(x)._version for x in call.operands if x is not None]


def _unwrapped(x: Tensor) -> Tensor:
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def _plain(name: str, in_place: bool = False) -> Callable[..., ActivationCall]:
    """Return a parser for calls of an activation without parameters."""

    def parse(input: Any, inplace: bool = False) -> ActivationCall:
        return ActivationCall(input, Activation(name), in_place=in_place or inplace)

    return parse


def _leaky_relu(in_place: bool = False) -> Callable[..., ActivationCall | None]:
    def parse(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> ActivationCall | None:
        if not isinstance(negative_slope, int | float) or negative_slope < 0:
            return None  # the sign of the output determines the derivative only for slopes of at least 0
        return ActivationCall(input, Activation("leaky_relu", (float(negative_slope),)), in_place=in_place or inplace)

    return parse


def _elu(in_place: bool = False) -> Callable[..., ActivationCall | None]:
    def parse(input: Any, alpha: float = 1.0, inplace: bool = False) -> ActivationCall | None:
        if not isinstance(alpha, int | float) or alpha <= 0:
            return None
        return ActivationCall(input, Activation("elu", (float(alpha),)), in_place=in_place or inplace)

    return parse


def _prelu(input: Any, weight: Any) -> ActivationCall | None:
    one_each = isinstance(weight, Tensor) and weight.ndim <= 1
    return ActivationCall(input, Activation("prelu"), weight) if one_each else None


def _gelu(input: Any, *, approximate: str = "none") -> ActivationCall | None:
    return ActivationCall(input, Activation("gelu")) if approximate == "none" else None


def _softplus(input: Any, beta: Any = 1.0, threshold: Any = 20.0) -> ActivationCall | None:
    if (
        not isinstance(beta, int | float)
        or beta <= 0
        or threshold != 20
        or (isinstance(input, Tensor) and torch.is_autocast_enabled(input.device.type))
    ):
        return None  # autocast runs softplus in float32
    return ActivationCall(input, Activation("softplus", (float(beta),)))


_ACTIVATION_PARSERS: dict[Callable, Callable[..., ActivationCall | None]] = {
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


def _parse_activation(func: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ActivationCall | None:
    """Return the activation that a function call computes, or None."""
    parser = _ACTIVATION_PARSERS.get(func)
    if parser is None:
        return None
    try:
        return parser(*args, **kwargs)
    except TypeError:  # arguments that the parser does not know
        return None
