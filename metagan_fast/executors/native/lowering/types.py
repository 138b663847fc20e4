"""What a network is to the native engine: values, and the operations that make one from others."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

Shape = tuple[int, int, int]
"""Channels, height, width of one image's part of a value; F features are (F, 1, 1)."""

ACTIVATIONS = (
    "relu",
    "leaky_relu",
    "prelu",
    "elu",
    "silu",
    "gelu",
    "gelu_tanh",
    "softplus",
    "tanh",
    "sigmoid",
)
"""The functions of an "activation", each in the place of its code."""


class PlanError(ValueError):
    """Say which layer of a network the native engine cannot express, and why."""

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"{layer}: {reason}")
        self.layer = layer
        self.reason = reason


@dataclass(frozen=True)
class Operation:
    """Make one value from others.

    - "convolution", "transposed_convolution": parameters weight `[out, in, kh, kw]`, or `[in, out, kh, kw]` transposed,
      and bias; integers kernel, strides, padding, dilation (height and width of each). An output padding shows in the
      output's shape; a linear layer is a 1x1 convolution.
    - "normalization": subtract the mean and divide by sqrt(biased variance + eps) over sets of consecutive channels and
      positions. Parameters weight and bias; integers channels a set, positions a set, 1 if a set runs over all images,
      what the parameters belong to (0: there are none; 1: channels; 2: elements, modulo the last integer), their size;
      numbers eps.
    - "activation": parameters the slope (of "prelu"); integers place in `ACTIVATIONS`, how many slopes (1 or as many as
      channels); numbers the function's constants.
    - "resample": the same linear map of positions y * W + x for each channel, a sparse matrix by rows: integers
      offsets `[Hout * Wout + 1]`, then the input position of each entry; numbers the entries. A row may be empty.
    - "permute": element j reads element integers[j] of the input, row-major in (C, H, W); none: they stay as they lie.
    - "max_pool": integers kernel, strides, padding (which is -inf), dilation.
    - "combine": the sum of factor * input; numbers one factor an input, then a constant that is added.
    - "concatenate": along the channels.

    Attributes:
        kind: one of these.
        inputs: the values it reads.
        output: the value it makes, read by nothing before.
        parameters: offsets in the flat buffer, -1 where there is none.
        integers, numbers: settings.
        name: the layer it comes from.
    """

    kind: str
    inputs: tuple[int, ...]
    output: int
    parameters: tuple[int, ...] = ()
    integers: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()
    name: str = ""

    @property
    def title(self) -> str:
        """The kind, or the function of an activation."""
        return ACTIVATIONS[self.integers[0]] if self.kind == "activation" else self.kind


@dataclass(frozen=True)
class Plan:
    """Hold the operations of a network in the order in which they run.

    Attributes:
        values: the shape of each value.
        operations: what makes them.
        input, output: where images or latents come in, and where the result is.
        numel: size of the flat parameters.
    """

    values: tuple[Shape, ...]
    operations: tuple[Operation, ...]
    input: int
    output: int
    numel: int

    @property
    def input_shape(self) -> Shape:
        """What the network takes, an image."""
        return self.values[self.input]

    @property
    def output_shape(self) -> Shape:
        """What the network returns, an image."""
        return self.values[self.output]

    def to_core(self) -> dict[str, Any]:
        """Return the plan as the extension reads it: dicts, lists and numbers."""
        return {
            "values": list(self.values),
            "operations": [{k: _plain(v) for k, v in asdict(op).items()} for op in self.operations],
            "input": self.input,
            "output": self.output,
            "numel": self.numel,
        }

    def multiply_adds(self, operation: Operation) -> int:
        """Return the multiply-adds of an operation's way forward, an image; taps on padding do not count."""
        (channels, *sides), (out, *out_sides) = self.values[operation.inputs[0]], self.values[operation.output]
        if operation.kind == "resample":
            return channels * len(operation.numbers)
        if "convolution" not in operation.kind:
            return 0
        settings = list(zip(*(operation.integers[i : i + 2] for i in range(0, 8, 2)), strict=True))
        if operation.kind == "transposed_convolution":  # which is the convolution read from its output to its input
            sides, out_sides = out_sides, sides
        return channels * out * math.prod(_taps(*axis) for axis in zip(settings, sides, out_sides, strict=True))

    @property
    def takes_one_image(self) -> bool:
        """Whether no batch norm is left with a single value a channel, whose variance means nothing, by one image."""
        norms = (op.integers for op in self.operations if op.kind == "normalization")
        return not any(across and channels * positions == 1 for channels, positions, across, *_ in norms)

    @property
    def activation_bytes(self) -> int:
        """What all values of one image take in float32."""
        return 4 * sum(math.prod(shape) for shape in self.values)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _taps(settings: tuple[int, int, int, int], size: int, out: int) -> int:
    """Count the taps along one axis that fall inside the image, over all output positions."""
    kernel, stride, padding, dilation = settings
    starts = (position * stride - padding for position in range(out))
    return sum(0 <= start + tap * dilation < size for start in starts for tap in range(kernel))
