"""Meta-steps as CUDA graphs: noise, inner loops, meta-gradient and meta-optimizer in one recording."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from .._utils.pair import Pair
from ..distributed import Ranks
from ..executors import Executor
from ..executors.torch.cuda_graphs import CudaRecorder, Inputs, Outputs, Recorder, Recordings
from ..inner import InnerLoop
from ..noise import Noise, NoiseShape, draw_noise_at
from ..tasks import TaskBatch
from .algorithms import MetaAlgorithm
from .meta_optimizer import Buffers

SWITCH = "METAGAN_FAST_GRAPHS"


def why_not(device: torch.device, inner: InnerLoop, ranks: Ranks | None = None) -> str | None:
    """Return the reason not to record meta-steps on a device, or None."""
    if device.type != "cuda":
        return f"CUDA graphs need a CUDA device, the networks are on {device}"
    if ranks is not None:
        return "the ranks of a process group share them"
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0 turns CUDA graphs off"
    if inner.inner_state == "persist":
        return 'with inner_state="persist" the inner optimizer counts on, and a graph would repeat its first count'
    return None


class MetaStepGraphs:
    """Meta-steps of one initialisation, replayed as graphs where they repeat.

    The host reads nothing back during a meta-step, so a meta-gradient that is not finite cannot stop it: the update
    then keeps the initialisation and the state, and the returned norm is not finite. A recorded meta-step ignores later
    changes of torch's settings, such as the precision of matrix products.

    Args:
        executor: runs the inner loops.
        initial, buffers: the initialisation and the meta-optimizer's state; updated in place, at fixed addresses.
        recorder: records and replays a function; None: CUDA graphs.
    """

    def __init__(
        self,
        executor: Executor,
        initial: Pair[Tensor],
        buffers: Pair[Buffers],
        recorder: Recorder | None = None,
    ) -> None:
        self._executor = executor
        self._initial = initial
        self._buffers = buffers
        self._recorder = recorder or CudaRecorder(initial.generator.device)
        self._recordings = Recordings(self._recorder)
        self._meta: MetaAlgorithm | None = None  # algorithm of the recordings

    def describe(self) -> str:
        """Describe the recordings."""
        return self._recordings.describe()

    def update(
        self,
        meta: MetaAlgorithm,
        batch: TaskBatch,
        noise: Noise | NoiseShape,
        *,
        counters: tuple[int, ...],
        meta_step: int,
        update: int,
    ) -> dict[str, float]:
        """Adapt to the tasks, update the initialisation, and return the metrics with `gradient_norm`.

        Args:
            meta: algorithm and meta-optimizer.
            batch: the tasks, on the initialisation's device.
            noise: the noise, or the sizes of the noise to draw from `counters`.
            counters: `noise.noise_counters(...)`.
            meta_step: from 0, for schedules.
            update: number of this update, from 1, for bias corrections.
        """
        if meta is not self._meta:
            self._meta, self._recordings = meta, Recordings(self._recorder)
        device = self._initial.generator.device
        inputs = {
            "numbers": torch.tensor(meta.numbers(meta_step, update), dtype=torch.float64).to(device),
            "counters": torch.tensor(counters, dtype=torch.int64).to(device),
            "support": batch.support,
        }
        if batch.query is not None:
            inputs["query"] = batch.query
        shape = None if isinstance(noise, Noise) else noise
        if isinstance(noise, Noise):
            inputs |= {f"noise.{name}": x for name, x in noise.drawn().items()}

        def run(given: Inputs) -> Outputs:
            return self._run(meta, given, shape, meta_step)

        settings = meta.settings_at(meta_step, noise.steps), shape
        metrics = self._recordings(run, inputs, settings)
        return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))

    def _run(self, meta: MetaAlgorithm, given: Inputs, shape: NoiseShape | None, meta_step: int) -> Outputs:
        """Run one meta-step; it may depend on `meta_step` only through `settings_at`."""
        batch = TaskBatch.trusted(given["support"], given.get("query"))
        if shape is None:
            prefix = "noise."
            noise = Noise(**{name.removeprefix(prefix): x for name, x in given.items() if name.startswith(prefix)})
        else:
            noise = draw_noise_at(shape, given["counters"], dtype=batch.support.dtype)
        gradient = meta.meta_gradient(self._executor, self._initial, batch, noise, meta_step)
        lr, corrections = given["numbers"][0], given["numbers"][1:]
        return meta.update(self._initial, self._buffers, gradient, lr, corrections, check=None)
