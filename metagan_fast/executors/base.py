"""The executor's interface: runs the inner loops of a task batch, with the types that go in and come out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor, nn

from .. import functional
from .._utils.pair import Pair
from ..flat import FlatLayout
from ..inner import TrainState
from ..noise import Noise, NoiseShape
from ..ops.reference import narrow, widen
from ..tasks import TaskBatch
from .task_sum import TaskSum

GeneratorObjective = Literal["support", "query", "initial"]
Checkpointing = Literal["every step", "sqrt"]
CHECKPOINTING: tuple[Checkpointing, ...] = ("every step", "sqrt")
"""States of the inner loop that a derivative through it keeps, from the most to the fewest."""

LOSSES = ("loss_discriminator", "loss_generator")
"""Metrics recorded for every inner step, the keys of `InnerLoopResult.history`."""


TrainStates = Pair
"""Class name of `InnerLoopResult.networks` in older pickles."""


class Network(NamedTuple):
    """A module and the layout of its flat parameters `[numel]`."""

    module: nn.Module
    layout: FlatLayout

    @classmethod
    def of(cls, module: nn.Module) -> Network:
        """Lay out a module."""
        return cls(module, FlatLayout.from_module(module))

    def flatten(self) -> Tensor:
        """Copy the module's parameters into a new buffer."""
        return self.layout.flatten(self.module)

    def bind(self, params: Tensor) -> None:
        """Make the module's parameters views of a buffer."""
        self.layout.bind(self.module, params)

    def is_bound(self, params: Tensor) -> bool:
        """Return whether the module's parameters are still views of a buffer."""
        return self.layout.is_bound(self.module, params)

    def instantiate(self, params: Tensor) -> Network:
        """Return a copy whose module owns parameters with the values of a buffer."""
        return Network(self.layout.instantiate(self.module, params), self.layout)


@dataclass(frozen=True)
class InnerLoopResult:
    """Adapted networks of every task, with the metrics of the inner loop.

    Attributes:
        networks: parameters and optimizer state after the last inner step.
        metrics: `[tasks]` by name: `loss_discriminator`, `loss_generator` and, with a gradient penalty, `penalty` of
            the last inner step.
        history: `[steps, tasks]` by name in `LOSSES`: the losses of every inner step.
    """

    networks: Pair[TrainState]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    history: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def params(self) -> Pair[Tensor]:
        """The adapted parameters, `[tasks, numel]` each."""
        return self.networks.map(lambda network: network.params)

    @property
    def generator(self) -> Tensor:
        """The adapted generators, `[tasks, numel]`."""
        return self.networks.generator.params

    @property
    def discriminator(self) -> Tensor:
        """The adapted discriminators, `[tasks, numel]`."""
        return self.networks.discriminator.params


@dataclass(frozen=True)
class MetaGradient:
    """Gradient for the meta-optimizer, averaged over tasks.

    Attributes:
        generator, discriminator: `[numel]`.
        metrics: `[tasks]` by name: the inner loop's and, with query images, `query_loss_generator` and
            `query_loss_discriminator`.
        networks: adapted networks, whose optimizer state the next inner loop may continue from; None where the executor
            does not return them.
    """

    generator: Tensor
    discriminator: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    networks: Pair[TrainState] | None = None


@dataclass(frozen=True)
class QueryObjective:
    """Meta-objective of MAML and FOMAML: the query losses to differentiate, and to which order.

    Args:
        first_order: treat the inner loop's Jacobian as the identity (FOMAML); else differentiate through it (MAML).
        generator_objective: discriminator in the generator's query loss: "support" (adapted on the support images),
            "query" (the initial one adapted on the query images) or "initial".
        step_weights: `[steps]`, the weight of the query losses after each inner step; zero weights are not evaluated.
        multi_step: True if the noise holds one query evaluation an inner step, False if it holds one for all.
        checkpointing: states of the inner loop that are kept for the derivative through it: those of "every step", or
            those at the start of about sqrt(K) segments ("sqrt"), each of which is run again before its derivative is
            taken; None: of every step, or fewer where memory is bounded.
    """

    first_order: bool
    generator_objective: GeneratorObjective
    step_weights: Sequence[float]
    multi_step: bool = False
    checkpointing: Checkpointing | None = None

    @property
    def segment(self) -> int:
        """Inner steps between two kept states: all of them, or about their square root."""
        steps = len(self.step_weights)
        return math.isqrt(steps - 1) + 1 if self.checkpointing == "sqrt" else steps

    @property
    def states_kept(self) -> int:
        """Copies of the inner loop's state that are kept at once, beside the current one."""
        if self.first_order:
            return sum(weight != 0 for weight in self.step_weights[:-1])
        return -(-len(self.step_weights) // self.segment) - 1 + self.segment


class Executor(ABC):
    """Runs the inner loops of a task batch; `native` and `torch` agree to rounding.

    Images are `[tasks, images, C, H, W]` in [-1, 1]. Parameters, images and noise share one dtype and device. Losses
    and penalties are means over a task's images, in the units of the loss.

    Attributes:
        name: "native" or "torch".
        is_recordable: True if a CUDA graph can capture its calls on a CUDA device.
    """

    name: str
    is_recordable: bool

    @abstractmethod
    def inner_loop(
        self, initial: Pair[Tensor], batch: TaskBatch, noise: Noise, carried: Pair[TrainState] | None = None
    ) -> InnerLoopResult:
        """Adapt the initialisation to every task.

        Args:
            initial: `[numel]` each.
            batch: support images `[tasks, shots, C, H, W]`; query images are not read.
            noise: draws for `noise.steps` inner steps, which set the number of steps.
            carried: optimizer state that an earlier inner loop ended with, `[tasks, numel]` a buffer, copied; None
                starts from zeros.

        Returns:
            Adapted parameters `[tasks, numel]` each, optimizer state and metrics.

        Raises:
            ValueError: the images or the noise do not fit the networks.
        """

    def reptile_gradient(
        self,
        initial: Pair[Tensor],
        batch: TaskBatch,
        noise: Noise,
        carried: Pair[TrainState] | None = None,
        total: TaskSum | None = None,
    ) -> MetaGradient:
        """Adapt to every task, then return the mean over tasks of initial - adapted parameters.

        Args:
            initial, batch, noise, carried: as in `inner_loop`; query images, if there are any, are judged after it.
            total: sum over more tasks than the batch's, which are added to it.

        Returns:
            `[numel]` each, the mean over the batch or the value of `total`; metrics `[tasks]`.
        """
        adapted = self.inner_loop(initial, batch, noise, carried)
        if total is None:
            difference = initial.map(functional.reptile_gradient, adapted.params)
        else:
            for row in zip(*adapted.params.map(Tensor.split, (1, 1)), strict=True):
                total.add(initial.map(lambda start, phi: widen(start) - widen(phi), row))
            difference = total.value.map(narrow, initial)
        metrics = dict(adapted.metrics)
        if batch.query is not None:
            metrics |= self.query_losses(adapted.params, batch, noise)
        return MetaGradient(*difference, metrics, adapted.networks)

    @abstractmethod
    def query_gradient(
        self,
        initial: Pair[Tensor],
        batch: TaskBatch,
        noise: Noise,
        objective: QueryObjective,
        total: TaskSum | None = None,
    ) -> MetaGradient:
        """Adapt to every task, then return the gradient of the query losses by the initialisation.

        Args:
            initial: `[numel]` each.
            batch: support and query images.
            noise: draws of the inner loop and of the query evaluations.
            objective: the query losses, their weights, and the order of differentiation.
            total: as in `reptile_gradient`.

        Returns:
            The mean over tasks (or the value of `total`), `[numel]` each: the generator's gradient of its own query
            loss, and likewise the discriminator's; metrics `[tasks]`.

        Raises:
            ValueError: the images or the noise do not fit the networks, or the executor cannot differentiate through
                this inner loop.
        """

    @abstractmethod
    def query_losses(self, params: Pair[Tensor], batch: TaskBatch, noise: Noise) -> dict[str, Tensor]:
        """Return `query_loss_generator` and `query_loss_discriminator`, `[tasks]` each.

        Args:
            params: adapted parameters, `[tasks, numel]` each.
            batch: query images `[tasks, query, C, H, W]`; support images are not read.
            noise: its last query evaluation is used.
        """

    @abstractmethod
    def generate(self, generator: Tensor, latents: Tensor) -> Tensor:
        """Return images `[tasks, n, C, H, W]`.

        Args:
            generator: parameters, `[tasks, numel]`.
            latents: `[tasks, n, latent]`.

        Raises:
            ValueError: n is 1 and the generator's batch norm needs at least 2 images.
        """

    @abstractmethod
    def score(self, discriminator: Tensor, images: Tensor) -> Tensor:
        """Return the discriminator's scores `[tasks, n]`.

        Args:
            discriminator: parameters, `[tasks, numel]`.
            images: `[tasks, n, C, H, W]`.

        Raises:
            ValueError: n is 1 and the discriminator's batch norm needs at least 2 images.
        """

    @abstractmethod
    def memory_use(
        self, initial: Pair[Tensor], shape: NoiseShape, objective: QueryObjective | None, *, rows: bool = False
    ) -> dict[str, int]:
        """Return the bytes that a call takes at its peak, by part, above its arguments.

        Args:
            initial: as in `inner_loop`; only dtype and device are read.
            shape: sizes of the call's noise, which are those of its batch.
            objective: of a query gradient; None: of a Reptile gradient.
            rows: of an inner loop, which returns all adapted parameters.
        """

    @abstractmethod
    def explain(self, shots: int, *, second_order: bool, generator_objective: GeneratorObjective) -> str:
        """Describe the executor: its plan of the networks, or the reason why no other runs them.

        Args:
            shots: support images of a task, for the figures of an inner step.
            second_order: include the memory of a gradient through the inner loop, with as many query images.
            generator_objective: as in `QueryObjective`.
        """


def one_image_error(name: str) -> str:
    """Return the error text for a batch norm over a single value a channel."""
    return (
        f"the {name} normalises over the images of a batch and got a single one; expected at least 2: give it more "
        "shots, query images, rows of a mini-batch or samples, or a normalisation within an image"
    )
