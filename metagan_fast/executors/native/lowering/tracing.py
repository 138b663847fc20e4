"""Shape-specialised tracing of a module with torch.fx: shapes are plain Python numbers during the trace.

Every call also runs on example tensors of arbitrary values, so `x.shape`, `x.size(0)` and all that is computed from
them are numbers, and Python control flow on them works. Reading a tensor's values stops the trace. Examples are not on
the meta device, whose kernels are written in Python and import a compiler, which takes seconds; instead the few
expensive functions only allocate their output.

`fx.Tracer.trace` patches `nn.Module.__call__` and `__getattr__` for the whole process, which breaks other threads. Here
the traced module is a copy: its submodules get subclasses that report their calls, its parameters and buffers become
proxies.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from ...._utils.draws import DrawsRandomNumbersError, NoDraws
from ...._utils.modules import copy_module, use_batch_statistics
from .types import PlanError

_SHAPE_QUERIES = {"size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "is_floating_point"}
"""Functions whose result may be no tensor, since it depends on shapes and dtypes alone."""


class _TensorProxy(fx.Proxy):
    """Proxy of a tensor with an example of its value."""

    value: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        attribute = getattr(self.value, name)
        if callable(attribute) and not isinstance(attribute, Tensor):
            return super().__getattr__(name)  # becomes a method call
        if isinstance(attribute, Tensor):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return attribute

    def __len__(self) -> int:
        return len(self.value)

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.add_(other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.sub_(other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.mul_(other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.div_(other)


class _Tracer(fx.Tracer):
    """Tracer into every submodule; records each node's example `value`, its `layer` and the memory it `wrote`.

    Args:
        network: a private copy of the module; modified.
        example: its input.
        name: what to call it in messages.
    """

    def __init__(self, network: nn.Module, example: Tensor, name: str) -> None:
        super().__init__()
        self.root = network
        self.graph = fx.Graph()
        self.example = example
        self.name = name
        self.submodule_paths = {part: path for path, part in network.named_modules()}
        self.tensor_attrs = {}  # fx.Tracer.create_arg looks up script objects in it
        self.tensors: dict[str, Tensor] = {}
        self.proxies: dict[int, _TensorProxy] = {}  # by the identity of the tensor
        self.inputs = self.create_proxy("placeholder", "inputs", (), {})
        for part, path in self.submodule_paths.items():
            for attribute, value in {**vars(part), **part._parameters, **part._buffers}.items():
                if isinstance(value, Tensor):
                    vars(part)[attribute] = self._proxy_of(value, f"{path}.{attribute}".lstrip("."))
            part.__class__ = self._reporting(type(part))

    def record(self) -> fx.Graph:
        """Call the network and return the graph of its operations."""
        self.create_node("output", "output", (self.create_arg(self.root(self.inputs)),), {})
        return self.graph

    def _proxy_of(self, tensor: Tensor, name: str) -> _TensorProxy:
        if id(tensor) not in self.proxies:
            self.tensors[name] = tensor
            self.proxies[id(tensor)] = self.create_proxy("get_attr", name, (), {})
        return self.proxies[id(tensor)]

    def _reporting(self, kind: type[nn.Module]) -> type[nn.Module]:
        """Return a subclass of `kind` whose calls go through `call_module` and whose attributes accept proxies."""

        def call(part: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self.call_module(part, partial(kind.__call__, part), args, kwargs)

        def set_attribute(part: nn.Module, attribute: str, value: Any) -> None:
            if isinstance(value, fx.Proxy):
                vars(part)[attribute] = value
            else:
                kind.__setattr__(part, attribute, value)

        members = {"__call__": call, "__setattr__": set_attribute, "__module__": kind.__module__}
        return types.new_class(kind.__name__, (kind,), exec_body=lambda namespace: namespace.update(members))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False

    def proxy(self, node: fx.Node) -> _TensorProxy:
        return _TensorProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        if not isinstance(a, Tensor):
            return super().create_arg(a)
        known = self.proxies.get(id(a))
        return self.create_node("get_attr", "constant", (), {}) if known is None else known.node

    def create_proxy(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *rest: Any, **options: Any
    ) -> Any:
        proxy: _TensorProxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)  # type: ignore[assignment]
        example_args, example_kwargs = tree_map(_example_of, (args, kwargs))
        tensors = [leaf for leaf in tree_leaves((example_args, example_kwargs)) if isinstance(leaf, Tensor)]
        versions = [tensor._version for tensor in tensors]
        try:
            value = self._run(kind, target, example_args, example_kwargs)
        except DrawsRandomNumbersError:
            raise PlanError(describe(self.name, *self.layer(), function_name(proxy.node)), _DRAWS) from None
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
            if function_name(proxy.node) not in _SHAPE_QUERIES:
                raise ValueError(f"{function_name(proxy.node)} reads the values of a tensor")
            self.graph.erase_node(proxy.node)
            return value
        proxy.node.meta.update(
            value=value,
            layer=self.layer(),
            wrote=[memory(t) for t, before in zip(tensors, versions, strict=True) if t._version != before],
        )
        proxy.value = value
        return proxy

    def _run(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kind == "placeholder":
            return self.example
        if kind == "get_attr":
            return self.tensors[target]
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return _EXAMPLE_FUNCTIONS.get(target, target)(*args, **kwargs)

    def layer(self) -> tuple[str, type[nn.Module]]:
        """Return the qualified name and type of the innermost module being called."""
        return next(reversed(self.module_stack.values())) if self.module_stack else ("", nn.Module)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except PlanError:
            raise
        except Exception as error:  # user code may raise anything; report the innermost module
            if isinstance(error, DrawsRandomNumbersError):
                error = ValueError(_DRAWS)
            reason = str(error).strip().splitlines()
            described = describe(self.name, self.path_of_module(m), type(m))
            raise PlanError(described, reason[0] if reason else repr(error)) from error


_DRAWS = "it draws random numbers; call .eval() on it, or leave it out"


def trace(module: nn.Module, input_shape: tuple[int, ...], images: int, name: str) -> fx.Graph:
    """Trace a module on `images` rows of `input_shape`; other threads may run the module at the same time.

    Returns:
        The graph. Each node's `meta` holds an example `value`, the calling `layer` and the memory that the node
        `wrote`; parameters are "get_attr" nodes by name.

    Raises:
        PlanError: the module cannot be traced.
    """
    kind = next((p.dtype for p in module.parameters()), torch.get_default_dtype())
    example = torch.zeros((images, *input_shape), dtype=kind)
    with torch.no_grad(), NoDraws():
        try:
            tracer = _Tracer(_blank_copy(module), example, name)
        except Exception as error:
            raise PlanError(describe(name, "", type(module)), f"it cannot be copied ({error})") from error
        graph = tracer.record()
    _check_writes(graph, name)
    return graph


def describe(name: str, path: str, kind: type, function: str = "") -> str:
    """Return a layer's name in messages: the generator's 'blocks.0.pool' (AvgPool2d)."""
    layer = f"the {name}'s {path!r}" if path else f"the {name}"
    return f"{layer} ({kind.__name__}{', ' + function if function else ''})"


def _blank_copy(module: nn.Module) -> nn.Module:
    """Copy a module with uninitialised parameters and with batch norm on batch statistics."""
    return use_batch_statistics(copy_module(module, lambda p: torch.empty(p.shape, dtype=p.dtype)))


def _example_of(argument: Any) -> Any:
    if isinstance(argument, _TensorProxy):
        return argument.value
    return argument.detach().cpu().clone() if isinstance(argument, Tensor) else argument


def _linear_example(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    _check_sizes(input.shape[-1], weight.shape[1])
    return input.new_empty(*input.shape[:-1], weight.shape[0])


def _convolution_example(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, groups: int = 1, **kwargs: Any
) -> Tensor:
    groups = args[3] if len(args) > 3 else groups
    _check_sizes(input.shape[1], weight.shape[1] * groups)
    one_channel = F.conv2d(input[:, :1], weight[:1, :1], None, *args[:3], **kwargs)
    return input.new_empty(len(input), weight.shape[0], *one_channel.shape[2:])


def _transposed_example(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    _check_sizes(input.shape[1], weight.shape[0])
    one_channel = F.conv_transpose2d(
        input[:, :1], weight[:1, :1], None, stride, padding, output_padding, dilation=dilation
    )
    return input.new_empty(len(input), weight.shape[1] * groups, *one_channel.shape[2:])


def _check_sizes(got: int, expected: int) -> None:
    if got != expected:
        raise ValueError(f"it takes {expected} channels or features, not {got}")


_EXAMPLE_FUNCTIONS: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear_example,
    F.conv2d: _convolution_example,
    F.conv_transpose2d: _transposed_example,
}


def memory(value: Any) -> int | None:
    """Return an identifier of a tensor's storage, the same for all its views; None for other values."""
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None


def _check_writes(graph: fx.Graph, name: str) -> None:
    """Raise PlanError if a value is read after it is overwritten: operations of a plan never write in place."""
    nodes = list(graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    for node in nodes:
        for written in node.meta.get("wrote", ()):
            for earlier in nodes[: order[node]]:
                if memory(earlier.meta.get("value")) == written and any(order[u] > order[node] for u in earlier.users):
                    path, kind = node.meta["layer"]
                    raise PlanError(
                        describe(name, path, kind, function_name(node)), "it overwrites a value that is read again"
                    )


def function_name(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
