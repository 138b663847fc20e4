"""Lowering of a module to a plan: trace it, then lower the graph node by node."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from ....flat import FlatLayout
from .builder import Builder, Constant, Parameter, PermutedView, Unsupported
from .layers import LAYERS
from .tensors import TENSORS
from .tracing import describe, function_name, memory, trace
from .types import Plan, PlanError


def make_plan(
    module: nn.Module, layout: FlatLayout, input_shape: Sequence[int], name: str = "network", output: str | None = None
) -> Plan:
    """Lower a module to the operations of the native engine.

    Args:
        module: takes `[n, *input_shape]`.
        layout: the layout of its flat parameters.
        input_shape: `(latent_dim,)` or `(C, H, W)`.
        name: what to call the module in messages.
        output: "images" to require [n, C, H, W], "scores" to require [n] or [n, 1]; None for any output.

    Raises:
        PlanError: the engine does not support a layer; names it and says why.
    """
    if len(input_shape) not in (1, 3):
        raise PlanError(
            describe(name, "", type(module)), f"it takes {['n', *input_shape]}, neither features nor images"
        )
    plans = [_plan(module, layout, tuple(input_shape), images, name, output) for images in (2, 3)]
    if plans[0] != plans[1]:
        raise PlanError(describe(name, "", type(module)), "its computation depends on the number of images")
    return plans[0]


def _plan(
    module: nn.Module, layout: FlatLayout, input_shape: tuple[int, ...], images: int, name: str, output: str | None
) -> Plan:
    graph = trace(module, input_shape, images, name)
    parameters = {n: Parameter(slot.offset, slot.shape) for slot in layout.slots for n in slot.names}
    example = next(node.meta["value"] for node in graph.nodes if node.op == "placeholder")
    builder = Builder(input_shape, images, example.dtype)
    lowered: dict[fx.Node, Any] = {}
    needed = _needed(graph)
    for node in graph.nodes:
        if node not in needed:
            continue
        path, kind = node.meta.get("layer", ("", type(module)))
        called = function_name(node)
        builder.name = path if kind.__module__.startswith("torch.nn") else f"{path}:{called}".lstrip(":")
        try:
            if node.op == "output":
                result = builder.materialize(_result(node, lowered, output))
            else:
                lowered[node] = _lower(node, builder, lowered, parameters)
        except Unsupported as unsupported:
            if kind is nn.Module:  # called outside any layer
                path, kind = "", type(module)
            raise PlanError(describe(name, path, kind, called), str(unsupported)) from None
    return Plan(tuple(builder.values), tuple(builder.operations), builder.input.value, result.value, layout.numel)


def _needed(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that the output depends on."""
    needed = {node for node in graph.nodes if node.op == "output"}
    for node in reversed(graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return needed


def _result(node: fx.Node, lowered: dict[fx.Node, Any], output: str | None) -> PermutedView:
    result = lowered.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
    if not isinstance(result, PermutedView):
        raise Unsupported("it does not return a single tensor that depends on its input")
    if output == "images" and len(result.shape) != 3:
        raise Unsupported(f"it returns {['n', *result.shape]}; expected images [n, C, H, W]")
    if output == "scores" and result.shape not in ((), (1,)):
        raise Unsupported(f"it returns {['n', *result.shape]}; expected scores [n] or [n, 1]")
    return result


def _lower(
    node: fx.Node, builder: Builder, lowered: dict[fx.Node, Any], parameters: dict[str, Parameter]
) -> PermutedView | Parameter | Constant:
    if node.op == "placeholder":
        return builder.input
    if node.op == "get_attr":
        name = str(node.target)
        return parameters.get(name) or Constant(name)
    args, kwargs = tree_map(lambda a: lowered[a] if isinstance(a, fx.Node) else a, (node.args, node.kwargs))
    operands = tree_leaves((args, kwargs))
    if not any(isinstance(x, PermutedView) for x in operands):
        return _lower_parameter_view(node, args[0])
    value = node.meta["value"]
    if not isinstance(value, Tensor) or value.shape[:1] != (builder.images,):
        raise Unsupported("it mixes the images of a batch, or returns several tensors")
    if value.dtype != builder.dtype:
        raise Unsupported(f"it changes {builder.dtype} to {value.dtype}")
    rule = LAYERS.find(node.op, node.target) or TENSORS.find(node.op, node.target)
    if rule is None:
        raise Unsupported("the native engine does not support it")
    builder.output_shape = tuple(value.shape[1:])
    try:
        return rule(builder, *args, **kwargs)
    except Unsupported as unsupported:
        constants = [x.name for x in operands if isinstance(x, Constant)]
        raise (
            Unsupported(f"{unsupported} (it reads {constants[0]!r}, no parameter)") if constants else unsupported
        ) from None
    except TypeError as error:
        raise Unsupported(f"it is called with arguments that the native engine does not support ({error})") from error


def _lower_parameter_view(node: fx.Node, source: Any) -> Parameter:
    """Return a contiguous view of a parameter, in its new shape.

    Raises:
        Unsupported: anything else that is computed from parameters and constants alone.
    """
    value = node.meta["value"]
    if isinstance(source, Parameter) and isinstance(value, Tensor) and not node.meta["wrote"]:
        same_memory = memory(value) == memory(node.all_input_nodes[0].meta["value"])
        if same_memory and value.is_contiguous() and value.numel() == math.prod(source.shape):
            return Parameter(source.offset, tuple(value.shape))
    raise Unsupported(
        "it computes with parameters or constants outside a layer (a weight that is scaled or normalised, say)"
    )
