"""FIGR's episode: its own loop against the drop-in."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from metagan_fast.benchmarks.baselines.figr_episode import PlainFIGR
from metagan_fast.benchmarks.contenders import Prepared
from metagan_fast.benchmarks.dropin_cases import DropInCase
from torch import Tensor, nn

from metagan_fast.dropin import figr
from metagan_fast.noise import NoiseShape, draw_noise


class _Data:
    """One fixed task of random 32x32 images, whose content does not affect speed."""

    channels, height, length = 1, 32, 32

    def __init__(self) -> None:
        self.images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def sample_training_task(self, batch_size: int) -> tuple[Tensor, str]:
        return self.images[:batch_size], "a task"

    sample_validation_task = sample_training_task


class _Trainer(figr.FIGR):
    """Trainer without files: it reads no checkpoint and writes no events."""

    def load_checkpoint(self) -> None:
        self.eps = 0

    def make_writer(self) -> Any:
        return self

    def add_scalar(self, name: str, value: float, episode: int) -> None:
        """Discard the value."""


Episode = Callable[[], tuple[nn.Module, nn.Module]]
"""Runs one episode and returns the adapted generator and discriminator."""

_CHECKED_STEPS = 2


def prepare(quick: bool, **options: str) -> dict[str, Prepared[Tensor]]:
    """Set up both trainers from the same parameters; a run is one episode, noise included.

    The check compares the parameter change of a first episode of two inner steps: FIGR's inner loop amplifies rounding,
    and ten float32 steps at this size differ by up to 0.6 of the change. `options` are FIGR's, by name.
    """

    def collect(name: str, timed: Any) -> Tensor:
        episodes, initial = _trainers(_CHECKED_STEPS, options)
        return _flat(*episodes[name]()) - initial

    episodes, _ = _trainers(_CHECKED_STEPS if quick else 10, options)
    return {name: Prepared(run, partial(collect, name)) for name, run in episodes.items()}


def _trainers(steps: int, options: dict[str, str]) -> tuple[dict[str, Episode], Tensor]:
    """Return each trainer's episode, and their common initial parameters."""
    ours = _Trainer({"--inner_epochs": str(steps), **options}, env=_Data(), device="cpu")
    theirs = PlainFIGR(ours.g, ours.d)
    images = _Data().images * 2 - 1
    shape = NoiseShape(tasks=1, shots=4, latent_dim=100, steps=steps)
    episode = itertools.count()

    def run_theirs() -> tuple[nn.Module, nn.Module]:
        theirs.episode(images, draw_noise(shape, seed=0, meta_step=next(episode)))
        return theirs.meta_g, theirs.meta_d

    def run_ours() -> tuple[nn.Module, nn.Module]:
        ours.reset_meta_model()
        ours.meta_training_loop()
        return ours.meta_g, ours.meta_d

    return {"FIGR": run_theirs, "drop-in": run_ours}, _flat(ours.g, ours.d)


def _flat(*networks: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for network in networks for parameter in network.parameters()])


CASES: tuple[DropInCase, ...] = (DropInCase("figr-dropin", prepare, rounds=3, allowed=1e-2),)
