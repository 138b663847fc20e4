"""The functions that the engine knows, each with a converter to operations whose arguments are the function's own."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .builder import Arrangement, Builder, Parameter, Refusal
from .positions import position_map
from .types import ACTIVATIONS

Pair = int | Sequence[int]
Converter = Callable[..., Arrangement]

_FUNCTIONS: dict[Any, Converter] = {}
_METHODS: dict[str, Converter] = {}


def find(op: str, target: Any) -> Converter | None:
    """Return the converter of a node of a traced graph."""
    return _METHODS.get(target) if op == "call_method" else _FUNCTIONS.get(target)


def _register(converter: Converter, *targets: Any) -> None:
    """Enter a converter in the tables, under functions and under the names of tensor methods."""
    for target in targets:
        (_METHODS if isinstance(target, str) else _FUNCTIONS)[target] = converter


def _converts(*targets: Any) -> Callable[[Converter], Converter]:
    def enter(converter: Converter) -> Converter:
        _register(converter, *targets)
        return converter

    return enter


def _refuse_unless(condition: bool, reason: str) -> None:
    if not condition:
        raise Refusal(reason)


def _tensor(x: Any) -> Arrangement:
    _refuse_unless(isinstance(x, Arrangement), "its input is not a tensor of the network")
    return x


def _refuse_unless_images(x: Any) -> None:
    _refuse_unless(len(_tensor(x).shape) == 3, "it needs images [n, C, H, W]")


def _parameters(*values: Any) -> list[Parameter | None]:
    ours = all(value is None or isinstance(value, Parameter) for value in values)
    _refuse_unless(ours, "its weights are computed, not parameters")
    return list(values)


def _pair(value: Pair) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    height, width = value if len(value) == 2 else (value[0], value[0])
    return height, width


# Linear maps


@_converts(F.conv2d)
def _convolution(
    b: Builder,
    input: Arrangement,
    weight: Parameter,
    bias: Parameter | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Arrangement:
    _refuse_unless(groups == 1, f"groups={groups}; only 1 is known")
    parameters = _parameters(weight, bias)
    kernel = weight.shape[2:]
    strides, dilations = _pair(stride), _pair(dilation)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        _refuse_unless(all(t % 2 == 0 for t in total), 'padding="same" with a kernel of even size pads unevenly')
        padding = [t // 2 for t in total]
    pads = (0, 0) if isinstance(padding, str) else _pair(padding)
    _refuse_unless_images(input)
    return b.emit("convolution", [input], parameters=parameters, integers=(*kernel, *strides, *pads, *dilations))


@_converts(F.conv_transpose2d)
def _transposed_convolution(
    b: Builder,
    input: Arrangement,
    weight: Parameter,
    bias: Parameter | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,  # shows in the shape of the output
    groups: int = 1,
    dilation: Pair = 1,
) -> Arrangement:
    _refuse_unless(groups == 1, f"groups={groups}; only 1 is known")
    parameters = _parameters(weight, bias)
    integers = (*weight.shape[2:], *_pair(stride), *_pair(padding), *_pair(dilation))
    _refuse_unless_images(input)
    return b.emit("transposed_convolution", [input], parameters=parameters, integers=integers)


_ONE_BY_ONE = (1, 1, 1, 1, 0, 0, 1, 1)


@_converts(F.linear)
def _linear(b: Builder, input: Arrangement, weight: Parameter, bias: Parameter | None = None) -> Arrangement:
    parameters = _parameters(weight, bias)
    _refuse_unless(len(_tensor(input).shape) == 1, "it needs features [n, F]; flatten its input")
    return b.emit("convolution", [input], parameters=parameters, integers=_ONE_BY_ONE)


@_converts(torch.matmul, torch.mm, torch.mv, operator.matmul, "matmul", "mm", "mv")
def _product(b: Builder, input: Arrangement, weight: Parameter) -> Arrangement:
    """Convert `x @ w`: a matrix [in, out] is a transposed convolution, a vector [in] a convolution to one channel."""
    parameters = _parameters(weight)
    _refuse_unless(len(_tensor(input).shape) == 1, "it needs features [n, F] on the left")
    kind = "convolution" if len(weight.shape) == 1 else "transposed_convolution"
    return b.emit(kind, [input], parameters=[*parameters, None], integers=_ONE_BY_ONE)


# Normalisation


def _normalize(
    b: Builder,
    x: Arrangement,
    weight: Parameter | None,
    bias: Parameter | None,
    eps: float,
    *,
    channels: int,
    positions: int,
    across_images: bool = False,
    per_element: bool = False,
) -> Arrangement:
    parameters = _parameters(weight, bias)
    sizes = [math.prod(p.shape) for p in parameters if p is not None]
    affine = (2 if per_element else 1) if sizes else 0
    integers = (channels, positions, across_images, affine, max(sizes, default=0))
    return b.emit("normalization", [x], parameters=parameters, integers=integers, numbers=[eps])


@_converts(F.layer_norm)
def _layer_norm(
    b: Builder,
    input: Arrangement,
    normalized_shape: Sequence[int],
    weight: Parameter | None = None,
    bias: Parameter | None = None,
    eps: float = 1e-5,
) -> Arrangement:
    shape = _tensor(input).shape
    trailing = len(normalized_shape)
    _refuse_unless(trailing <= len(shape), "it normalises over the images of a batch")
    channels = shape[0] if trailing == len(shape) else 1
    positions = math.prod(shape[-trailing:]) // channels
    return _normalize(b, input, weight, bias, eps, channels=channels, positions=positions, per_element=True)


@_converts(F.group_norm)
def _group_norm(
    b: Builder,
    input: Arrangement,
    num_groups: int,
    weight: Parameter | None = None,
    bias: Parameter | None = None,
    eps: float = 1e-5,
) -> Arrangement:
    shape = _tensor(input).shape
    return _normalize(b, input, weight, bias, eps, channels=shape[0] // num_groups, positions=math.prod(shape[1:]))


@_converts(F.instance_norm)
def _instance_norm(
    b: Builder,
    input: Arrangement,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Parameter | None = None,
    bias: Parameter | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Arrangement:
    _refuse_unless(use_input_stats, "it normalises by running statistics")
    _refuse_unless_images(input)
    return _normalize(b, input, weight, bias, eps, channels=1, positions=math.prod(input.shape[1:]))


@_converts(F.batch_norm)
def _batch_norm(
    b: Builder,
    input: Arrangement,
    running_mean: Any,
    running_var: Any,
    weight: Parameter | None = None,
    bias: Parameter | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Arrangement:
    _refuse_unless(training, "it normalises by running statistics")
    positions = math.prod(_tensor(input).shape[1:])
    return _normalize(b, input, weight, bias, eps, channels=1, positions=positions, across_images=True)


# Functions of one element


def _activation(b: Builder, x: Arrangement, name: str, *numbers: float, slope: Parameter | None = None) -> Arrangement:
    slopes = math.prod(slope.shape) if slope is not None else 0
    return b.emit(
        "activation",
        [_tensor(x)],
        parameters=_parameters(slope) if slope is not None else (),
        integers=(ACTIVATIONS.index(name), slopes),
        numbers=numbers,
    )


_register(lambda b, input, inplace=False: _activation(b, input, "relu"), F.relu, torch.relu, torch.relu_)
_register(lambda b, input: _activation(b, input, "relu"), "relu", "relu_")
_register(
    lambda b, input, negative_slope=0.01, inplace=False: _activation(b, input, "leaky_relu", negative_slope),
    F.leaky_relu,
    F.leaky_relu_,
)
_register(
    lambda b, input, alpha=1.0, inplace=False: _activation(b, input, "elu", alpha),
    *(F.elu, F.elu_),
)
_register(lambda b, input, inplace=False: _activation(b, input, "silu"), F.silu)
_register(
    lambda b, input, *, approximate="none": _activation(b, input, "gelu" if approximate == "none" else "gelu_tanh"),
    F.gelu,
)
_register(
    lambda b, input, beta=1.0, threshold=20.0: _activation(b, input, "softplus", beta, threshold),
    F.softplus,
)
_register(lambda b, input: _activation(b, input, "tanh"), torch.tanh, F.tanh, "tanh", "tanh_")
_register(lambda b, input: _activation(b, input, "sigmoid"), torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_")


@_converts(F.prelu, torch.prelu, "prelu")
def _prelu(b: Builder, input: Arrangement, weight: Parameter) -> Arrangement:
    _parameters(weight)
    return _activation(b, input, "prelu", slope=weight)


@_converts(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
def _dropout(
    b: Builder, input: Arrangement, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Arrangement:
    _refuse_unless(not training or p == 0, "it draws random numbers; call .eval() on it, or leave it out")
    return input


# Maps of positions


def _maps_positions(function: Callable[..., Tensor]) -> Converter:
    def convert(b: Builder, input: Arrangement, *args: Any, **kwargs: Any) -> Arrangement:
        shape = _tensor(input).shape
        _refuse_unless(len(shape) == len(b.output_shape) == 3, "it needs images [n, C, H, W]")
        found = None
        if shape[0] == b.output_shape[0]:
            found = position_map(lambda images: function(images, *args, **kwargs), *shape[1:])
        if found is None:
            raise Refusal("it is no linear map along rows and columns")
        return b.emit("resample", [input], integers=(*found.offsets, *found.columns), numbers=found.weights)

    return convert


for _function in (F.interpolate, F.avg_pool2d, F.adaptive_avg_pool2d, F.pad):
    _register(_maps_positions(_function), _function)


@_converts(F.max_pool2d, torch.max_pool2d)
def _max_pool(
    b: Builder,
    input: Arrangement,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,  # shows in the shape of the output
    return_indices: bool = False,
) -> Arrangement:
    _refuse_unless_images(input)
    kernel = _pair(kernel_size)
    strides = _pair(stride) if stride else kernel
    return b.emit("max_pool", [input], integers=(*kernel, *strides, *_pair(padding), *_pair(dilation)))


@_converts(F.adaptive_max_pool2d)
def _adaptive_max_pool(b: Builder, input: Arrangement, output_size: Any, return_indices: bool = False) -> Arrangement:
    _refuse_unless_images(input)
    sides = list(zip(input.shape[1:], b.output_shape[1:], strict=True))
    _refuse_unless(all(size % out == 0 for size, out in sides), "the output's size does not divide the input's")
    kernel = tuple(size // out for size, out in sides)
    return b.emit("max_pool", [input], integers=(*kernel, *kernel, 0, 0, 1, 1))


def _reduces(mean: bool) -> Converter:
    def convert(
        b: Builder, input: Arrangement, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
    ) -> Arrangement:
        x = _tensor(input).index
        dims = [dim] if isinstance(dim, int) else list(dim or ())
        dims = sorted(d % (x.ndim + 1) - 1 for d in dims)
        _refuse_unless(bool(dims) and dims[0] >= 0, "it mixes the images of a batch")
        count = math.prod(x.shape[d] for d in dims)
        kept = x.movedim(dims, list(range(x.ndim - len(dims), x.ndim))).reshape(-1, count)
        value = b.values[input.value]
        source = Arrangement.of(input.value, kept.unsqueeze(-1))
        if source.places is None and len(kept) == value[0]:
            source = Arrangement(input.value, value)
        weight = 1 / count if mean else 1.0
        result = b.emit(
            *("resample", [source]),
            shape=(kept.shape[0], 1, 1),
            integers=(0, count, *range(count)),
            numbers=[weight] * count,
        )
        return Arrangement(result.value, b.output_shape)

    return convert


_register(_reduces(mean=True), torch.mean, "mean")
_register(_reduces(mean=False), torch.sum, "sum")


# Rearrangements


def _rearranges(function: Callable[..., Tensor]) -> Converter:
    """Convert by doing the same to the places of the elements."""

    def convert(b: Builder, input: Arrangement, *args: Any, **kwargs: Any) -> Arrangement:
        x = _tensor(input).index
        images = torch.arange(b.images, dtype=torch.float64).view(-1, *[1] * x.ndim)
        places = function(x + images * x.numel(), *args, **kwargs)
        first = places[0]
        same = places.shape[1:] == b.output_shape and torch.equal(
            places, first + images.view(-1, *[1] * first.ndim) * x.numel()
        )
        _refuse_unless(same, "it mixes the images of a batch")
        complete = torch.equal(first.flatten().sort().values, torch.arange(x.numel(), dtype=first.dtype))
        _refuse_unless(complete, "it keeps only some elements, or repeats them")
        return Arrangement.of(input.value, first.long())

    return convert


_BOTH = ("reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "squeeze", "unsqueeze")
for _name in (*_BOTH, "movedim", "flip", "roll", "clone"):
    _register(_rearranges(getattr(torch, _name)), getattr(torch, _name))
    _register(_rearranges(getattr(Tensor, _name)), _name)
for _name in ("view", "contiguous"):  # where a view is possible, it is what reshape returns
    _register(_rearranges(getattr(Tensor, "reshape" if _name == "view" else _name)), _name)
for _rearrangement in (F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, operator.getitem):
    _register(_rearranges(_rearrangement), _rearrangement)


@_converts("view_as", "reshape_as")
def _view_as(b: Builder, input: Arrangement, other: Arrangement) -> Arrangement:
    return _rearranges(Tensor.reshape)(b, input, (-1, *b.output_shape))


@_converts("to", "float", "type_as", "double")
def _to(b: Builder, input: Arrangement, *args: Any, **kwargs: Any) -> Arrangement:
    return input


# Several inputs


def _combine(b: Builder, terms: Sequence[tuple[Arrangement, float]], constant: float = 0.0) -> Arrangement:
    same = all(x.shape == b.output_shape for x, _ in terms)
    _refuse_unless(
        same, f"it combines tensors of different shapes, {' and '.join(str(['n', *x.shape]) for x, _ in terms)}"
    )
    return b.emit("combine", [x for x, _ in terms], numbers=[*(factor for _, factor in terms), constant])


def _sum(b: Builder, x: Any, y: Any, of_x: float, of_y: float) -> Arrangement:
    """Return of_x * x + of_y * y, either of which may be a number."""
    terms = [(v, f) for v, f in ((x, of_x), (y, of_y)) if isinstance(v, Arrangement)]
    numbers = [v * f for v, f in ((x, of_x), (y, of_y)) if isinstance(v, int | float)]
    _refuse_unless(len(terms) + len(numbers) == 2, "it adds a parameter or a constant tensor")
    return _combine(b, terms, sum(numbers))


_register(
    lambda b, input, other, *, alpha=1: _sum(b, input, other, 1.0, alpha),
    *(operator.add, operator.iadd, torch.add, "add", "add_"),
)
_register(
    lambda b, input, other, *, alpha=1: _sum(b, input, other, 1.0, -alpha),
    *(operator.sub, torch.sub, torch.subtract, "sub", "sub_"),
)
_register(lambda b, input, other, *, alpha=1: _sum(b, input, other, -alpha, 1.0), torch.rsub, "rsub")
_register(lambda b, input: _combine(b, [(_tensor(input), -1.0)]), operator.neg, torch.neg, torch.negative, "neg")


@_converts(operator.mul, torch.mul, torch.multiply, "mul", "mul_", "multiply")
def _times(b: Builder, input: Any, other: Any) -> Arrangement:
    if isinstance(input, int | float):
        input, other = other, input
    _refuse_unless(isinstance(other, int | float), "it multiplies two tensors")
    return _combine(b, [(_tensor(input), other)])


@_converts(operator.truediv, torch.div, torch.divide, torch.true_divide, "div", "div_", "divide", "true_divide")
def _divide(b: Builder, input: Any, other: Any) -> Arrangement:
    _refuse_unless(isinstance(other, int | float), "it divides by a tensor")
    return _combine(b, [(_tensor(input), 1 / other)])


@_converts(torch.cat, torch.concat, torch.concatenate)
def _concatenate(b: Builder, tensors: Sequence[Arrangement], dim: int = 0) -> Arrangement:
    for x in tensors:
        _tensor(x)
    axis = dim % (len(b.output_shape) + 1) - 1
    _refuse_unless(axis >= 0, "it mixes the images of a batch")
    inputs = [Arrangement.of(x.value, x.index.movedim(axis, 0)) if axis else x for x in tensors]
    shape = list(b.output_shape)
    moved = (shape.pop(axis), *shape)
    result = b.emit("concatenate", inputs, shape=moved)
    return Arrangement.of(result.value, result.index.movedim(0, axis)) if axis else result
