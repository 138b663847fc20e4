"""What a learner's saved file holds beside its settings, tensors by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .executors import Networks
from .inner import Network

ROLES = ("generator", "discriminator")


def live_tensors(modules: Iterable[nn.Module], meta_state: Iterable[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Name the tensors of both networks, then those of their meta-optimizers; they are the very ones in use."""
    tensors: dict[str, Tensor] = {}
    for role, module in zip(ROLES, modules, strict=True):
        tensors |= {f"{role}.{name}": value for name, value in module.state_dict().items()}
    for role, buffers in zip(ROLES, meta_state, strict=True):
        tensors |= {f"meta.{role}.{i}": value for i, value in enumerate(buffers)}
    return tensors


def carried_tensors(carried: Networks | None) -> dict[str, Tensor]:
    """Name the tensors of inner loops that go on from one meta-step to the next."""
    if carried is None:
        return {}
    networks = zip(ROLES, carried, strict=True)
    return {f"inner.{role}.{i}": value for role, network in networks for i, value in enumerate(network.tensors)}


def copy_into(live: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into those of the same name; inner loops' are left out.

    Raises:
        ValueError: names or shapes differ; nothing is changed.
    """
    different = live.keys() ^ {name for name in saved if not name.startswith("inner.")}
    if different:
        name = min(different)
        raise ValueError(
            f"the saved state does not fit this learner: {name!r} is {'missing' if name in live else 'unknown'}; "
            "build the same networks with the same meta-optimizer"
        )
    for name, value in live.items():
        if saved[name].shape != value.shape:
            raise ValueError(
                f"the saved state does not fit this learner: expected {name!r} to be {list(value.shape)}, "
                f"got {list(saved[name].shape)}"
            )
    with torch.no_grad():
        for name, value in live.items():
            value.copy_(saved[name])


def restore_carried(saved: Mapping[str, Tensor], updates: Sequence[int] | None, like: Tensor) -> Networks | None:
    """Rebuild what `carried_tensors` named, in dtype and on the device of `like`; None without counts of updates."""
    if updates is None:
        return None
    networks = []
    for role, count in zip(ROLES, updates, strict=True):
        prefix = f"inner.{role}."
        names = sorted((n for n in saved if n.startswith(prefix)), key=lambda n: int(n.removeprefix(prefix)))
        params, *buffers = (saved[name].to(like) for name in names)
        networks.append(Network(params, tuple(buffers), count))
    return Networks(*networks)
