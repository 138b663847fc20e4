"""Gradients by a learner's parameters, with errors that name the offending parameters."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

# A filter for this module only, set once: `warnings.catch_warnings` would change the filters of all threads.
warnings.filterwarnings("ignore", "The .grad attribute of a Tensor", UserWarning, re.escape(__name__))


def grad_of(x: Tensor) -> Tensor | None:
    """Return `x.grad` without PyTorch's warning for non-leaves, such as stepped parameters."""
    return x.grad


def gradients(
    loss: Tensor,
    parameters: Mapping[str, Tensor],
    *,
    create_graph: bool,
    retain_graph: bool | None = None,
    allow_unused: bool = False,
    allow_nograd: bool = False,
) -> list[Tensor | None]:
    """Differentiate a loss by named tensors.

    Args:
        loss: tensor of one element.
        parameters: parameters by name.
        create_graph: make the gradients differentiable.
        retain_graph: keep the loss's graph; by default equal to `create_graph`.
        allow_unused: return None for parameters on which the loss does not depend.
        allow_nograd: return None for parameters that do not require grad.

    Returns:
        One gradient or None per parameter.

    Raises:
        RuntimeError: the loss has no graph, a parameter is unused or frozen without the option that allows it, or
            `torch.autograd.grad` fails.
    """
    if isinstance(loss, Tensor) and not loss.requires_grad:
        raise RuntimeError(
            "expected a loss that depends on the learner's parameters, got one without a graph; compute it from the "
            "clone's own outputs, outside of torch.no_grad() and without .detach() or .item()"
        )
    frozen = [name for name, x in parameters.items() if not x.requires_grad]
    if frozen and not allow_nograd:
        raise RuntimeError(
            f"expected parameters that require grad, got requires_grad=False for {', '.join(frozen)}; "
            "pass allow_nograd=True to leave such parameters as they are"
        )
    wanted = {name: x for name, x in parameters.items() if x.requires_grad}
    found = torch.autograd.grad(
        loss,
        list(wanted.values()),
        retain_graph=create_graph if retain_graph is None else retain_graph,
        create_graph=create_graph,
        allow_unused=True,
    )
    by_name = dict(zip(wanted, found, strict=True))
    unused = [name for name, gradient in by_name.items() if gradient is None]
    if unused and not allow_unused:
        raise RuntimeError(
            f"expected a loss that depends on every parameter of the learner, it does not on {', '.join(unused)}; "
            "pass allow_unused=True to leave such parameters as they are, and make sure that the loss came from this "
            "clone, after its last adapt() and any change to its module"
        )
    return [by_name.get(name) for name in parameters]
