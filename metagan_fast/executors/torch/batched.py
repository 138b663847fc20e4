"""A module run on many tasks at once, with per-task parameters."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..._utils.draws import DrawsRandomNumbersError, NoDraws
from ..._utils.lock import Lock
from ..._utils.log import log_once
from ..._utils.modules import Snapshot, buffer_versions, copy_module, use_batch_statistics
from ..._utils.rebinding import check_rebindable, closed, scripted
from ...flat import FlatLayout
from ..base import one_image_error
from .layers.fusion import Fusion, materialized
from .layers.layer_mode import task_layers

logger = logging.getLogger(__name__)


def stateless_copy(module: nn.Module) -> nn.Module:
    """Copy a module with its parameters on the meta device and its batch norm on batch statistics.

    Running statistics are neither read nor written; all other tensors are shared with the original.
    """
    return use_batch_statistics(copy_module(module, lambda p: torch.empty_like(p, device="meta"), share=True))


class BatchedModule:
    """A module with per-task parameters `[tasks, numel]`, called on inputs `[tasks, n, ...]`.

    The outputs are differentiable in parameters and inputs, to any order.

    The tasks run side by side under `torch.func.vmap`, with linear layers and convolutions on the per-task kernels of
    `task_layers`, fused with their activations from the second pass on. A module that vmap does not support (for
    example, data-dependent control flow) runs task by task, and one log line says so.

    Calls are thread-safe: each uses its own copy of the module. A module with mutable state (spectral norm's vectors, a
    running mean) runs on a fresh copy every time, task by task if vmap does not support its writes: calls are
    independent, and the state that they write is dropped.

    Args:
        module: maps `[n, ...]` to `[n, ...]`; only `stateless_copy`s of it are kept.
        layout: the layout of its flat parameters.
        name: what to call it in messages.
        allow_random: let the module draw random numbers (dropout, noise layers); they are not reproducible.
        autocast: run the forward under bf16 autocast; the result has the parameters' dtype.

    Raises:
        ValueError: the module, or a function assigned to one of its submodules, is bound to its original parameters.
    """

    def __init__(
        self, module: nn.Module, layout: FlatLayout, name: str, *, allow_random: bool = False, autocast: bool = False
    ) -> None:
        check_rebindable(module, closed, name=name)
        check_rebindable(module, scripted, name=name, recurse=False)  # replaced as submodules
        try:
            self._original, self.module = stateless_copy(module), stateless_copy(module)
        except Exception as error:
            raise ValueError(f"the {name} cannot be copied: {error}; keep no such object in the module") from error
        self.layout = layout
        self.name = name
        self.allow_random = allow_random
        self.autocast = autocast
        self.vectorized: bool | None = None  # None before the first call
        self._takes_one_row = True
        self._is_stateful = False
        self._fusion = Fusion()
        self._idle = [self.module]
        self._probing = Lock()

    def __call__(self, params: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs `[tasks, n, ...]`."""
        if self.vectorized is None:
            with self._probing:
                if self.vectorized is None:
                    self._probe(params, inputs)
        if inputs.shape[1] == 1 and not self._takes_one_row:
            raise ValueError(one_image_error(self.name))
        with torch.autocast(params.device.type, torch.bfloat16, enabled=self.autocast):
            outputs = self._vectorized(params, inputs) if self.vectorized else self._looped(params, inputs)
        return outputs.to(params.dtype)

    @contextmanager
    def _copy(self) -> Iterator[nn.Module]:
        """Lend a copy of the module for exclusive use."""
        if self._is_stateful:
            yield copy_module(self._original)
            return
        try:
            module = self._idle.pop()
        except IndexError:
            module = stateless_copy(self._original)
        yield module
        self._idle.append(module)  # not reached if the call raises

    def _one_task(self, params: dict[str, Tensor], inputs: Tensor) -> Tensor:
        with self._copy() as module:
            return materialized(functional_call(module, params, (inputs,)))

    def _vectorized(self, params: Tensor, inputs: Tensor) -> Tensor:
        randomness = "different" if self.allow_random else "error"
        with task_layers(params.device, self._fusion):
            return vmap(self._one_task, randomness=randomness)(self.layout.views(params), inputs)

    def _looped(self, params: Tensor, inputs: Tensor) -> Tensor:
        rows = [
            self._one_task(self.layout.views(p), x) for p, x in zip(params.unbind(0), inputs.unbind(0), strict=True)
        ]
        return torch.stack(rows)

    @torch.enable_grad()  # a module may take another path without grad mode than in training
    def _probe(self, params: Tensor, inputs: Tensor) -> None:
        """Run one task without vmap, for errors that name the module, then choose between vmap and the loop."""
        params, inputs = params.detach(), inputs.detach()
        one_row = inputs[:1, :1]
        try:
            outputs = self._run_observed(params[:1], inputs[:1])
        except DrawsRandomNumbersError as error:
            raise ValueError(
                f"the {self.name} draws random numbers, so its results could not be reproduced; call .eval() on its "
                "dropout layers before building MetaGAN, or pass allow_random=True"
            ) from error
        except Exception as error:
            if inputs.shape[1] == 1 and self._runs(params[:1], one_row.expand(-1, 2, *one_row.shape[2:])):
                raise ValueError(one_image_error(self.name)) from error
            raise ValueError(
                f"the {self.name} failed on an input of shape {list(inputs.shape[1:])}: {error}; check latent_dim and "
                "the size and channels of the images against the module"
            ) from error
        if not isinstance(outputs, Tensor) or outputs.shape[1:2] != inputs.shape[1:2]:
            raise ValueError(
                f"expected the {self.name} to return one row an input, [{inputs.shape[1]}, ...], "
                f"got {list(outputs.shape[1:])}; keep the first dimension for the batch"
            )
        self._takes_one_row = inputs.shape[1] == 1 or self._runs(params[:1], one_row)
        self.vectorized = self._can_vectorize(params[:2], inputs[:2])

    def _run_observed(self, params: Tensor, inputs: Tensor) -> Tensor:
        """Run one task on a fresh copy, and detect state changes and random draws.

        Raises:
            DrawsRandomNumbersError: the module draws without `allow_random`.
        """
        self._is_stateful = True
        with self._copy() as module, nullcontext() if self.allow_random else NoDraws():
            before, buffers = Snapshot(module, versions=True), buffer_versions(module)
            outputs = functional_call(module, self.layout.views(params[0]), (inputs[0],))
            self._is_stateful = not before.is_current()
            after = buffer_versions(module)
        written = [name for name, version in buffers.items() if after.get(name) != version]
        if written:
            log_once(
                logger,
                logging.WARNING,
                f"the {self.name} writes its buffer {written[0]!r}: every call starts from the buffer's value in the "
                "module, and what it writes is dropped",
            )
        return outputs.unsqueeze(0) if isinstance(outputs, Tensor) else outputs

    def _runs(self, params: Tensor, inputs: Tensor) -> bool:
        """Return whether the module runs on these inputs."""
        try:
            self._looped(params, inputs)
        except Exception:  # user code may raise anything
            return False
        return True

    def _can_vectorize(self, params: Tensor, inputs: Tensor) -> bool:
        """Return whether vmap supports the module; also detect the layers to fuse with their activations."""
        try:
            self._vectorized(params, inputs)
        except Exception as error:  # the run without vmap passed, so vmap is the cause
            reason = str(error).strip().splitlines()[0]
            log_once(
                logger, logging.WARNING, f"the {self.name} runs task by task, since vmap cannot carry it: {reason}"
            )
            return False
        if self._fusion.fused_layers:
            try:
                self._vectorized(params, inputs)
            except Exception:  # the module reads a layer's output past __torch_function__
                self._fusion.fused_layers = set()
        return True
