"""Drop-in replacement for `higher`: differentiable inner loops with a fused optimizer step over one flat buffer.

Change `import higher` to `from metagan_fast.dropin import higher`; `docs/migrate/higher.md` lists the differences.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .._originals import fall_back_to
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
__getattr__, __dir__ = fall_back_to(__name__, "higher")


@contextmanager
def innerloop_ctx(
    model: nn.Module,
    opt: torch.optim.Optimizer,
    device: torch.device | None = None,
    copy_initial_weights: bool = True,
    override: Override | None = None,
    track_higher_grads: bool = True,
) -> Iterator[tuple[FunctionalModule, DifferentiableOptimizer]]:
    """Yield a functional copy of a module and a differentiable copy of its optimizer for an inner loop.

    Args:
        model: any module.
        opt: optimizer of the module's parameters, of a supported or registered type; its state is copied.
        device: device of weights and state; by default unchanged.
        copy_initial_weights: start from new leaves; False: from functions of `model`'s parameters, as MAML needs.
        override: hyper-parameters by name: a list of one value for all groups or one per group; tensors may require
            grad.
        track_higher_grads: keep the loop's graph and the parameters of every step.

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
