"""The compiled extension: fused updates over flat buffers, and the engine of inner loops; buffers are addresses.

Only `metagan_fast._native` calls it, and guarantees devices, shapes, strides and lifetimes; the extension checks only
types, codes and element strides.

**Ops** are looked up by name: `getattr(_core, op)(launch, *operands)` runs `op` of `csrc/ops/launch.h` on the CPU, and
`getattr(_core, f"cuda_{op}")` on a GPU if built with CUDA (see `cuda_problem`). The operands have the order of the
signature in `csrc/ops/launch.h`, where optional ones are described; there are no keywords. By C++ type they are

| `Launch`, `DeviceLaunch` | `(dtype, rows, columns, threads)`, `(dtype, rows, columns, (device, stream))` |
| `Matrix` | `(address, row_stride)`, None if absent |
| `const void*`, `void*`, `double*` | an address, 0 if absent |
| `LearningRate` | a float, or `(address, row_stride, segment_stride, element_stride, segment_ends, segments)` |
| `Number` | a float, or `(address,)` of a float64 that is read when the op runs |
| `double` | a float |
| `SgdOptions`, `AdamOptions`, `RmspropOptions` | a tuple of all members, in order |

Conventions of every op:

- `dtype` is one of FLOAT32, BFLOAT16, FLOAT64 and applies to every buffer of the call. bfloat16 is computed in float32
  and rounded once, at the store. The *arithmetic dtype* is float64 for FLOAT64, float32 otherwise.
- A buffer is `rows` rows of `columns` contiguous elements; strides count elements, and an input's row stride may be 0.
  Rows and columns may be 0. Addresses are aligned to the element size, and on a GPU are a device's.
- An output may alias one input (same address, same stride): the in-place form. It overlaps nothing else.
- On a CPU at most `threads` threads run a call, the calling one included, and at most one a processor; the bits of the
  result do not depend on their number. On a GPU a call returns when the work is enqueued in `stream`, a CUDA stream's
  handle, and raises RuntimeError if that fails. The GIL is released.
- An argument of a wrong type, dtype code or element stride raises TypeError.
- Python floats are rounded to the arithmetic dtype once.
- An optional buffer is absent in the input exactly when its output is. For the first step of SGD with momentum the
  caller passes a buffer of zeros, and dampening 0.
- `inverse_bias1` and `inverse_bias2` are `reference.inverse_bias_corrections(step, betas)`.
- Ops that combine tasks have at least one, and ignore the learning rate's row stride.
"""

from typing import Any, TypeAlias

Number: TypeAlias = float | tuple[int]
SgdOptions: TypeAlias = tuple[float, float, float, bool]
AdamOptions: TypeAlias = tuple[float, float, Number, Number, float, float, float, bool]
RmspropOptions: TypeAlias = tuple[float, float, float, float]

SOURCE_DIGEST: str
BUILD: dict[str, str]  # versions of compiler, pybind11 and Python's headers; "cuda" if built with its kernels
FLOAT32: int
BFLOAT16: int
FLOAT64: int

def available_isas() -> list[str]:
    """Return the instruction sets that this processor supports, slowest first.

    They are "portable", "avx2", "avx512" and "avx512_bf16", which differs from "avx512" in bf16 products only.
    """

def isa() -> str:
    """Return the instruction set in use: the fastest, unless METAGAN_FAST_ISA or `set_isa` selects another.

    The environment variable METAGAN_FAST_ISA is read at import, which raises ImportError if the processor does not
    support the set that it names.
    """

def set_isa(name: str) -> None:
    """Select the instruction set of all threads. For tests and benchmarks.

    Raises ValueError if the processor does not support it.
    """

def folder_listing(path: bytes) -> bytes:
    """Return the entries of a folder, sorted by name; `metagan_fast.tasks.listing` has the layout.

    The GIL is released. OSError names the folder.
    """

def set_profiling(on: bool) -> None:
    """Start the engine's profiling counters from 0, or stop them. For benchmarks."""

def profile() -> dict[str, float]:
    """Return seconds by kind of work, summed over threads, since `set_profiling(True)`."""

def multiply_add_rate(threads: int, seconds: float) -> float:
    """Return the peak rate of `threads` threads, in float32 multiply-adds a second. For benchmarks.

    Measured in registers, without loads, in the instruction set in use, for about `seconds`. The GIL is released; the
    call cannot be interrupted. Raises ValueError for less than 1 thread, and for seconds not in (0, 60].
    """

class TensorReader:
    """Reader of PyTorch tensors through DLPack's C exchange interface, a capsule on the class `Tensor`.

    Accepts objects whose class is exactly `tensor` or `parameter`, no subclasses. Raises ValueError if the capsule's
    major version is not 1.
    """

    def __init__(self, exchange_api: object, tensor: type, parameter: type) -> None: ...
    def gather(
        self, params: list[Any], state: dict[Any, Any], keys: tuple[str | None, ...], counted: bool
    ) -> OptimizerBatch:
        """Gather the parameters whose `grad` is not None and whose `state` is complete; nothing is modified.

        A parameter qualifies if it, its gradient and the tensors `keys` of its state (at most 3, in the order of the
        op's buffers; None for a buffer that the op does not use) are plain CPU tensors of one of the three dtypes, with
        the same strides and without gaps; with `counted`, its state also needs "step", a 0-dim tensor. No parameter
        qualifies if parameters overlap.
        """

class OptimizerBatch:
    """Tensors that `gather` qualified, kept alive.

    A step adds 1 to each "step" tensor and updates all others in place, on at most `threads` threads, with the same
    bits for any number. The caller bumps autograd's version counters. `maximize` steps along the gradient.
    """

    written: list[Any]  # parameters and their state, without "step"
    rest: list[Any]  # parameters that do not qualify

    def sgd_step(self, threads: int, maximize: bool, lr: float, options: SgdOptions) -> None:
        """`keys`: the momentum buffer, exactly when `momentum` is not 0."""

    def adam_step(self, threads: int, maximize: bool, lr: float, options: AdamOptions) -> None:
        """`keys`: exp_avg, exp_avg_sq and, for AMSGrad, max_exp_avg_sq. Bias corrections follow from "step"."""

    def rmsprop_step(self, threads: int, maximize: bool, lr: float, options: RmspropOptions) -> None:
        """`keys`: square_avg, the momentum buffer if `momentum` is not 0, and grad_avg for a centered variance."""

def cuda_problem() -> str:
    """Return why the `cuda_*` ops cannot run here, "" if they can. A build without CUDA has no such ops."""

def cuda_clip_grad_norm_parts(columns: int) -> int:
    """Return the columns of `sums` of `clip_grad_norm` on a GPU; 0 for short rows, which take one launch, not two."""

class Engine:
    """Engine that runs the inner loops of a task batch for two networks.

    Networks are `Plan.to_core()` of `executors/native/lowering/types.py`; `loss` and `inner` are `loss_settings` and
    `inner_settings` of `executors/native/engine_call.py`; `precision` is "float32" or "bf16". Every method takes one
    dict of numbers, tuples of numbers, and addresses of contiguous float32 arrays (`support_index`: int64), 0 for an
    absent array. All calls need `tasks` and `threads`; inner loops also need `shots`, `steps`, and the real and the
    generated images of an update, `batch` and `generated`. The GIL is released; Ctrl-C raises KeyboardInterrupt.

    Raises ValueError for an unsupported operation or setting, naming it.
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
        `[steps, critic_steps, tasks, generated, latent]`, `generator_latents`
        `[steps * generator_steps, tasks, generated, latent]`, `interpolation` `[steps, critic_steps, tasks, batch]`;
        `generator_lrs`, `discriminator_lrs`, one number a step.
        Updated: `generator_buffers`, `discriminator_buffers`, addresses of optimizer state `[tasks, numel]` after
        `updates_done` updates (generator's, discriminator's); empty: the state starts from zeros and is not returned.
        Written: `generator`, `discriminator` `[tasks, numel]` or, if these are 0, `generator_difference`,
        `discriminator_difference` `[numel]`, bitwise equal to `reptile_gradient`, which go on with a sum of `added`
        earlier tasks and divide after the last of `summed` tasks; `metrics` `[3, tasks]`: the last step's
        discriminator loss, penalty and generator loss; `step_losses` `[steps, 2, tasks]` or 0: the discriminator and
        generator loss of every step.
        """

    def query_gradient(self, arguments: dict[str, Any]) -> None:
        """Write the mean over tasks of the query losses' gradients.

        Read, besides the inputs of `inner_loop`: `query` `[tasks, query_count, C, H, W]`;
        `query_discriminator_latents`, `query_generator_latents` `[evaluations, tasks, query_count, latent]`;
        `query_interpolation` `[evaluations, tasks, query_count]`; `step_weights`, one number a step; `multi_step`,
        `first_order` 0 or 1; `segment`, inner steps between two kept states of a second-order sweep, at most all;
        `objective` "support" (the adapted discriminator judges the generator), "initial" (the initial one) or "query"
        (the initial one adapted to the query images, with `query_adaptation_latents` `[steps, critic_steps, tasks,
        query_count, latent]` and `query_adaptation_interpolation` `[steps, critic_steps, tasks, query_count]`).
        Written: `generator_gradient`, `discriminator_gradient` `[numel]`; `metrics` `[5, tasks]`: the metrics of
        `inner_loop`, then the query losses of discriminator and generator.
        """

    def query_losses(self, arguments: dict[str, Any]) -> None:
        """Write `metrics` `[2, tasks]`: the query losses of discriminator and generator for given parameters.

        Read: `generator`, `discriminator` `[tasks, numel]`; the query inputs of `query_gradient`, 1 evaluation.
        """

    def generate(self, arguments: dict[str, Any]) -> None:
        """Write `images` `[tasks, count, C, H, W]`.

        Read: `generator` `[tasks, numel]`, `latents` `[tasks, count, latent]`; `count`.
        """

    def score(self, arguments: dict[str, Any]) -> None:
        """Write `scores` `[tasks, count]`.

        Read: `discriminator` `[tasks, numel]`, `images` `[tasks, count, C, H, W]`; `count`.
        """

    def memory_use(self, sizes: dict[str, Any]) -> dict[str, int]:
        """Return the bytes of inner loops, or of a query gradient if `objective` is not None.

        Read: `tasks`, `threads`, `steps`, `batch`, `generated`, `query_count`; `rows` 1 if all adapted parameters are
        returned; `objective` and, unless it is None, `first_order` and `segment`, as in `query_gradient`.
        Returned: `workers`, their number; the bytes of all workers' `activations`, `optimizer_state` and `adjoint`, of
        all threads' `scratch`, and of the `sums` that a call frees at its end.
        """

def network_passes(network: dict[str, Any], arguments: dict[str, Any], precision: str = "float32") -> None:
    """Run the passes of one network, for tests.

    Read: `params` `[numel]`, `inputs` and, with `paired`, `params_tangent` (or 0) and `inputs_tangent` in the shapes of
    parameters and inputs; `output_cotangent` and `tangent_cotangent` in the output's shape; the numbers `images` and
    `threads`. Written: `outputs`, `outputs_tangent` (the derivative along the tangents), and the gradients
    `params_gradient`, `inputs_cotangent` and `inputs_tangent_cotangent` of
    `<output_cotangent, outputs> + <tangent_cotangent, outputs_tangent>`. Without `paired`: `outputs`,
    `inputs_cotangent` and `params_gradient` only.
    """
