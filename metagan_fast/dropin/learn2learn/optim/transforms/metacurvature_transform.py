"""Gradient transform of Meta-Curvature."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MetaCurvatureTransform(nn.Module):
    """Multiply a gradient along each of its axes by a learned matrix (Park & Oliva 2019, arXiv:1902.03356).

    The matrices start as the identity. A vector is multiplied by a learned vector; the spatial axes of a convolution's
    weight count as one.

    Args:
        param: parameter of 1, 2 or 4 dimensions.
        lr: fixed factor of the update.

    Raises:
        NotImplementedError: `param` has another number of dimensions.
    """

    def __init__(self, param: Tensor, lr: float = 1.0) -> None:
        super().__init__()
        self.lr = lr
        self.dim = param.ndim
        if self.dim not in (1, 2, 4):
            raise NotImplementedError(f"expected a parameter of 1, 2 or 4 dimensions, got shape {list(param.shape)}")

        def identity(size: int) -> nn.Parameter:
            return nn.Parameter(torch.eye(size, dtype=param.dtype, device=param.device))

        if self.dim == 1:
            self.mc = nn.Parameter(torch.ones_like(param))
            return
        self.mc_in, self.mc_out = identity(param.shape[0]), identity(param.shape[1])
        if self.dim == 4:
            self.mc_f = identity(param.shape[2:].numel())

    def forward(self, grad: Tensor) -> Tensor:
        if self.dim == 1:
            return self.lr * (self.mc * grad)
        if self.dim == 2:
            return self.lr * (self.mc_in @ grad @ self.mc_out)
        update = torch.einsum("ai,iof,ob,cf->abc", self.mc_in, grad.flatten(2), self.mc_out, self.mc_f)
        return self.lr * update.reshape(grad.shape)
