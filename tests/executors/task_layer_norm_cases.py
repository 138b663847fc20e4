"""Layer norms that the per-task kernels support, with operands and an independent oracle."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-3


class Case(NamedTuple):
    """Number of tasks, inputs a task and elements an input."""

    tasks: int
    inputs: int
    elements: int


CASES = {
    "short": Case(2, 3, 6),
    "one-input": Case(3, 1, 40),
    "three-elements": Case(2, 2, 3),
    "several-blocks": Case(1, 5, 9000),
    "block": Case(2, 4, 1024),
}


class Operands(NamedTuple):
    """Two cotangents, then input, weights and bias; the last two are views of flat parameters, as in an executor."""

    u: Tensor
    dy: Tensor
    x: Tensor
    weight: Tensor
    bias: Tensor


def operands(case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Operands:
    """Return operands off centre, with rows of very different scale."""
    tasks, inputs, k = case
    scale = torch.logspace(-1, 1, tasks * inputs, dtype=torch.float64).view(tasks, inputs, 1)
    u, dy, x = (scale * torch.randn(case, dtype=torch.float64) + 0.5 for _ in range(3))
    flat = torch.randn(tasks, 2 * k + 32, dtype=torch.float64)
    u, dy, x, flat = (v.to(device, dtype) for v in (u, dy, x, flat))
    return Operands(u, dy, x, flat[:, 16 : 16 + k], flat[:, 16 + k : 16 + 2 * k])


def oracle(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the output by one call of PyTorch a task; its derivatives are right to the second (torch 2.13)."""
    biases = [None] * len(x) if bias is None else bias.unbind()
    rows = zip(x, weight, biases, strict=True)
    return torch.stack([F.layer_norm(x, w.shape, w, b, EPS) for x, w, b in rows])


def by_hand(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the output from elementary operations, whose derivatives are right to any order."""
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
    return centred / scale * weight.unsqueeze(1) + bias.unsqueeze(1)


class Expected(NamedTuple):
    """Results of the passes; the last three are derivatives of `<u, dx>` by `dy`, `x` and `weight`."""

    y: Tensor
    dx: Tensor
    dw: Tensor
    db: Tensor
    ddy: Tensor
    ddx: Tensor
    ddw: Tensor


def expected(given: Operands) -> Expected:
    """Return every pass in float64, by PyTorch's derivatives of the oracle."""
    u, dy, x, weight, bias = (v.detach().double().cpu().requires_grad_() for v in given)
    y = oracle(x, weight, bias)
    first = torch.autograd.grad(y, (x, weight, bias), dy, create_graph=True)
    second = torch.autograd.grad(first[0], (dy, x, weight), u)
    return Expected(*(v.detach() for v in (y, *first, *second)))


def statistics(x: Tensor) -> Tensor:
    """Return the mean and the scale of each input, in the dtype of accumulation."""
    wide = x.double()
    pair = torch.stack((wide.mean(-1), (wide.var(-1, unbiased=False) + EPS).rsqrt()), -1)
    return pair.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
