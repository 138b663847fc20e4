"""Interpreter of plans in plain PyTorch: differentiable to any order, in any dtype.

Normalisation uses elementary operations: PyTorch's own has wrong gradients of directional derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metagan_fast.executors.native.lowering import ACTIVATIONS


def _convolution(op: dict[str, Any], params: Tensor, x: Tensor, out: tuple[int, int, int]) -> Tensor:
    kh, kw, sh, sw, ph, pw, dh, dw = op["integers"]
    weight = _slice(params, op["parameters"][0], (out[0], x.shape[1], kh, kw))
    bias = None if op["parameters"][1] < 0 else _slice(params, op["parameters"][1], (out[0],))
    return F.conv2d(x, weight, bias, (sh, sw), (ph, pw), (dh, dw))


def _transposed(op: dict[str, Any], params: Tensor, x: Tensor, out: tuple[int, int, int]) -> Tensor:
    kh, kw, sh, sw, ph, pw, dh, dw = op["integers"]
    weight = _slice(params, op["parameters"][0], (x.shape[1], out[0], kh, kw))
    bias = None if op["parameters"][1] < 0 else _slice(params, op["parameters"][1], (out[0],))
    extra = [
        size - ((before - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1)
        for size, before, stride, pad, dilation, kernel in zip(
            out[1:], x.shape[2:], (sh, sw), (ph, pw), (dh, dw), (kh, kw), strict=True
        )
    ]
    return F.conv_transpose2d(x, weight, bias, (sh, sw), (ph, pw), extra, dilation=(dh, dw))


def _normalization(op: dict[str, Any], params: Tensor, x: Tensor, out: tuple[int, int, int]) -> Tensor:
    channels, positions, across, affine, numel = op["integers"]
    n, c, h, w = x.shape
    sets = x.reshape(n, c // channels, channels, h * w // positions, positions)
    dims = (0, 2, 4) if across else (2, 4)
    centred = sets - sets.mean(dims, keepdim=True)
    y = (centred / (centred.square().mean(dims, keepdim=True) + op["numbers"][0]).sqrt()).reshape(x.shape)
    for offset, apply in zip(op["parameters"], (torch.mul, torch.add), strict=True):
        if offset >= 0:
            values = _slice(params, offset, (numel,))
            each = values.repeat_interleave(h * w) if affine == 1 else values.repeat(c * h * w // numel)
            y = apply(y, each.view(c, h, w))
    return y


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def _activation(op: dict[str, Any], params: Tensor, x: Tensor, out: tuple[int, int, int]) -> Tensor:
    code, slopes = op["integers"]
    if ACTIVATIONS[code] == "prelu":
        return F.prelu(x, _slice(params, op["parameters"][0], (slopes,)))
    return _FUNCTIONS[ACTIVATIONS[code]](x, *op["numbers"])


def _resample(op: dict[str, Any], params: Tensor, x: Tensor, out: tuple[int, int, int]) -> Tensor:
    rows = out[1] * out[2]
    offsets, columns = op["integers"][: rows + 1], op["integers"][rows + 1 :]
    assert len(columns) == len(op["numbers"]) == offsets[-1]
    matrix = x.new_zeros(rows, x.shape[2] * x.shape[3])
    for row in range(rows):
        for entry in range(offsets[row], offsets[row + 1]):
            matrix[row, columns[entry]] += op["numbers"][entry]
    return (x.flatten(2) @ matrix.T).unflatten(2, out[1:])


def _permute(op: dict[str, Any], params: Tensor, x: Tensor, out: tuple[int, int, int]) -> Tensor:
    flat = x.flatten(1)
    return (flat[:, op["integers"]] if op["integers"] else flat).view(-1, *out)


def _max_pool(op: dict[str, Any], params: Tensor, x: Tensor, out: tuple[int, int, int]) -> Tensor:
    kh, kw, sh, sw, ph, pw, dh, dw = op["integers"]
    needed = [
        (size - 1) * s + d * (k - 1) + 1 for size, s, d, k in zip(out[1:], (sh, sw), (dh, dw), (kh, kw), strict=True)
    ]
    bottom, right = (max(0, need - size - pad) for need, size, pad in zip(needed, x.shape[2:], (ph, pw), strict=True))
    padded = F.pad(x, (pw, right, ph, bottom), value=-torch.inf)
    return F.max_pool2d(padded, (kh, kw), (sh, sw), 0, (dh, dw))[..., : out[1], : out[2]]


def _combine(op: dict[str, Any], params: Tensor, *inputs: Any) -> Tensor:
    *tensors, _ = inputs
    *factors, constant = op["numbers"]
    return sum(f * x for f, x in zip(factors, tensors, strict=True)) + constant


def _concatenate(op: dict[str, Any], params: Tensor, *inputs: Any) -> Tensor:
    return torch.cat(inputs[:-1], 1)


KINDS: dict[str, Callable[..., Tensor]] = {
    "convolution": _convolution,
    "transposed_convolution": _transposed,
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
        assert op.keys() == {"kind", "inputs", "output", "parameters", "integers", "numbers", "name"}
        assert op["output"] not in values
        shape = network["values"][op["output"]]
        values[op["output"]] = KINDS[op["kind"]](op, params, *(values[i] for i in op["inputs"]), shape)
        assert values[op["output"]].shape[1:] == shape, op
    return values[network["output"]]
