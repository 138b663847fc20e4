"""Stand-in for the library `higher`: differentiable inner loops, with a fused optimizer step over one flat buffer.

Change `import higher` to `from metagan_fast.dropin import higher`. `docs/migrate/higher.md` lists what differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .._originals import hand_on
from . import optim, patch, utils
from .optim import DifferentiableOptimizer, Override, create_diff_optim, get_diff_optim, register_optim
from .patch import FunctionalModule, make_functional, monkeypatch

__all__ = [
    "create_diff_optim",
    "get_diff_optim",
    "innerloop_ctx",
    "make_functional",
    "monkeypatch",
    "optim",
    "patch",
    "register_optim",
    "utils",
]
__getattr__, __dir__ = hand_on(__name__, "higher")


@contextmanager
def innerloop_ctx(
    model: nn.Module,
    opt: torch.optim.Optimizer,
    device: torch.device | None = None,
    copy_initial_weights: bool = True,
    override: Override | None = None,
    track_higher_grads: bool = True,
) -> Iterator[tuple[FunctionalModule, DifferentiableOptimizer]]:
    """Give a functional copy of a module and a differentiable copy of its optimizer, for an inner loop.

    Args:
        model: any module.
        opt: an optimizer of its parameters, of a supported or registered type; its state is copied.
        device: where weights and state go; by default where they are.
        copy_initial_weights: start from leaves of their own; with False from values that depend on the parameters
            of `model`, which MAML needs.
        override: hyper-parameters by name, one for all groups or one a group; tensors may require grad.
        track_higher_grads: keep the graph of the loop and the parameters of every step.

    Yields:
        `(fmodel, diffopt)`.
    """
    fmodel = monkeypatch(
        model, device, copy_initial_weights=copy_initial_weights, track_higher_grads=track_higher_grads
    )
    yield (
        fmodel,
        get_diff_optim(
            opt,
            model.parameters(),
            fmodel=fmodel,
            device=device,
            override=override,
            track_higher_grads=track_higher_grads,
        ),
    )
