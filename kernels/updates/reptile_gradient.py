"""`reptile_gradient`."""

import triton
import triton.language as tl
from metagan_fast.kernels.blocks import locate, read, sum_over_tasks, write
from metagan_fast.kernels.updates import _launch
from torch import Tensor

from metagan_fast._native.buffers import inputs, new_results


@triton.jit
def reptile_gradient_kernel(
    initial,
    adapted,
    adapted_stride,
    tasks,
    weights,
    out,
    numel,
    inverse_tasks: tl.float64,
    A: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    _, start, lanes, mask = locate(numel, BLOCK)
    first = read(initial, start, lanes, mask, A)
    total = sum_over_tasks(
        first, adapted, adapted_stride, tasks, weights, inverse_tasks, start, lanes, mask, A, WEIGHTED, False
    )
    write(out, start, lanes, mask, total)


def reptile_gradient(
    initial: Tensor, adapted: Tensor, *, weights: Tensor | None, out: tuple[Tensor, ...] | None
) -> tuple[Tensor, ...]:
    """Run `reptile_gradient`."""
    initial, adapted = inputs(initial, adapted)
    results = out or new_results(initial, 1)
    _launch.launch(
        reptile_gradient_kernel,
        _launch.blocks_of(initial),
        initial,
        initial,
        *_launch.tasks(adapted, weights),
        results[0],
        initial.shape[-1],
        1 / adapted.shape[0],
        WEIGHTED=weights is not None,
    )
    return results
