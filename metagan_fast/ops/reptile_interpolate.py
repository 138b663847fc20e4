"""`reptile_interpolate`."""

from __future__ import annotations

from torch import Tensor

from .._native import buffers
from . import _check
from ._op import Op


def reptile_interpolate(
    initial: Tensor, adapted: Tensor, step_size: float | Tensor, weights: Tensor | None = None
) -> Tensor:
    """Move an initialisation towards adapted parameters, Reptile's meta-step (Nichol et al. 2018, alg. 2).

    `initial + step_size * mean(adapted[task] - initial)`, or with weights the weighted sum in place of the
    mean. Tasks are added in index order.

    Args:
        initial: `[numel]`.
        adapted: `[tasks, numel]`, at least one task.
        step_size: a finite number, or a 0-dim tensor.
        weights: `[tasks]`, used as they are (normalise them yourself); None for the mean.

    Returns:
        The new initialisation, `[numel]`.

    Raises:
        ValueError: shapes, dtypes, devices or numbers do not fit.

    Example:
        >>> import torch
        >>> from metagan_fast import functional
        >>> adapted = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # two tasks
        >>> functional.reptile_interpolate(torch.zeros(2), adapted, step_size=0.5)
        tensor([1.0000, 1.5000])
    """
    return _reptile_interpolate("reptile_interpolate", initial, adapted, step_size, weights)


def reptile_interpolate_(
    initial: Tensor, adapted: Tensor, step_size: float | Tensor, weights: Tensor | None = None
) -> Tensor:
    """Overwrite `initial` with the result of `reptile_interpolate`."""
    return _reptile_interpolate("reptile_interpolate_", initial, adapted, step_size, weights)


def _reptile_interpolate(
    op: str, initial: Tensor, adapted: Tensor, step_size: float | Tensor, weights: Tensor | None
) -> Tensor:
    """Check the arguments and run `op`, the function or its twin."""
    _check.tasks(op, "initial", initial, adapted, weights)
    step_size = _check.step_size(op, step_size)
    out = _check.targets(op, {"initial": initial}, adapted=adapted, step_size=step_size, weights=weights)
    return REPTILE_INTERPOLATE.run(initial, adapted, step_size=step_size, weights=weights, out=out)[0]


def _compiled(
    initial: Tensor,
    adapted: Tensor,
    *,
    step_size: float | Tensor,
    weights: Tensor | None,
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    """Run the compiled kernel."""
    initial, adapted = buffers.inputs(initial, adapted)
    results = out or buffers.new_results(initial, 1)
    combine = buffers.arithmetic_weights(weights, initial)
    size, _keep = buffers.number(step_size, initial)
    buffers.run(
        "reptile_interpolate",
        adapted,
        buffers.address(initial),
        buffers.matrix(adapted),
        buffers.address(combine),
        buffers.address(results[0]),
        size,
    )
    return results


REPTILE_INTERPOLATE = Op("reptile_interpolate", _compiled)
