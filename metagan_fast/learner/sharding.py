"""Meta-gradient of a batch whose tasks several ranks share, and checks that the ranks agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._utils.pair import Pair
from ..distributed import Ranks, RanksDiffer
from ..executors import MetaGradient
from ..noise import Noise
from ..tasks import TaskBatch
from .settings import LearnerSettings
from .state import LearnerState

TaskGradient = Callable[[Pair[Tensor], TaskBatch, Noise], MetaGradient]
"""Mean meta-gradient of a batch's tasks at an initialisation."""

PartGradient = Callable[[TaskBatch, Noise | None], MetaGradient]
"""Mean meta-gradient of a part of a batch; the noise is None where it is to be drawn."""


def sharded(
    ranks: Ranks, gradient_of: PartGradient, initial: Pair[Tensor], batch: TaskBatch, noise: Noise | None
) -> MetaGradient:
    """Return the whole batch's meta-gradient on every rank, each computing its part of the tasks.

    One all-reduce carries both networks' gradients, the metrics of every task (zero on ranks that do not have it) and
    the votes to stop. With `ranks.deterministic` the tasks are computed one by one and their gradients added in index
    order, which has the bytes of one process; each rank then holds a gradient for every task of its own.

    Args:
        ranks: the processes; all of them call this with the same batch.
        gradient_of: computes a slice of the batch.
        initial: the initialisation, for sizes and dtype.
        batch, noise: the whole batch.

    Returns:
        The mean over all tasks, with the metrics of each, and without adapted networks.

    Raises:
        LostRank: another process ended.
    """
    own = ranks.part(batch.tasks)
    parts = [range(t, t + 1) for t in own] if ranks.deterministic else [own] if own else []
    gradients = [
        gradient_of(batch.slice(p.start, p.stop), None if noise is None else noise.slice(p.start, p.stop))
        for p in parts
    ]
    names = list(gradients[0].metrics) if gradients else []
    if batch.tasks < ranks.size:  # ranks without a task know no names
        names = ranks.share(lambda: names)
    sizes = [params.numel() for params in initial]
    in_order = ranks.deterministic
    start = 0 if in_order else sum(sizes)
    flat = initial.generator.new_zeros(start + len(names) * batch.tasks + 1)
    gradient = initial.generator.new_empty(sum(sizes)) if in_order else flat[:start]
    metrics = flat[start:-1].view(len(names), batch.tasks)
    if own:
        for row, name in zip(metrics, names, strict=True):
            row[own.start : own.stop] = torch.cat([each.metrics[name] for each in gradients])
    if own and not in_order:
        means = gradients[0].generator, gradients[0].discriminator
        for part, mean in zip(gradient.split(sizes), means, strict=True):
            torch.mul(mean, len(own) / batch.tasks, out=part)
    flat[-1] = float(ranks.wants_stop())
    if in_order:
        ranks.ordered_mean(gradient, [(each.generator, each.discriminator) for each in gradients], batch.tasks)
    ranks.sum(flat)
    ranks.count_votes(flat[-1].item())
    generator, discriminator = gradient.split(sizes)
    return MetaGradient(generator, discriminator, dict(zip(names, metrics.unbind(0), strict=True)))


def check_agreement(ranks: Ranks, state: LearnerState, settings: LearnerSettings) -> None:
    """Raise RanksDiffer unless all ranks have networks of the same shapes in the same dtype, and the same settings."""
    try:
        config = settings.to_config()
    except ValueError:  # a schedule of the user's own, which cannot be compared
        config = {}
    shapes = [[(slot.name, slot.numel) for slot in network.layout.slots] for network in state.networks]
    text = json.dumps([config, shapes, str(state.initial.generator.dtype)], sort_keys=True)
    differing = ranks.unlike_first(_digest(text.encode()))
    if differing:
        raise RanksDiffer(
            f"expected every rank to build the same networks with the same settings, but {_named(differing)} from "
            "rank 0 in one of them; give all ranks the same arguments"
        )


def check_equality(ranks: Ranks, state: LearnerState) -> None:
    """Raise RanksDiffer unless all ranks hold the same parameters, optimizer state and counters."""
    tensors, counters = state.save()
    values = (tensors[name].detach().cpu().contiguous().reshape(-1) for name in sorted(tensors))
    parts = (value.view(torch.uint8).numpy() for value in values)
    differing = ranks.unlike_first(_digest(json.dumps(counters, sort_keys=True).encode(), *parts))
    if differing:
        raise RanksDiffer(
            f"after meta-step {state.step} {_named(differing)} from rank 0 in parameters or optimizer state: do not "
            "save it; go on from the last checkpoint, with the same version of the package and of torch on all "
            "machines, and change a learner on all ranks or on none"
        )


def _digest(*parts: Any) -> int:
    """Return a hash of 63 bits of bytes or contiguous arrays."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "big") >> 1


def _named(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))} differ{'s' * (len(ranks) == 1)}"
