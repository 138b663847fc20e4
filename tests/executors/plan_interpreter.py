"""Interpreter of plans in plain PyTorch: differentiable to any order, in any dtype.

Normalisation uses elementary operations: PyTorch's own has wrong gradients of directional derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Settings = dict[str, Any]


def _sides(op: Settings, name: str) -> tuple[int, int]:
    """Return a setting of both windows, height first."""
    return op["y"][name], op["x"][name]


def _convolution(op: Settings, params: Tensor, x: Tensor, out: tuple[int, int, int]) -> Tensor:
    kernel, stride, padding, dilation = (_sides(op, name) for name in ("kernel", "stride", "padding", "dilation"))
    channels = (x.shape[1], out[0]) if op["transposed"] else (out[0], x.shape[1])
    weight = _slice(params, op["weight"], (*channels, *kernel))
    bias = None if op["bias"] is None else _slice(params, op["bias"], (out[0],))
    if not op["transposed"]:
        return F.conv2d(x, weight, bias, stride, padding, dilation)
    extra = [
        size - ((before - 1) * s - 2 * p + d * (k - 1) + 1)
        for size, before, k, s, p, d in zip(out[1:], x.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    return F.conv_transpose2d(x, weight, bias, stride, padding, extra, dilation=dilation)


def _normalization(op: Settings, params: Tensor, x: Tensor, out: tuple[int, int, int]) -> Tensor:
    channels, positions = op["channels_a_set"], op["positions_a_set"]
    n, c, h, w = x.shape
    sets = x.reshape(n, c // channels, channels, h * w // positions, positions)
    dims = (0, 2, 4) if op["across_images"] else (2, 4)
    centred = sets - sets.mean(dims, keepdim=True)
    y = (centred / (centred.square().mean(dims, keepdim=True) + op["eps"]).sqrt()).reshape(x.shape)
    for offset, apply in ((op["weight"], torch.mul), (op["bias"], torch.add)):
        if offset is not None:
            values = _slice(params, offset, (op["numel"],))
            per_channel = {"channel": True, "element": False}[op["granularity"]]
            each = values.repeat_interleave(h * w) if per_channel else values.repeat(c * h * w // op["numel"])
            y = apply(y, each.view(c, h, w))
    return y


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {"gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}
"""Activation functions that have another name in `torch.nn.functional`."""


def _activation(op: Settings, params: Tensor, x: Tensor, out: tuple[int, int, int]) -> Tensor:
    name = op["function"]
    slopes = () if op["slope"] is None else (_slice(params, op["slope"], (op["slopes"],)),)
    return (_FUNCTIONS.get(name) or getattr(F, name))(x, *slopes, *op["constants"])


def _resample(op: Settings, params: Tensor, x: Tensor, out: tuple[int, int, int]) -> Tensor:
    offsets, columns, weights = op["offsets"], op["columns"], op["weights"]
    rows = out[1] * out[2]
    assert len(offsets) == rows + 1 and len(columns) == len(weights) == offsets[-1]
    matrix = x.new_zeros(rows, x.shape[2] * x.shape[3])
    for row in range(rows):
        for entry in range(offsets[row], offsets[row + 1]):
            matrix[row, columns[entry]] += weights[entry]
    return (x.flatten(2) @ matrix.T).unflatten(2, out[1:])


def _permute(op: Settings, params: Tensor, x: Tensor, out: tuple[int, int, int]) -> Tensor:
    flat = x.flatten(1)
    return (flat[:, list(op["order"])] if op["order"] else flat).view(-1, *out)


def _max_pool(op: Settings, params: Tensor, x: Tensor, out: tuple[int, int, int]) -> Tensor:
    kernel, stride, padding, dilation = (_sides(op, name) for name in ("kernel", "stride", "padding", "dilation"))
    needed = [(size - 1) * s + d * (k - 1) + 1 for size, s, d, k in zip(out[1:], stride, dilation, kernel, strict=True)]
    bottom, right = (max(0, need - size - pad) for need, size, pad in zip(needed, x.shape[2:], padding, strict=True))
    padded = F.pad(x, (padding[1], right, padding[0], bottom), value=-torch.inf)
    return F.max_pool2d(padded, kernel, stride, 0, dilation)[..., : out[1], : out[2]]


def _combine(op: Settings, params: Tensor, *inputs: Any) -> Tensor:
    *tensors, _ = inputs
    return sum(f * x for f, x in zip(op["factors"], tensors, strict=True)) + op["constant"]


def _concatenate(op: Settings, params: Tensor, *inputs: Any) -> Tensor:
    return torch.cat(inputs[:-1], 1)


KINDS: dict[str, Callable[..., Tensor]] = {
    "convolution": _convolution,
    "normalization": _normalization,
    "activation": _activation,
    "resample": _resample,
    "permute": _permute,
    "max_pool": _max_pool,
    "combine": _combine,
    "concatenate": _concatenate,
}


def _slice(params: Tensor, offset: int, shape: tuple[int, ...]) -> Tensor:
    return params[offset : offset + torch.Size(shape).numel()].view(shape)


def interpret(network: dict[str, Any], params: Tensor, inputs: Tensor) -> Tensor:
    """Run a plan on inputs `[n, ...]`; return `[n, C, H, W]`."""
    values = {network["input"]: inputs.reshape(-1, *network["values"][network["input"]])}
    for op in network["operations"]:
        assert op.keys() == {"kind", "name", "inputs", "output", "settings"}
        assert op["output"] not in values
        shape = network["values"][op["output"]]
        values[op["output"]] = KINDS[op["kind"]](op["settings"], params, *(values[i] for i in op["inputs"]), shape)
        assert values[op["output"]].shape[1:] == shape, op
    return values[network["output"]]
