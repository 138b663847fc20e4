"""CUDA graphs: a function of tensors is captured once, then replayed.

A replay runs the same kernels on the same addresses. So all that changes between calls is an input, copied into a
static buffer, and nothing inside may synchronise with the device to read a value.
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
    """Runs a function under the conditions of a capture, and captures it."""

    def warm_up(self, run: Callable[[], Outputs]) -> Outputs:
        """Run once as in a capture, so that libraries allocate and compile before it."""
        ...

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        """Capture without running; return the replay function and the static output tensors.

        Raises:
            RuntimeError: the function cannot be captured.
        """
        ...


class CudaRecorder:
    """Captures CUDA graphs in a shared memory pool, since each result is read before the next graph replays.

    Warm-up and capture use one side stream, so that per-stream library state exists before the capture.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None  # handle of the memory pool, from the first capture on

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
                # "thread_local": other threads, such as a data loader's, may use the device during the capture.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    results = run()
            except Exception:
                self._pool = None  # a failed capture leaves its pool unusable
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
    """LRU cache of captured graphs by signature: the settings, and the shape and dtype of every input.

    The first call of a signature runs eagerly, as the warm-up; the second captures and replays, later ones replay. So
    a signature that occurs once is never captured. One that cannot be captured runs eagerly from then on, and one log
    line says why.

    Args:
        recorder: captures the graphs.
        capacity: number of signatures kept, the most recently used ones.
    """

    def __init__(self, recorder: Recorder, capacity: int = 4) -> None:
        self._recorder = recorder
        self._capacity = capacity
        self._known: OrderedDict[Hashable, _Recording | None] = OrderedDict()  # None: warmed up, not captured yet
        self._rejected: dict[Hashable, str] = {}

    def __call__(self, function: Function, inputs: Inputs, settings: Hashable) -> Outputs:
        """Return `function(inputs)`; the results of a replay are valid until the next call.

        Args:
            function: reads only its inputs, and state whose addresses and Python values never change.
            inputs: tensors on the device.
            settings: the rest of the signature.
        """
        signature = (settings, tuple((name, x.shape, x.dtype) for name, x in inputs.items()))
        if signature in self._rejected:
            return function(inputs)
        if signature not in self._known:
            self._keep(signature, None)
            return self._recorder.warm_up(lambda: function(inputs))
        recording = self._known[signature]
        if recording is None:
            try:
                recording = self._record(function, inputs)
            except RuntimeError as error:
                self._reject(signature, error)
                return function(inputs)
        self._keep(signature, recording)
        return recording(inputs)

    def describe(self) -> str:
        """Return the number of captured graphs, and the reasons why others could not be captured."""
        recorded = sum(recording is not None for recording in self._known.values())
        lines = [f"{recorded} recorded", *(f"one kind cannot be recorded: {why}" for why in self._rejected.values())]
        return "; ".join(lines)

    def _record(self, function: Function, inputs: Inputs) -> _Recording:
        buffers = {name: x.clone() for name, x in inputs.items()}
        return _Recording(buffers, *self._recorder.record(lambda: function(buffers)))

    def _keep(self, signature: Hashable, recording: _Recording | None) -> None:
        self._known[signature] = recording
        self._known.move_to_end(signature)
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)

    def _reject(self, signature: Hashable, error: RuntimeError) -> None:
        del self._known[signature]
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        self._rejected[signature] = reason
        log_once(logger, logging.WARNING, f"this meta-step is not replayed as a graph, expect less speed: {reason}")
