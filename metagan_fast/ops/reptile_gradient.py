"""`reptile_gradient`."""

from __future__ import annotations

from torch import Tensor

from .._native import buffers
from . import _check
from ._op import Op


def reptile_gradient(initial: Tensor, adapted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return Reptile's meta-gradient, `mean(initial - adapted[task])` or with weights the weighted sum.

    Args and Raises as in `reptile_interpolate`.

    Returns:
        `[numel]`, the gradient for an optimizer.

    Example:
        >>> import torch
        >>> from metagan_fast import functional
        >>> functional.reptile_gradient(torch.zeros(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([-2., -3.])
    """
    return _reptile_gradient("reptile_gradient", None, initial, adapted, weights)


def reptile_gradient_(gradient: Tensor, initial: Tensor, adapted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Overwrite `gradient` with the result of `reptile_gradient`."""
    return _reptile_gradient("reptile_gradient_", gradient, initial, adapted, weights)


def _reptile_gradient(
    op: str, gradient: Tensor | None, initial: Tensor, adapted: Tensor, weights: Tensor | None
) -> Tensor:
    """Check the arguments and run `op`, the function or its twin."""
    _check.tasks(op, "initial", initial, adapted, weights)
    _check.buffers(op, initial=initial, gradient=gradient)
    out = _check.targets(op, {"gradient": gradient}, initial=initial, adapted=adapted, weights=weights)
    return REPTILE_GRADIENT.run(initial, adapted, weights=weights, out=out)[0]


def _compiled(
    initial: Tensor, adapted: Tensor, *, weights: Tensor | None, out: tuple[Tensor, ...] | None
) -> tuple[Tensor, ...]:
    """Run the compiled kernel."""
    initial, adapted = buffers.inputs(initial, adapted)
    results = out or buffers.new_results(initial, 1)
    combine = buffers.arithmetic_weights(weights, initial)
    buffers.run(
        "reptile_gradient",
        adapted,
        buffers.address(initial),
        buffers.matrix(adapted),
        buffers.address(combine),
        buffers.address(results[0]),
    )
    return results


REPTILE_GRADIENT = Op("reptile_gradient", _compiled)
