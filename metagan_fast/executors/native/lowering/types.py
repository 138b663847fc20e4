"""Plan of a network for the native engine: values, and the operations that compute them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

Shape = tuple[int, int, int]
"""Channels, height, width of one image's slice of a value; F features are (F, 1, 1)."""

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
"""Functions of an "activation"; the index is the function's code in the engine."""


class PlanError(ValueError):
    """A layer that the native engine does not support, and why."""

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"{layer}: {reason}")
        self.layer = layer
        self.reason = reason


@dataclass(frozen=True)
class Operation:
    """One operation of a plan.

    - "convolution", "transposed_convolution": parameters weight `[out, in, kh, kw]`, or `[in, out, kh, kw]` transposed,
      and bias; integers kernel, strides, padding, dilation (height and width of each). Output padding is implied by
      the output's shape; a linear layer is a 1x1 convolution.
    - "normalization": subtract the mean and divide by sqrt(biased variance + eps) over groups of consecutive channels
      and positions. Parameters weight and bias; integers channels a group, positions a group, 1 if a group spans all
      images, granularity of the parameters (0: none; 1: a channel; 2: an element, modulo the last integer), their size;
      numbers eps.
    - "activation": parameters the slope (of "prelu"); integers index in `ACTIVATIONS`, number of slopes (1 or one a
      channel); numbers the function's constants.
    - "resample": one linear map of positions y * W + x for all channels, a sparse matrix in CSR form: integers row
      offsets `[Hout * Wout + 1]`, then the input position of each entry; numbers the entries. A row may be empty.
    - "permute": element j reads element integers[j] of the input, row-major in (C, H, W); no integers: identity order.
    - "max_pool": integers kernel, strides, padding (with -inf), dilation.
    - "combine": the sum of factor * input; numbers one factor an input, then a constant that is added.
    - "concatenate": along the channels.

    Attributes:
        kind: one of the above.
        inputs: indices of the values it reads.
        output: index of the value it writes; each value is written once.
        parameters: offsets in the flat buffer, -1 for an absent one.
        integers, numbers: settings.
        name: qualified name of the layer it is lowered from.
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
    """Operations of a network in execution order.

    Attributes:
        values: the shape of each value.
        operations: the operations, each reading only values that earlier ones write.
        input, output: indices of the network's input (images or latents) and output.
        numel: size of the flat parameters.
    """

    values: tuple[Shape, ...]
    operations: tuple[Operation, ...]
    input: int
    output: int
    numel: int

    @property
    def input_shape(self) -> Shape:
        """Shape of one image or latent vector of the network's input."""
        return self.values[self.input]

    @property
    def output_shape(self) -> Shape:
        """Shape of the network's output for one image."""
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
        """Return the multiply-adds of an operation's forward pass on one image; taps on padding do not count."""
        (channels, *sides), (out, *out_sides) = self.values[operation.inputs[0]], self.values[operation.output]
        if operation.kind == "resample":
            return channels * len(operation.numbers)
        if "convolution" not in operation.kind:
            return 0
        settings = list(zip(*(operation.integers[i : i + 2] for i in range(0, 8, 2)), strict=True))
        if operation.kind == "transposed_convolution":  # the adjoint convolution maps its output to its input
            sides, out_sides = out_sides, sides
        return channels * out * math.prod(_taps(*axis) for axis in zip(settings, sides, out_sides, strict=True))

    @property
    def takes_one_image(self) -> bool:
        """True if every batch norm has more than one value a channel on a single image."""
        norms = (op.integers for op in self.operations if op.kind == "normalization")
        return not any(across and channels * positions == 1 for channels, positions, across, *_ in norms)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _taps(settings: tuple[int, int, int, int], size: int, out: int) -> int:
    """Count the taps along one axis that fall inside the image, over all output positions."""
    kernel, stride, padding, dilation = settings
    starts = (position * stride - padding for position in range(out))
    return sum(0 <= start + tap * dilation < size for start in starts for tap in range(kernel))
