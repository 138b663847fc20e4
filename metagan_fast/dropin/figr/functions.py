"""Helper functions of FIGR's `train.py`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import losses


def wassertein_loss(inputs: Tensor, targets: Tensor) -> Tensor:
    """Return `mean(inputs * targets)`: scores `[n, 1]`, targets 1 to lower a score and -1 to raise it."""
    return torch.mean(inputs * targets)


def calc_gradient_penalty(discriminator: nn.Module, real_batch: Tensor, fake_batch: Tensor) -> Tensor:
    """Return FIGR's penalty, 10 times the mean squared distance of each pixel's gradient norm from 1.

    Args:
        discriminator: images `[n, C, H, W]` to scores.
        real_batch, fake_batch: images `[n, C, H, W]`, interpolated with weights from torch's default generator.

    Returns:
        A scalar, differentiable by the discriminator's parameters.
    """
    weight = torch.rand(len(real_batch), 1, 1, 1, device=real_batch.device)
    points = (weight * real_batch + (1 - weight) * fake_batch).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(points).sum(), points, create_graph=True)
    return losses.FIGR().penalty.value(gradient)


def normalize_data(data: Tensor) -> Tensor:
    """Map images from [0, 1] to [-1, 1] in place, and return them."""
    return data.mul_(2).sub_(1)


def unnormalize_data(data: Tensor) -> Tensor:
    """Map images from [-1, 1] to [0, 1] in place, and return them."""
    return data.add_(1).div_(2)
