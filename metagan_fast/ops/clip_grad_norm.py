"""`clip_grad_norm`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._native import _core, buffers
from . import _check
from ._op import Op

SHORT_ROW = 8192
"""Longest row, in elements, that a GPU clips in one launch, on one multiprocessor.

A second launch costs more than it saves up to this length (docs/tuning.md#clipping-rows-of-one-launch). The constant is
repeated in `csrc/cuda/clip_grad_norm.cu`.
"""


def clip_grad_norm(grads: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """Scale each row to an L2 norm of at most `max_norm` (Pascanu et al. 2013), as torch's `clip_grad_norm_`.

    The norm is accumulated in float64 over fixed blocks: the same bits for any number of threads, within
    2 ulp of the reference (4 for scaled float64 rows). Rows are multiplied by
    `min(1, max_norm / (norm + 1e-6))`. As in torch, a row whose norm is infinite becomes 0 (NaN where it was
    infinite), one whose norm is NaN becomes NaN: look at the norms. On a GPU, rows of at most 8192 elements take one
    launch, in which one block reads its row twice; longer rows take two (no other op does), because scaling needs
    the whole norm and blocks synchronise only between launches.

    Args:
        grads: `[numel]` or `[tasks, numel]`.
        max_norm: finite, at least 0.

    Returns:
        `(grads, norms)`, the norms before scaling, `[]` or `[tasks]`, in float32 (float64 for float64).

    Raises:
        ValueError: `grads` or `max_norm` do not fit.

    Example:
        >>> import torch
        >>> from metagan_fast import functional
        >>> grads, norms = functional.clip_grad_norm(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), max_norm=1.0)
        >>> grads, norms
        (tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]]), tensor([5.0000, 0.5000]))
    """
    return _clip_grad_norm("clip_grad_norm", grads, max_norm=max_norm)


def clip_grad_norm_(grads: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """Overwrite `grads` with the result of `clip_grad_norm`."""
    return _clip_grad_norm("clip_grad_norm_", grads, max_norm=max_norm)


def _clip_grad_norm(op: str, grads: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Check the arguments and run `op`, the function or its twin."""
    _check.buffers(op, grads=grads)
    _check.non_negative(op, options, "max_norm")
    clipped, norms = CLIP_GRAD_NORM.run(grads, out=_check.targets(op, {"grads": grads}), **options)
    return clipped, norms


def _compiled(grads: Tensor, *, max_norm: float, out: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    """Run the compiled kernel."""
    (grads,) = buffers.inputs(grads)
    (clipped,) = out or buffers.new_results(grads, 1)
    norms = torch.empty(grads.shape[:-1], dtype=buffers.arithmetic(grads.dtype), device=grads.device)
    sums = None
    if grads.is_cuda:
        rows, columns = buffers.sizes(grads)
        parts = _core.cuda_clip_grad_norm_parts(columns)
        sums = torch.empty(rows * parts, dtype=torch.float64, device=grads.device)
    buffers.run(
        "clip_grad_norm",
        grads,
        buffers.matrix(grads),
        buffers.matrix(clipped),
        buffers.address(norms),
        max_norm,
        buffers.address(sums),
    )
    return clipped, norms


CLIP_GRAD_NORM = Op("clip_grad_norm", _compiled)
