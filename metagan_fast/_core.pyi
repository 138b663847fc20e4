"""The compiled extension: fused updates over flat buffers, given by address.

Nothing is checked here beyond what would be a crash to get wrong cheaply; `metagan_fast._native` is the one caller and
vouches for devices, shapes, strides and lifetimes. Conventions of every op:

- `dtype` is one of FLOAT32, BFLOAT16, FLOAT64 and holds for every buffer of the call. bfloat16 computes in float32 and
  rounds once, at the store. *Arithmetic dtype* below: float64 for FLOAT64, float32 otherwise.
- Every buffer is `rows` rows of `columns` adjacent elements, as `(address, row_stride)`; strides count elements, and an
  input's stride may be 0. Any size will do, 0 rows or 0 columns included. Addresses need the element's own alignment.
- An output may be one of the inputs (same address, same stride): the in-place form. Outputs overlap nothing else.
- At most `threads` threads work on a call, the caller among them, and no more than it has processors to run on; the
  result is the same bits for any number. The GIL is released.
- Arguments of a wrong type, dtype code or element stride raise TypeError.
- Python floats are rounded to the arithmetic dtype once. A `Number` is one, or `(address,)` of one in float64, which is
  read when the op runs.
- An optional buffer is None in the input exactly when its output is None.

A `LearningRate` is a float, or `(address, row_stride, segment_stride, element_stride, segment_ends, segments)`:
the rate of row r, segment s, element e (the column, counted from the start of the row) is
`data[r * row_stride + s * segment_stride + e * element_stride]`, in the arithmetic dtype.
`element_stride` is 0 or 1. `segment_ends` is the address of `segments` int64: ascending column indices at which
each segment ends, the last one equal to `columns`; pass 0 and 1 for a single segment.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

Matrix: TypeAlias = tuple[int, int]
Number: TypeAlias = float | tuple[int]
LearningRate: TypeAlias = float | tuple[int, int, int, int, int, int]

SOURCE_DIGEST: str
FLOAT32: int
BFLOAT16: int
FLOAT64: int

def available_isas() -> list[str]:
    """Return the instruction sets this processor runs, worst first: some of "portable", "avx2", "avx512",
    "avx512_bf16", which is "avx512" but for products in bf16."""

def isa() -> str:
    """Return the one in use: the best, unless the environment variable METAGAN_FAST_ISA or `set_isa` chose another.

    METAGAN_FAST_ISA is read at import, which raises ImportError if the processor lacks what it names.
    """

def set_isa(name: str) -> None:
    """Use another instruction set from now on, in every thread. For tests and benchmarks.

    Raises ValueError when the processor does not have it.
    """

def set_profiling(on: bool) -> None:
    """Begin counting what the engine's threads spend their time on, from 0, or end it. For benchmarks."""

def profile() -> dict[str, float]:
    """Return the seconds of all threads together by kind of work since `set_profiling(True)`."""

def multiply_add_rate(threads: int, seconds: float) -> float:
    """Return the float32 multiply-adds a second that `threads` threads reach together at best. For benchmarks.

    They run in registers, without a load, in the instruction set in use, for about `seconds`. The GIL is released; the
    call cannot be interrupted. Raises ValueError for less than 1 thread, and for seconds not in (0, 60].
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
    inverse_bias1: Number,
    inverse_bias2: Number,
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
    step_size: Number,
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
    inverse_bias1: Number,
    inverse_bias2: Number,
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

class TensorReader:
    """Reads tensors of PyTorch, by the functions of DLPack's C interface that the class `Tensor` carries.

    Objects of other classes than `tensor` and `parameter`, subclasses included, do not fit. Raises ValueError when the
    capsule is of another major version than 1.
    """

    def __init__(self, exchange_api: object, tensor: type, parameter: type) -> None: ...
    def gather(
        self, params: list[Any], state: dict[Any, Any], keys: tuple[str | None, ...], counted: bool
    ) -> OptimizerBatch:
        """Take the parameters whose `grad` is not None and whose `state` has what is wanted.

        A parameter fits if it, its gradient and the tensors `keys` of its state (at most 3, in the order of the op's
        buffers; None where the op is to go without) are plain tensors on a CPU, of one of the three dtypes, with the
        same strides and without gaps; with `counted`, also "step", a tensor of no dimension. None fits when parameters
        overlap. Nothing is changed.
        """

class OptimizerBatch:
    """What `gather` took: kept alive, and updated by one of the calls.

    These add 1 to each "step" and update everything in place, in at most `threads` threads, with the same result for
    any number. Autograd's version counters are the caller's. `maximize` steps along the gradient.
    """

    written: list[Any]  # parameters and their state, without "step"
    rest: list[Any]  # parameters that do not fit

    def sgd_step(
        self,
        threads: int,
        maximize: bool,
        lr: float,
        momentum: float,
        dampening: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        """State: the momentum buffer, exactly when `momentum` is not 0."""

    def adam_step(
        self,
        threads: int,
        maximize: bool,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        decoupled: bool,
    ) -> None:
        """State: exp_avg, exp_avg_sq and, for AMSGrad, the largest exp_avg_sq so far."""

    def rmsprop_step(
        self,
        threads: int,
        maximize: bool,
        lr: float,
        alpha: float,
        eps: float,
        weight_decay: float,
        momentum: float,
    ) -> None:
        """State: square_avg, with momentum its buffer and, where the variance is to be centered, grad_avg."""

def cuda_problem() -> str:
    """Return why the ops that follow cannot run here, or an empty string.

    They take the arguments of the op of their name, addresses on the device, with `(device, stream)`, a device's index
    and the handle of one of its CUDA streams, in the place of `threads`. They return when the work is enqueued and
    raise RuntimeError when it cannot be. There are none in a build without CUDA.
    """

cuda_sgd_step: Callable[..., None]
cuda_adam_step: Callable[..., None]
cuda_rmsprop_step: Callable[..., None]
cuda_reptile_interpolate: Callable[..., None]
cuda_reptile_gradient: Callable[..., None]
cuda_meta_adam_step: Callable[..., None]
cuda_clip_grad_norm: Callable[..., None]  # one argument more: the address of [rows, parts] float64 to work in
cuda_ema_update: Callable[..., None]

def cuda_clip_grad_norm_parts(columns: int) -> int:
    """Return the `parts` of that memory: 0 for short rows, which take one launch, where others take two."""

class Engine:
    """Whole inner loops of a task batch for two networks.

    Networks are `executors.plan.Plan.to_core()`, the settings what `executors.native_executor` makes of a loss and of
    an inner loop; `precision` is "float32" or "bf16". Every method takes one dict of numbers, tuples of numbers, and
    addresses of contiguous float32 arrays
    (`support_index`: int64), 0 for what is absent. Always among them: `tasks` and `threads`; of an inner loop also
    `shots`, `steps` and `batch`, the images that an update sees. The GIL is released; Ctrl-C raises KeyboardInterrupt.

    Raises ValueError for what it cannot run, naming the operation.
    """

    def __init__(
        self,
        generator: dict[str, Any],
        discriminator: dict[str, Any],
        loss: dict[str, Any],
        inner: dict[str, Any],
        precision: str,
    ) -> None: ...
    def inner_loop(self, arguments: dict[str, Any]) -> None:
        """Adapt the initialisation to every task.

        Read: `initial_generator`, `initial_discriminator` `[numel]`; `support` `[tasks, shots, C, H, W]`;
        `support_index` `[steps, critic_steps, tasks, batch]` or 0; `discriminator_latents`
        `[steps, critic_steps, tasks, batch, latent]`, `generator_latents` `[steps, tasks, batch, latent]`,
        `interpolation` `[steps, critic_steps, tasks, batch]`; `generator_lrs`, `discriminator_lrs`, a number a step.
        Read and written: `generator_buffers`, `discriminator_buffers`, addresses of optimizer state `[tasks, numel]`,
        after `updates_done` updates (generator's, discriminator's); empty: zeros, not handed out.
        Written: `generator`, `discriminator` `[tasks, numel]`, or, where they are 0, `generator_difference`,
        `discriminator_difference` `[numel]`, the bytes of `reptile_gradient`; `metrics` `[3, tasks]`: the
        discriminator's loss, penalty and the generator's loss of the last step; `step_losses` `[steps, 2, tasks]` or
        0: the discriminator's and the generator's loss of every step.
        """

    def query_gradient(self, arguments: dict[str, Any]) -> None:
        """Write the mean over tasks of the query losses' gradients.

        Read, beside what `inner_loop` reads: `query` `[tasks, query_count, C, H, W]`; `query_discriminator_latents`,
        `query_generator_latents` `[evaluations, tasks, query_count, latent]`; `query_interpolation`
        `[evaluations, tasks, query_count]`; `step_weights`, a number a step; `multi_step`, `first_order` 0 or 1;
        `objective` 0 (the adapted discriminator judges the generator), 1 (the initial one) or 2 (the initial one
        adapted to the query images, with `query_adaptation_latents` `[steps, critic_steps, tasks, query_count,
        latent]` and `query_adaptation_interpolation` `[steps, critic_steps, tasks, query_count]`).
        Written: `generator_gradient`, `discriminator_gradient` `[numel]`; `metrics` `[5, tasks]`: those of
        `inner_loop`, then the query losses of discriminator and generator.
        """

    def query_losses(self, arguments: dict[str, Any]) -> None:
        """Write `metrics` `[2, tasks]`: the query losses of discriminator and generator for given parameters.

        Read: `generator`, `discriminator` `[tasks, numel]`, and the query of `query_gradient` with one evaluation.
        """

    def generate(self, arguments: dict[str, Any]) -> None:
        """Write `images` `[tasks, count, C, H, W]`.

        Read: `generator` `[tasks, numel]`, `latents` `[tasks, count, latent]`; `count`.
        """

    def workspace_bytes(self, batch: int, query: int, steps: int, objective: int, adjoint: bool) -> int:
        """Return the memory that one thread works in, for images an update, query images and steps of an inner loop.

        `adjoint` says whether second-order gradients are wanted.
        """

def network_passes(network: dict[str, Any], arguments: dict[str, Any], precision: str = "float32") -> None:
    """Run one network and its derivatives, for tests.

    Read: `params` `[numel]`, `inputs` and, with `paired`, `params_tangent` (or 0), `inputs_tangent`, in the shapes of
    parameters and inputs; `output_cotangent` and `tangent_cotangent` in that of the output. `images` and `threads` are
    numbers. Written: `outputs`, `outputs_tangent` (the derivative along the tangents), and of
    `<output_cotangent, outputs> + <tangent_cotangent, outputs_tangent>` the gradients `params_gradient`,
    `inputs_cotangent` and `inputs_tangent_cotangent`. Without `paired` only `outputs`, `inputs_cotangent` and
    `params_gradient`.
    """
