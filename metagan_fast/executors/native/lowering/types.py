"""Plan of a network for the native engine: values, and the operations that compute them.

A kind of operation is a dataclass of settings. `csrc/engine/plan.h` has the same kinds and fields.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

Shape = tuple[int, int, int]
"""Channels, height, width of one image's slice of a value; F features are (F, 1, 1)."""

Offset = int | None
"""Offset of a parameter in the flat buffer, None for an absent one."""


class PlanError(ValueError):
    """A layer that the native engine does not support, and why."""

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"{layer}: {reason}")
        self.layer = layer
        self.reason = reason


@dataclass(frozen=True)
class Window:
    """Window that slides along one axis."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def taps(self, size: int, out: int) -> int:
        """Count the taps that fall inside an image of `size` pixels, over all `out` positions."""
        starts = (position * self.stride - self.padding for position in range(out))
        return sum(0 <= start + tap * self.dilation < size for start in starts for tap in range(self.kernel))


@dataclass(frozen=True)
class Settings:
    """Settings of one kind of operation."""

    kind: ClassVar[str]

    @property
    def title(self) -> str:
        """Name of the operation in reports."""
        return self.kind

    @property
    def parameters(self) -> tuple[Offset, ...]:
        """Offsets of the operation's parameters."""
        return ()

    def multiply_adds(self, input: Shape, output: Shape) -> int:
        """Return the multiply-adds of a forward pass on one image; taps on padding do not count."""
        return 0


@dataclass(frozen=True)
class ConvolutionPlan(Settings):
    """Convolution, or its adjoint; a linear layer is one of 1x1 pixel.

    Attributes:
        y, x: windows along height and width; a transposed convolution's output padding is implied by its output.
        weight: `[out, in, y.kernel, x.kernel]`, or `[in, out, y.kernel, x.kernel]` transposed.
        bias: `[out]`.
        transposed: whether it is the adjoint.
    """

    kind = "convolution"
    y: Window
    x: Window
    weight: Offset
    bias: Offset = None
    transposed: bool = False

    @property
    def title(self) -> str:
        """The kind and the size of the kernel."""
        return f"{'transposed_' if self.transposed else ''}{self.kind} {self.y.kernel}x{self.x.kernel}"

    @property
    def parameters(self) -> tuple[Offset, ...]:
        """Weight and bias."""
        return self.weight, self.bias

    def multiply_adds(self, input: Shape, output: Shape) -> int:
        """Return one for each weight and position that its tap reaches."""
        large, small = (output, input) if self.transposed else (input, output)
        return large[0] * small[0] * self.y.taps(large[1], small[1]) * self.x.taps(large[2], small[2])


@dataclass(frozen=True)
class NormalizationPlan(Settings):
    """Subtract the mean and divide by sqrt(biased variance + eps), over sets of adjacent channels and positions.

    Attributes:
        channels_a_set, positions_a_set: size of a set; they divide the channels and positions.
        across_images: whether a set spans all images.
        eps: added to the variance.
        weight, bias: factor and addend.
        granularity: "channel" for a weight a channel; "element" for one an element of the image, modulo `numel`.
        numel: size of the weight and of the bias.
    """

    kind = "normalization"
    channels_a_set: int
    positions_a_set: int
    across_images: bool
    eps: float
    weight: Offset = None
    bias: Offset = None
    granularity: str = "channel"
    numel: int = 0

    @property
    def parameters(self) -> tuple[Offset, ...]:
        """Weight and bias."""
        return self.weight, self.bias


@dataclass(frozen=True)
class ActivationPlan(Settings):
    """Function of each element.

    Attributes:
        function: its name, one of `kActivations` in `csrc/cpu/layers/layer_kernels.h`.
        constants: slope of "leaky_relu", alpha of "elu", beta and threshold of "softplus".
        slope: slopes of "prelu".
        slopes: number of slopes, 1 or one a channel.
    """

    kind = "activation"
    function: str
    constants: tuple[float, ...] = ()
    slope: Offset = None
    slopes: int = 0

    @property
    def title(self) -> str:
        """The function."""
        return self.function

    @property
    def parameters(self) -> tuple[Offset, ...]:
        """The slopes."""
        return (self.slope,)


@dataclass(frozen=True)
class ResamplePlan(Settings):
    """One linear map of positions y * W + x for all channels: a sparse matrix in CSR form.

    Attributes:
        offsets: first entry of each output position, then the number of entries; a row may be empty.
        columns: input position of each entry.
        weights: value of each entry.
    """

    kind = "resample"
    offsets: tuple[int, ...]
    columns: tuple[int, ...]
    weights: tuple[float, ...]

    def multiply_adds(self, input: Shape, output: Shape) -> int:
        """Return one for each entry and channel."""
        return input[0] * len(self.weights)


@dataclass(frozen=True)
class PermutePlan(Settings):
    """Element j reads element `order[j]` of the input, row-major in (C, H, W); an empty order is the identity."""

    kind = "permute"
    order: tuple[int, ...] = ()


@dataclass(frozen=True)
class MaxPoolPlan(Settings):
    """Maximum over windows `y` along the height and `x` along the width, padded with -inf."""

    kind = "max_pool"
    y: Window
    x: Window

    @property
    def title(self) -> str:
        """The kind and the size of the kernel."""
        return f"{self.kind} {self.y.kernel}x{self.x.kernel}"


@dataclass(frozen=True)
class CombinePlan(Settings):
    """Sum of factor * input, with a factor an input, plus a constant."""

    kind = "combine"
    factors: tuple[float, ...]
    constant: float = 0.0


@dataclass(frozen=True)
class ConcatenatePlan(Settings):
    """Inputs behind each other along the channels."""

    kind = "concatenate"


@dataclass(frozen=True)
class OperationPlan:
    """One operation of a network.

    Attributes:
        name: qualified name of the layer it is lowered from.
        inputs: indices of the values it reads.
        output: index of the value it writes; each value is written once.
        settings: its kind and settings.
    """

    name: str
    inputs: tuple[int, ...]
    output: int
    settings: Settings


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
    operations: tuple[OperationPlan, ...]
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
        """Return the plan as the extension reads it: the fields as dicts, and the kind of each operation."""
        fields = asdict(self)
        for fields_of, operation in zip(fields["operations"], self.operations, strict=True):
            fields_of["kind"] = operation.settings.kind
        return fields

    def multiply_adds(self, operation: OperationPlan) -> int:
        """Return the multiply-adds of an operation's forward pass on one image; taps on padding do not count."""
        return operation.settings.multiply_adds(self.values[operation.inputs[0]], self.values[operation.output])

    @property
    def takes_one_image(self) -> bool:
        """True if every batch norm has more than one value a channel on a single image."""
        return not any(norm.channels_a_set * norm.positions_a_set == 1 for norm in self._batch_norms)

    @property
    def mixes_images(self) -> bool:
        """True if an image's result depends on the other images of its batch."""
        return bool(self._batch_norms)

    @property
    def _batch_norms(self) -> list[NormalizationPlan]:
        norms = (op.settings for op in self.operations if isinstance(op.settings, NormalizationPlan))
        return [norm for norm in norms if norm.across_images]
