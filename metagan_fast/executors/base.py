"""What goes into an executor and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from ..inner import TrainState
from ..noise import Noise
from ..tasks import TaskBatch

GeneratorObjective = Literal["support", "query", "initial"]

LOSSES = ("loss_discriminator", "loss_generator")
"""The metrics that `InnerLoopResult.history` has of every inner step."""


class Parameters(NamedTuple):
    """Flat parameters of the two networks, each `[numel]` or `[tasks, numel]`."""

    generator: Tensor
    discriminator: Tensor


class TrainStates(NamedTuple):
    """Both networks on their way through the inner loop."""

    generator: TrainState
    discriminator: TrainState


@dataclass(frozen=True)
class InnerLoopResult:
    """Hold what an inner loop ends with."""

    networks: TrainStates
    metrics: Mapping[str, Tensor] = field(default_factory=dict)  # name -> [tasks], of the last inner step
    history: Mapping[str, Tensor] = field(default_factory=dict)  # name of LOSSES -> [steps, tasks], of every inner step

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
    """Hold the direction that is handed to the meta-optimizer."""

    generator: Tensor  # [numel]
    discriminator: Tensor  # [numel]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)  # name -> [tasks]
    networks: TrainStates | None = None  # what the inner loop ended with, where its optimizer state is carried on


@dataclass(frozen=True)
class QueryObjective:
    """Say which query losses are differentiated and how.

    Args:
        first_order: take the inner loop's Jacobian as the identity (FOMAML).
        generator_objective: the discriminator that judges the adapted generator: "support" (adapted on support),
            "query" (adapted from the initial one on the query images) or "initial".
        step_weights: weight of the query losses after each inner step; zeros are not evaluated.
        multi_step: the noise holds one evaluation an inner step, rather than one in all.
    """

    first_order: bool
    generator_objective: GeneratorObjective
    step_weights: Sequence[float]
    multi_step: bool = False


class Executor(Protocol):
    """Run the inner loops of a task batch; `native` and `torch` give the same results to rounding."""

    name: str

    def inner_loop(
        self, initial: Parameters, batch: TaskBatch, noise: Noise, carried: TrainStates | None = None
    ) -> InnerLoopResult:
        """Adapt the initialisation (`[numel]` each) to every task, in as many steps as `noise` has.

        `carried` continues the inner optimizers where another inner loop left them; it is not written to.
        """
        ...

    def query_gradient(
        self, initial: Parameters, batch: TaskBatch, noise: Noise, objective: QueryObjective
    ) -> MetaGradient:
        """Return the mean over tasks of the gradients of the query losses."""
        ...

    def query_losses(self, params: Parameters, batch: TaskBatch, noise: Noise) -> dict[str, Tensor]:
        """Return the query losses `[tasks]` of adapted parameters `[tasks, numel]`."""
        ...

    def generate(self, generator: Tensor, latents: Tensor) -> Tensor:
        """Return images `[tasks, n, C, H, W]` from parameters `[tasks, numel]` and latents `[tasks, n, latent]`."""
        ...


def one_image_error(name: str) -> str:
    """Return what to say where a network cannot normalise over a batch of a single image."""
    return (
        f"the {name} normalises over the images of a batch and got a single one; expected at least 2: give it more "
        "shots, query images, rows of a mini-batch or samples, or a normalisation within an image"
    )
