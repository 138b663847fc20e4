"""Linear maps whose matrix is a Kronecker product."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..._originals import fall_back_to

__getattr__, __dir__ = fall_back_to(__name__, "learn2learn.nn.kroneckers")


def kronecker_addmm(
    mat1: Tensor, mat2: Tensor, mat3: Tensor, bias: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0
) -> Tensor:
    """Return `alpha mat1 @ mat3 @ mat2 + beta bias`: the Kronecker product of `mat2.T` and `mat1` times `mat3`.

    Args:
        mat1: `[n, n]`.
        mat2: `[m, m]`.
        mat3: `[..., n, m]`.
        bias: `[n, m]`, or None.
        alpha, beta: scalar factors.
    """
    product = alpha * (mat1 @ mat3 @ mat2)
    return product if bias is None else product + beta * bias


class KroneckerLinear(nn.Module):
    """Map X `[..., n, m]` to `left @ X @ right + bias`, the identity at first (Jose et al. 2018, arXiv:1705.10142).

    On column-major vectors `[n m]` the matrix of the map is the Kronecker product of `right.T` and `left`.

    Args:
        n, m: sizes of the two factors.
        bias: add a learned matrix, 0 at first.
        psd: use `left.T @ left` and `right.T @ right`, so that the map is positive semi-definite.
        device: device of the computation; results are returned on the input's device.

    Raises:
        ValueError: in `forward`, if the input has another shape.
    """

    def __init__(
        self, n: int, m: int, bias: bool = True, psd: bool = False, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.eye(n, device=device))
        self.right = nn.Parameter(torch.eye(m, device=device))
        self.bias = nn.Parameter(torch.zeros(n, m, device=device)) if bias else None
        self.psd = psd
        self.device = device

    def forward(self, x: Tensor) -> Tensor:
        n, m = len(self.left), len(self.right)
        is_vector = x.ndim == 1 and len(x) == n * m
        if not is_vector and x.shape[-2:] != (n, m):
            raise ValueError(f"expected a tensor [..., {n}, {m}] or [{n * m}], got shape {list(x.shape)}")
        factors: tuple[Tensor, Tensor] = (self.left, self.right)
        left, right = (f.T @ f for f in factors) if self.psd else factors
        matrix = (x.reshape(m, n).T if is_vector else x).to(device=self.device)
        y = kronecker_addmm(left, right, matrix, self.bias)
        return (y.T.flatten() if is_vector else y).to(x.device)
