"""A transform made of a module with two Kronecker factors."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .module_transform import ReshapedTransform


class KroneckerTransform:
    """Make a transform of a class of modules with Kronecker factors (Arnold et al. 2019, arXiv:1910.13603).

    It sees a matrix as `[1, n, m]`, a vector as `[1, n, 1]`, a convolution's weight as `[out, n, m]`, with n its input
    channels and m the elements of a kernel. So it learns n^2 + m^2 numbers, not (n m)^2.

    Args:
        kronecker_cls: called with `n`, `m`, `bias` and `psd`, say `KroneckerLinear`.
        bias: let the module have one.
        psd: make it positive semi-definite.
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
