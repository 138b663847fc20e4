"""Lowering rules of `torch.nn.functional`, the functions that layers call, and of matrix products."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .builder import Builder, Parameter, PermutedView, Unsupported
from .positions import position_map
from .registry import LoweringRule, LoweringRules, as_tensor, offset_of, require, require_images
from .types import ActivationPlan, ConvolutionPlan, MaxPoolPlan, NormalizationPlan, ResamplePlan, Window

LAYERS = LoweringRules()
"""Rules of the functions that layers call."""

Pair = int | Sequence[int]


def _pair(value: Pair) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    height, width = value if len(value) == 2 else (value[0], value[0])
    return height, width


def _windows(kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> tuple[Window, Window]:
    y, x = zip(*map(_pair, (kernel, stride, padding, dilation)), strict=True)
    return Window(*y), Window(*x)


# Linear maps


@LAYERS.lowers(F.conv2d)
def _convolution(
    b: Builder,
    input: PermutedView,
    weight: Parameter,
    bias: Parameter | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> PermutedView:
    require(groups == 1, f"groups={groups}; only 1 is supported")
    offsets = offset_of(weight), offset_of(bias)
    kernel = weight.shape[2:]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(_pair(dilation), kernel, strict=True)]
        require(all(t % 2 == 0 for t in total), 'padding="same" with a kernel of even size pads asymmetrically')
        padding = [t // 2 for t in total]
    windows = _windows(kernel, stride, 0 if isinstance(padding, str) else padding, dilation)
    require_images(input)
    return b.emit(ConvolutionPlan(*windows, *offsets), [input])


@LAYERS.lowers(F.conv_transpose2d)
def _transposed_convolution(
    b: Builder,
    input: PermutedView,
    weight: Parameter,
    bias: Parameter | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,  # implied by the output's shape
    groups: int = 1,
    dilation: Pair = 1,
) -> PermutedView:
    require(groups == 1, f"groups={groups}; only 1 is supported")
    offsets = offset_of(weight), offset_of(bias)
    windows = _windows(weight.shape[2:], stride, padding, dilation)
    require_images(input)
    return b.emit(ConvolutionPlan(*windows, *offsets, transposed=True), [input])


_ONE_BY_ONE = Window(1), Window(1)


@LAYERS.lowers(F.linear)
def _linear(b: Builder, input: PermutedView, weight: Parameter, bias: Parameter | None = None) -> PermutedView:
    offsets = offset_of(weight), offset_of(bias)
    require(len(as_tensor(input).shape) == 1, "it needs features [n, F]; flatten its input")
    return b.emit(ConvolutionPlan(*_ONE_BY_ONE, *offsets), [input])


@LAYERS.lowers(torch.matmul, torch.mm, torch.mv, operator.matmul, "matmul", "mm", "mv")
def _product(b: Builder, input: PermutedView, weight: Parameter) -> PermutedView:
    """Lower `x @ w`: a matrix [in, out] is a transposed convolution, a vector [in] a convolution to one channel."""
    offset = offset_of(weight)
    require(len(as_tensor(input).shape) == 1, "it needs features [n, F] on the left")
    return b.emit(ConvolutionPlan(*_ONE_BY_ONE, offset, transposed=len(weight.shape) > 1), [input])


# Normalisation


def _normalize(
    b: Builder,
    x: PermutedView,
    weight: Parameter | None,
    bias: Parameter | None,
    eps: float,
    *,
    channels: int,
    positions: int,
    across_images: bool = False,
    per_element: bool = False,
) -> PermutedView:
    offsets = offset_of(weight), offset_of(bias)
    numel = max((math.prod(p.shape) for p in (weight, bias) if p is not None), default=0)
    granularity = "element" if per_element else "channel"
    plan = NormalizationPlan(channels, positions, across_images, float(eps), *offsets, granularity, numel)
    return b.emit(plan, [x])


@LAYERS.lowers(F.layer_norm)
def _layer_norm(
    b: Builder,
    input: PermutedView,
    normalized_shape: Sequence[int],
    weight: Parameter | None = None,
    bias: Parameter | None = None,
    eps: float = 1e-5,
) -> PermutedView:
    shape = as_tensor(input).shape
    trailing = len(normalized_shape)
    require(trailing <= len(shape), "it normalises over the images of a batch")
    channels = shape[0] if trailing == len(shape) else 1
    positions = math.prod(shape[-trailing:]) // channels
    return _normalize(b, input, weight, bias, eps, channels=channels, positions=positions, per_element=True)


@LAYERS.lowers(F.group_norm)
def _group_norm(
    b: Builder,
    input: PermutedView,
    num_groups: int,
    weight: Parameter | None = None,
    bias: Parameter | None = None,
    eps: float = 1e-5,
) -> PermutedView:
    shape = as_tensor(input).shape
    return _normalize(b, input, weight, bias, eps, channels=shape[0] // num_groups, positions=math.prod(shape[1:]))


@LAYERS.lowers(F.instance_norm)
def _instance_norm(
    b: Builder,
    input: PermutedView,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Parameter | None = None,
    bias: Parameter | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> PermutedView:
    require(use_input_stats, "it normalises by running statistics")
    require_images(input)
    return _normalize(b, input, weight, bias, eps, channels=1, positions=math.prod(input.shape[1:]))


@LAYERS.lowers(F.batch_norm)
def _batch_norm(
    b: Builder,
    input: PermutedView,
    running_mean: Any,
    running_var: Any,
    weight: Parameter | None = None,
    bias: Parameter | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> PermutedView:
    require(training, "it normalises by running statistics")
    positions = math.prod(as_tensor(input).shape[1:])
    return _normalize(b, input, weight, bias, eps, channels=1, positions=positions, across_images=True)


# Activations


def _activation(b: Builder, x: PermutedView, function: str, *constants: float) -> PermutedView:
    return b.emit(ActivationPlan(function, tuple(map(float, constants))), [as_tensor(x)])


LAYERS.register(lambda b, input, inplace=False: _activation(b, input, "relu"), F.relu, torch.relu, torch.relu_)
LAYERS.register(lambda b, input: _activation(b, input, "relu"), "relu", "relu_")
LAYERS.register(
    lambda b, input, negative_slope=0.01, inplace=False: _activation(b, input, "leaky_relu", negative_slope),
    F.leaky_relu,
    F.leaky_relu_,
)
LAYERS.register(
    lambda b, input, alpha=1.0, inplace=False: _activation(b, input, "elu", alpha),
    F.elu,
    F.elu_,
)
LAYERS.register(lambda b, input, inplace=False: _activation(b, input, "silu"), F.silu)
LAYERS.register(
    lambda b, input, *, approximate="none": _activation(b, input, "gelu" if approximate == "none" else "gelu_tanh"),
    F.gelu,
)
LAYERS.register(
    lambda b, input, beta=1.0, threshold=20.0: _activation(b, input, "softplus", beta, threshold),
    F.softplus,
)
LAYERS.register(lambda b, input: _activation(b, input, "tanh"), torch.tanh, F.tanh, "tanh", "tanh_")
LAYERS.register(lambda b, input: _activation(b, input, "sigmoid"), torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_")


@LAYERS.lowers(F.prelu, torch.prelu, "prelu")
def _prelu(b: Builder, input: PermutedView, weight: Parameter) -> PermutedView:
    slope = offset_of(weight)
    return b.emit(ActivationPlan("prelu", slope=slope, slopes=math.prod(weight.shape)), [as_tensor(input)])


@LAYERS.lowers(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
def _dropout(
    b: Builder, input: PermutedView, p: float = 0.5, training: bool = True, inplace: bool = False
) -> PermutedView:
    require(not training or p == 0, "it draws random numbers; call .eval() on it, or leave it out")
    return input


# Pooling, interpolation and padding


def _resampling_rule(function: Callable[..., Tensor]) -> LoweringRule:
    def lower(b: Builder, input: PermutedView, *args: Any, **kwargs: Any) -> PermutedView:
        shape = as_tensor(input).shape
        require(len(shape) == len(b.output_shape) == 3, "it needs images [n, C, H, W]")
        found = None
        if shape[0] == b.output_shape[0]:
            found = position_map(lambda images: function(images, *args, **kwargs), *shape[1:])
        if found is None:
            raise Unsupported("it is not a linear map along rows and columns")
        return b.emit(ResamplePlan(found.offsets, found.columns, found.weights), [input])

    return lower


for _function in (F.interpolate, F.avg_pool2d, F.adaptive_avg_pool2d, F.pad):
    LAYERS.register(_resampling_rule(_function), _function)


@LAYERS.lowers(F.max_pool2d, torch.max_pool2d)
def _max_pool(
    b: Builder,
    input: PermutedView,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,  # implied by the output's shape
    return_indices: bool = False,
) -> PermutedView:
    require_images(input)
    return b.emit(MaxPoolPlan(*_windows(kernel_size, stride or kernel_size, padding, dilation)), [input])


@LAYERS.lowers(F.adaptive_max_pool2d)
def _adaptive_max_pool(b: Builder, input: PermutedView, output_size: Any, return_indices: bool = False) -> PermutedView:
    require_images(input)
    sides = list(zip(input.shape[1:], b.output_shape[1:], strict=True))
    require(all(size % out == 0 for size, out in sides), "the output's size does not divide the input's")
    kernel = tuple(size // out for size, out in sides)
    return b.emit(MaxPoolPlan(*_windows(kernel, kernel, 0, 1)), [input])
