"""One module run on many tasks at once, each task with parameters of its own."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_, vmap

from .._logging import log_once
from .._rebinding import check_rebindable, closed, data_parallel, scripted
from ..flat import FlatLayout
from .layer_mode import task_layers
from .pairs import Pairs, settled

logger = logging.getLogger(__name__)


def stateless_copy(module: nn.Module) -> nn.Module:
    """Copy a module without its parameters' memory: parameters on the meta device, batch norm on batch statistics.

    Batch norm's running statistics are neither read nor written; other buffers are shared with the original.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
    for buffer in module.buffers():
        memo[id(buffer)] = buffer
    return replace_all_batch_norm_modules_(copy.deepcopy(module, memo))


class BatchedModule:
    """Call a module with parameters `[tasks, numel]` on inputs `[tasks, n, ...]`.

    The tasks run side by side under `torch.func.vmap`, their linear layers and convolutions as `task_layers` says, from
    the second pass on together with the activations that follow them; a
    module that vmap cannot carry (data-dependent control flow, say) runs task by task, and one log line says so. Either
    way the result is an ordinary differentiable function of both arguments, to any order.

    Args:
        module: takes `[n, ...]`, returns `[n, ...]`; kept as a `stateless_copy`.
        layout: the layout of its flat parameters.
        name: what to call it in messages.
        allow_random: let the module draw random numbers (dropout, noise layers); they are not reproducible.
        autocast: run the forward under bf16 autocast; the result has the parameters' dtype.

    Raises:
        ValueError: the module, or a function assigned to a part of it, keeps to its own parameters.
    """

    def __init__(
        self, module: nn.Module, layout: FlatLayout, name: str, *, allow_random: bool = False, autocast: bool = False
    ) -> None:
        check_rebindable(module, closed, name=name)
        check_rebindable(module, scripted, data_parallel, name=name, recurse=False)  # as a part, each is replaced
        self.module = stateless_copy(module)
        self.layout = layout
        self.name = name
        self.allow_random = allow_random
        self.autocast = autocast
        self.vectorized: bool | None = None  # None until the first call has tried
        self._pairs = Pairs()

    def __call__(self, params: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs `[tasks, n, ...]`."""
        if self.vectorized is None:
            self._try(params, inputs)
        with torch.autocast(params.device.type, torch.bfloat16, enabled=self.autocast):
            outputs = self._vectorized(params, inputs) if self.vectorized else self._looped(params, inputs)
        return outputs.to(params.dtype)

    def _one_task(self, params: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return settled(functional_call(self.module, params, (inputs,)))

    def _vectorized(self, params: Tensor, inputs: Tensor) -> Tensor:
        randomness = "different" if self.allow_random else "error"
        with task_layers(params.device, self._pairs):
            return vmap(self._one_task, randomness=randomness)(self.layout.views(params), inputs)

    def _looped(self, params: Tensor, inputs: Tensor) -> Tensor:
        rows = [
            self._one_task(self.layout.views(p), x) for p, x in zip(params.unbind(0), inputs.unbind(0), strict=True)
        ]
        return torch.stack(rows)

    @torch.no_grad()
    def _try(self, params: Tensor, inputs: Tensor) -> None:
        """Run one task plainly, for errors that name the module, then choose between vmap and the loop."""
        params, inputs = params.detach(), inputs.detach()
        random_before = _random_state(params.device)
        try:
            outputs = self._looped(params[:1], inputs[:1])
        except Exception as error:
            raise ValueError(
                f"the {self.name} failed on an input of shape {list(inputs.shape[1:])}: {error}; check latent_dim and "
                "the size and channels of the images against the module"
            ) from error
        if not isinstance(outputs, Tensor) or outputs.shape[1:2] != inputs.shape[1:2]:
            raise ValueError(
                f"expected the {self.name} to return one row an input, [{inputs.shape[1]}, ...], "
                f"got {list(outputs.shape[1:])}; keep the first dimension for the batch"
            )
        if not self.allow_random and not torch.equal(random_before, _random_state(params.device)):
            raise ValueError(
                f"the {self.name} draws random numbers, so its results could not be reproduced; call .eval() on its "
                "dropout layers before building MetaGAN, or pass allow_random=True"
            )
        try:
            self._vectorized(params[:2], inputs[:2])
            self.vectorized = True
        except Exception as error:  # the plain run above passed, so it is vmap that cannot
            self.vectorized = False
            reason = str(error).strip().splitlines()[0]
            log_once(
                logger, logging.WARNING, f"the {self.name} runs task by task, since vmap cannot carry it: {reason}"
            )
            return
        if self._pairs.found:
            try:
                self._vectorized(params[:2], inputs[:2])
            except Exception:  # a module that gets at a layer's output by a way of its own
                self._pairs.found = set()


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
