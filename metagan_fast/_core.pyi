"""The compiled extension: fused updates over flat buffers, given by address.

Nothing is checked here beyond what would be a crash to get wrong cheaply; `metagan_fast._native` is the one caller and
vouches for devices, shapes, strides and lifetimes. Conventions of every op:

- `dtype` is one of FLOAT32, BFLOAT16, FLOAT64 and holds for every buffer of the call. bfloat16 computes in float32 and
  rounds once, at the store. *Arithmetic dtype* below: float64 for FLOAT64, float32 otherwise.
- Every buffer is `rows` rows of `columns` adjacent elements, as `(address, row_stride)`; strides count elements, and an
  input's stride may be 0. Any size will do, 0 rows or 0 columns included. Addresses need the element's own alignment.
- An output may be one of the inputs (same address, same stride): the in-place form. Outputs overlap nothing else.
- At most `threads` threads work on a call, the caller among them; the result is the same bits for any number.
  The GIL is released.
- Arguments of a wrong type, dtype code or element stride raise TypeError.
- Python floats are rounded to the arithmetic dtype once.
- An optional buffer is None in the input exactly when its output is None.

A `LearningRate` is a float, or `(address, row_stride, segment_stride, element_stride, segment_ends, segments)`:
the rate of row r, segment s, element e (the column, counted from the start of the row) is
`data[r * row_stride + s * segment_stride + e * element_stride]`, in the arithmetic dtype.
`element_stride` is 0 or 1. `segment_ends` is the address of `segments` int64: ascending column indices at which
each segment ends, the last one equal to `columns`; pass 0 and 1 for a single segment.
"""

from typing import TypeAlias

Matrix: TypeAlias = tuple[int, int]
LearningRate: TypeAlias = float | tuple[int, int, int, int, int, int]

FLOAT32: int
BFLOAT16: int
FLOAT64: int

def available_isas() -> list[str]:
    """Return the instruction sets this processor runs, worst first: some of "portable", "avx2", "avx512"."""

def isa() -> str:
    """Return the one in use: the best, unless the environment variable METAGAN_FAST_ISA or `set_isa` chose another.

    METAGAN_FAST_ISA is read at import, which raises ImportError if the processor lacks what it names.
    """

def set_isa(name: str) -> None:
    """Use another instruction set from now on, in every thread. For tests and benchmarks.

    Raises ValueError when the processor does not have it.
    """

def sgd_step(
    dtype: int,
    rows: int,
    columns: int,
    threads: int,
    params: Matrix,
    grads: Matrix,
    momentum_buffer: Matrix | None,
    params_out: Matrix,
    momentum_buffer_out: Matrix | None,
    lr: LearningRate,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """Buffers are None exactly when `momentum` is 0. The first step is the caller's: zeros, and dampening 0."""

def adam_step(
    dtype: int,
    rows: int,
    columns: int,
    threads: int,
    params: Matrix,
    grads: Matrix,
    exp_avg: Matrix,
    exp_avg_sq: Matrix,
    params_out: Matrix,
    exp_avg_out: Matrix,
    exp_avg_sq_out: Matrix,
    lr: LearningRate,
    beta1: float,
    beta2: float,
    inverse_bias1: float,
    inverse_bias2: float,
    eps: float,
    eps_root: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """`inverse_bias1` and `inverse_bias2` are `reference.inverse_bias_corrections(step, betas)`."""

def rmsprop_step(
    dtype: int,
    rows: int,
    columns: int,
    threads: int,
    params: Matrix,
    grads: Matrix,
    square_avg: Matrix,
    momentum_buffer: Matrix | None,
    grad_avg: Matrix | None,
    params_out: Matrix,
    square_avg_out: Matrix,
    momentum_buffer_out: Matrix | None,
    grad_avg_out: Matrix | None,
    lr: LearningRate,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
) -> None:
    """The momentum buffers are None exactly when `momentum` is 0; `grad_avg` makes the variance centered."""

def reptile_interpolate(
    dtype: int,
    tasks: int,
    columns: int,
    threads: int,
    initial: int,
    adapted: Matrix,
    weights: int,
    out: int,
    step_size: float,
) -> None:
    """`initial` and `out` are the addresses of one row. `weights`: `[tasks]` in the arithmetic dtype; 0: the mean.

    `tasks` is at least 1, here and in the next two.
    """

def reptile_gradient(
    dtype: int,
    tasks: int,
    columns: int,
    threads: int,
    initial: int,
    adapted: Matrix,
    weights: int,
    out: int,
) -> None:
    """Arguments as in `reptile_interpolate`."""

def meta_adam_step(
    dtype: int,
    tasks: int,
    columns: int,
    threads: int,
    params: int,
    adapted: Matrix,
    weights: int,
    exp_avg: int,
    exp_avg_sq: int,
    params_out: int,
    exp_avg_out: int,
    exp_avg_sq_out: int,
    lr: LearningRate,
    beta1: float,
    beta2: float,
    inverse_bias1: float,
    inverse_bias2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """All but `adapted` are one row; so is the learning rate (its row stride is not used)."""

def clip_grad_norm(
    dtype: int,
    rows: int,
    columns: int,
    threads: int,
    grads: Matrix,
    grads_out: Matrix,
    norms_out: int,
    max_norm: float,
) -> None:
    """`norms_out` is the address of `[rows]` in the arithmetic dtype."""

def ema_update(
    dtype: int,
    rows: int,
    columns: int,
    threads: int,
    average: Matrix,
    params: Matrix,
    average_out: Matrix,
    decay: float,
) -> None: ...
