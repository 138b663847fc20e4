"""`ema_update`."""

from __future__ import annotations

from torch import Tensor

from .._native import buffers
from . import _check
from ._op import Op


def ema_update(average: Tensor, params: Tensor, decay: float) -> Tensor:
    """Return the exponential moving average, `average + (1 - decay) * (params - average)`.

    Args:
        average: `[numel]` or `[tasks, numel]`.
        params: like `average`.
        decay: in [0, 1].

    Raises:
        ValueError: shapes, dtypes, devices or `decay` do not fit.

    Example:
        >>> import torch
        >>> from metagan_fast import functional
        >>> functional.ema_update(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), decay=0.75)
        tensor([0.2500, 1.0000])
    """
    return _ema_update("ema_update", average, params, decay)


def ema_update_(average: Tensor, params: Tensor, decay: float) -> Tensor:
    """Overwrite `average` with the result of `ema_update`."""
    return _ema_update("ema_update_", average, params, decay)


def _ema_update(op: str, average: Tensor, params: Tensor, decay: float) -> Tensor:
    """Check the arguments and run `op`, the function or its twin."""
    _check.buffers(op, average=average, params=params)
    decay = _check.number(op, "decay", decay)
    if not 0 <= decay <= 1:
        raise ValueError(f"{op}: decay must be in [0, 1], got {decay}")
    out = _check.targets(op, {"average": average}, params=params)
    return EMA_UPDATE.run(average, params, decay=decay, out=out)[0]


def _compiled(average: Tensor, params: Tensor, *, decay: float, out: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    """Run the compiled kernel."""
    average, params = buffers.inputs(average, params)
    results = out or buffers.new_results(average, 1)
    buffers.run(
        "ema_update", average, buffers.matrix(average), buffers.matrix(params), buffers.matrix(results[0]), decay
    )
    return results


EMA_UPDATE = Op("ema_update", _compiled)
