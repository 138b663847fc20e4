"""Gradient transform with two Kronecker factors."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .module_transform import ReshapedTransform


class KroneckerTransform:
    """Factory of gradient transforms with Kronecker factors (Arnold et al. 2019, arXiv:1910.13603).

    A matrix is reshaped to `[1, n, m]`, a vector to `[1, n, 1]`, a convolution's weight to `[out, n, m]` with n input
    channels and m kernel elements. The transform learns n^2 + m^2 numbers instead of (n m)^2.

    Args:
        kronecker_cls: module class called with `n`, `m`, `bias` and `psd`, for example `KroneckerLinear`.
        bias: add a bias.
        psd: make the map positive semi-definite.
    """

    def __init__(self, kronecker_cls: Callable[..., nn.Module], bias: bool = False, psd: bool = True) -> None:
        self.kronecker_cls = kronecker_cls
        self.bias = bias
        self.psd = psd

    def __call__(self, param: Tensor) -> ReshapedTransform:
        """Return the transform of a parameter of 1, 2 or 4 dimensions; NotImplementedError for others."""
        n, m = _factors(param)
        return ReshapedTransform(self.kronecker_cls(n=n, m=m, bias=self.bias, psd=self.psd), (-1, n, m))


def _factors(param: Tensor) -> tuple[int, int]:
    if param.ndim == 1:
        return len(param), 1
    if param.ndim == 2:
        return param.shape[0], param.shape[1]
    if param.ndim == 4:
        return param.shape[1], param.shape[2:].numel()
    raise NotImplementedError(f"expected a parameter of 1, 2 or 4 dimensions, got shape {list(param.shape)}")
