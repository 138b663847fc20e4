"""Moving average of a learner's initialisation."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from .. import functional
from .._utils.pair import Pair
from .metagan import MetaGAN
from .state import averaged


class MovingAverage:
    """Exponential moving average of the initialisation that a learner meta-trains.

    After t meta-steps the decay is at most (1 + t) / (10 + t), so that the random start is soon forgotten (TensorFlow's
    exponential moving average with a count of updates).

    Args:
        learner: the learner to follow; unchanged.
        decay: weight of the average against the newest initialisation, in (0, 1).

    Attributes:
        learner: a learner with the same settings whose initialisation is the average.
    """

    def __init__(self, learner: MetaGAN, decay: float) -> None:
        modules = copy.deepcopy(learner.generator), copy.deepcopy(learner.discriminator)
        self.learner = MetaGAN(*modules, **vars(learner._settings))
        self.learner.step = learner.step
        self._decay = decay
        self._unfinished: tuple[int, Pair[Tensor]] | None = None  # meta-step and average that an interrupt left

    @torch.inference_mode(False)
    def follow(self, learner: MetaGAN) -> None:
        """Take in the learner's initialisation after its last meta-step, once.

        If an exception interrupts it, the next call completes it.
        """
        step, own = learner.step, self.learner
        own._bind()
        self._finish()
        if own.step == step:
            return
        decay = min(self._decay, (1 + step) / (10 + step))
        updated = own._state.initial.map(functional.ema_update, learner._state.initial, (decay, decay))
        self._unfinished = step, updated
        self._finish()

    def _finish(self) -> None:
        """Copy an update that is computed into the learner; repeated, it has the same effect."""
        if self._unfinished is None:
            return
        step, updated = self._unfinished
        with torch.no_grad():
            for live, new in zip(self.learner._state.initial, updated, strict=True):
                live.copy_(new)
        self.learner.step = step
        self._unfinished = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint adds to the learner's own; live ones rather than copies."""
        return self.learner._state.save_average()

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Load the average of a checkpoint of `step` meta-steps; without one, start from its initialisation.

        Raises:
            ValueError: it belongs to other networks; nothing is changed.
        """
        self.learner.load_networks(averaged(tensors))
        self.learner.step, self._unfinished = step, None
