"""Checks of a learner: argument types, batches that do not fit, networks that diverged."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor, nn

from ..executors import InnerLoopResult, MetaGradient
from ..inner import InnerLoop
from ..noise import Noise
from ..tasks import TaskBatch
from .algorithms import MetaAlgorithm

logger = logging.getLogger(__name__)

_REMEDY = "lower the inner learning rate, take fewer steps, or check the images and the loss"


def modules(generator: nn.Module, discriminator: nn.Module) -> None:
    """Raise ValueError unless generator and discriminator are two modules."""
    for role, module in (("generator", generator), ("discriminator", discriminator)):
        if not isinstance(module, nn.Module):
            raise ValueError(f"expected {role} to be an nn.Module, got {module!r}")
        _not_wrapped(role, module)
    if generator is discriminator:
        raise ValueError("expected two modules, got the same one as generator and discriminator")


_WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}


def _not_wrapped(role: str, module: nn.Module) -> None:
    """Raise ValueError for a module that torch trains in parallel, or one that holds such a module."""
    for name, part in module.named_modules():
        wrappers = {base.__name__ for base in type(part).__mro__ if base.__module__.startswith("torch.")} & _WRAPPERS
        if wrappers:
            place = f"{role}.{name}" if name else role
            inside = "the module that it was made of" if wrappers & {"FSDPModule"} else f"{place}.module"
            raise ValueError(
                f"expected plain modules, got {place} wrapped in {wrappers.pop()}; pass {inside} instead, and "
                "process_group=torch.distributed.group.WORLD: the ranks then share the tasks of each meta-step"
            )


def batch_and_noise(batch: TaskBatch, noise: Noise | None = None) -> None:
    """Raise TypeError unless the arguments are a `TaskBatch` and a `Noise` or None."""
    if not isinstance(batch, TaskBatch):
        raise TypeError(
            f"expected a TaskBatch, got {type(batch).__name__}; make one of images [tasks, shots, channels, height, "
            "width] by TaskBatch(support=images)"
        )
    if not (noise is None or isinstance(noise, Noise)):
        raise TypeError(f"expected a Noise or None, got {type(noise).__name__}; draw_noise(batch) makes one")


def result(value: Any, kind: type[InnerLoopResult] | type[MetaGradient], maker: str) -> None:
    """Raise TypeError unless `value` is a result of the method named `maker`."""
    if not isinstance(value, kind):
        raise TypeError(f"expected what {maker} returns, got {type(value).__name__}")


def query(meta: MetaAlgorithm, batch: TaskBatch) -> None:
    """Raise ValueError if the algorithm needs query images and the batch has none."""
    if meta.needs_query and batch.query is None:
        raise ValueError(
            f"{meta.algorithm.upper()} needs query images, got none; sample with query=n or pass "
            "TaskBatch(support, query)"
        )


def persistent_state(inner: InnerLoop, batch: TaskBatch) -> None:
    """Raise ValueError if optimizer state would persist across several tasks."""
    if inner.inner_state == "persist" and batch.tasks != 1:
        raise ValueError(
            f'expected one task a meta-step with inner_state="persist", got {batch.tasks}; sample(tasks=1, ...) '
            'or use inner_state="reset"'
        )


def gradient_norm(norm: float, meta_step: int) -> None:
    """Raise FloatingPointError if the meta-gradient is not finite."""
    if not norm < float("inf"):
        raise FloatingPointError(
            f"the meta-gradient of meta-step {meta_step} is not finite; the initialisation is unchanged: {_REMEDY}"
        )


def adapted_parameters(adapted: InnerLoopResult) -> None:
    """Raise FloatingPointError if adapted parameters are not finite."""
    if not all(params.isfinite().all() for params in adapted.params):
        raise FloatingPointError(f"the adapted networks have parameters that are NaN or infinite: {_REMEDY}")


def warn_of_images(images: Tensor) -> None:
    """Log a warning that names the tasks whose images `[tasks, ...]` are not finite."""
    finite = images.flatten(1).isfinite().all(1)
    if not finite.all():
        tasks = (~finite).nonzero().flatten().tolist()
        logger.warning("the images generated for tasks %s are NaN or infinite: %s", tasks, _REMEDY)
