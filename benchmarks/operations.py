"""Multiply-adds of an inner step: the arithmetic floor of the workloads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one image's forward pass: the whole network's, and its first layer's."""

    forward: float
    first: float


def cost(network: nn.Module, inputs: Tensor) -> Cost:
    """Count the multiply-adds of Linear and Conv2d layers for one row of `inputs`; no taps on padding."""
    counts: list[float] = []

    def count(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Linear):
            counts.append(layer.in_features * layer.out_features)
        elif isinstance(layer, nn.Conv2d):
            taps = [_taps(layer, axis, arguments[0].shape[2 + axis], output.shape[2 + axis]) for axis in (0, 1)]
            counts.append(layer.in_channels * layer.out_channels // layer.groups * taps[0] * taps[1])

    handles = [layer.register_forward_hook(count) for layer in network.modules()]
    try:
        with torch.no_grad():
            network(inputs[:1])
    finally:
        for handle in handles:
            handle.remove()
    return Cost(sum(counts), counts[0] if counts else 0.0)


def _taps(layer: nn.Conv2d, axis: int, size: int, out: int) -> int:
    """Count the taps along one axis that fall inside the image, over all output positions."""
    padding = layer.padding[axis] if not isinstance(layer.padding, str) else layer.kernel_size[axis] // 2
    starts = (position * layer.stride[axis] - padding for position in range(out))
    return sum(
        0 <= start + tap * layer.dilation[axis] < size for start in starts for tap in range(layer.kernel_size[axis])
    )


def inner_step(generator: Cost, discriminator: Cost, shots: int, *, penalty: bool, at_real: bool = False) -> float:
    """Return the multiply-adds of one inner step of one task, without any discarded work.

    Discriminator update: generate fake images; forward real and fake; their weight gradients and, except for the first
    layer, data gradients. A gradient penalty adds, at the interpolates: forward, gradient by the image, tangent along
    it, and one reverse pass of two weight gradients and a data gradient. At the real images (`at_real`) it shares their
    forward and data gradients, and adds the gradient by the image, the tangent and one weight gradient. Generator
    update: forward through both networks, data gradients through the discriminator, weight and data gradients of the
    generator.
    """
    g, d = generator, discriminator
    update_d = g.forward + 4 * d.forward + 2 * (d.forward - d.first)
    if penalty:
        update_d += 3 * d.forward if at_real else 5 * d.forward + (d.forward - d.first)
    update_g = 2 * g.forward + (g.forward - g.first) + 2 * d.forward
    return shots * (update_d + update_g)


def maml_step(generator: Cost, discriminator: Cost, shots: int) -> float:
    """Return the multiply-adds of one inner step under MAML, without a penalty: `inner_step` and its adjoint.

    The adjoint propagates two cotangents, one for each query loss, over shared primal passes (forward and data
    gradients of both updates). Per cotangent, the discriminator update takes a tangent along its parameters (two
    products a layer, real and fake) and its reverse (four products), then both gradients of the generator; the
    generator update takes a tangent along the generator's parameters, continued from the images through the
    discriminator, and its reverse.
    """
    g, d = generator.forward, discriminator.forward
    shared = 6 * d + 3 * g
    each = (2 * (2 + 4) * d + 2 * g) + ((1 + 3) * d + (2 + 4) * g)
    return inner_step(generator, discriminator, shots, penalty=False) + shots * (shared + 2 * each)
