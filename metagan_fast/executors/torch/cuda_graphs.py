"""Record a function of tensors once and replay it: CUDA graphs behind a small interface.

A recorded function replays the same kernels on the same addresses. So whatever changes from call to call is an input,
copied into a buffer that stays where it is, and nothing inside may ask the device for a value.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..._utils.log import log_once

logger = logging.getLogger(__name__)

Inputs = Mapping[str, Tensor]
Outputs = dict[str, Tensor]
Function = Callable[[Inputs], Outputs]


class Recorder(Protocol):
    """What runs a function in such a way that it can be recorded, and records it."""

    def warm_up(self, run: Callable[[], Outputs]) -> Outputs:
        """Run once as in a recording, so that what libraries allocate and compile at first is there."""
        ...

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        """Record without running; return what replays it, and the tensors that each replay writes its results to.

        Raises:
            RuntimeError: it cannot be recorded.
        """
        ...


class CudaRecorder:
    """Record CUDA graphs, which share one memory pool: they run one after another and results are read in between.

    It warms up and records on a stream of its own, so that what libraries keep for a stream is there when it records.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None  # a handle, after the first recording

    def warm_up(self, run: Callable[[], Outputs]) -> Outputs:
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                results = run()
            current.wait_stream(self._stream)
            for result in results.values():
                result.record_stream(current)
        return results

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            try:
                # Other threads, a data loader's say, may go on talking to the device.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    results = run()
            except Exception:
                self._pool = None  # a pool that a broken recording drew from is not drawn from again
                raise

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return replay, results


@dataclass(frozen=True)
class _Recording:
    buffers: dict[str, Tensor]
    replay: Callable[[], object]
    results: Outputs

    def __call__(self, inputs: Inputs) -> Outputs:
        for name, buffer in self.buffers.items():
            buffer.copy_(inputs[name])
        self.replay()
        return self.results


class Recordings:
    """Run a function, from its third call of a kind on as a replay.

    The first call of a kind (settings, and shape and dtype of every input) runs as it is, which warms up; the second
    records. What comes once only, such as weights that change every step, is never recorded. A kind that cannot be
    recorded runs as it is from then on, and one log line says why.

    Args:
        recorder: how to record.
        capacity: kinds that are kept, those used last.
    """

    def __init__(self, recorder: Recorder, capacity: int = 4) -> None:
        self._recorder = recorder
        self._capacity = capacity
        self._known: OrderedDict[Hashable, _Recording | None] = OrderedDict()  # None: seen once
        self._refused: dict[Hashable, str] = {}

    def __call__(self, function: Function, inputs: Inputs, settings: Hashable) -> Outputs:
        """Return `function(inputs)`; results of a replay hold until the next call.

        Args:
            function: reads nothing but its inputs, and state whose addresses and Python values stay what they are.
            inputs: tensors on the device.
            settings: what else distinguishes one kind from another.
        """
        kind = (settings, tuple((name, x.shape, x.dtype) for name, x in inputs.items()))
        if kind in self._refused:
            return function(inputs)
        if kind not in self._known:
            self._keep(kind, None)
            return self._recorder.warm_up(lambda: function(inputs))
        recording = self._known[kind]
        if recording is None:
            try:
                recording = self._record(function, inputs)
            except RuntimeError as error:
                self._refuse(kind, error)
                return function(inputs)
        self._keep(kind, recording)
        return recording(inputs)

    def describe(self) -> str:
        """Say what is recorded and what was refused."""
        recorded = sum(recording is not None for recording in self._known.values())
        lines = [f"{recorded} recorded", *(f"one kind cannot be recorded: {why}" for why in self._refused.values())]
        return "; ".join(lines)

    def _record(self, function: Function, inputs: Inputs) -> _Recording:
        buffers = {name: x.clone() for name, x in inputs.items()}
        return _Recording(buffers, *self._recorder.record(lambda: function(buffers)))

    def _keep(self, kind: Hashable, recording: _Recording | None) -> None:
        self._known[kind] = recording
        self._known.move_to_end(kind)
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)

    def _refuse(self, kind: Hashable, error: RuntimeError) -> None:
        del self._known[kind]
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        self._refused[kind] = reason
        log_once(logger, logging.WARNING, f"this meta-step is not replayed as a graph, expect less speed: {reason}")
