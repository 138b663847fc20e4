"""Reptile, first-order MAML and MAML: a task batch becomes a meta-gradient.

The meta-gradient of Reptile is `theta - mean(phi)`; FOMAML's is the mean of the query losses' gradients at `phi`;
MAML's is the same taken through the inner loop: for each network the total derivative of its own query loss by its
own initial parameters, the adapted opponent not detached.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .._utils.coerce import convert, count, flag, reals
from .._utils.pair import Pair
from ..executors import Executor, GeneratorObjective, MetaGradient, QueryObjective
from ..executors.base import CHECKPOINTING, Checkpointing
from ..inner import InnerLoop, TrainState
from ..noise import Noise
from ..schedules import rate_from_config, rate_to_config
from ..tasks import TaskBatch
from .meta_optimizer import MetaOptimizer


@dataclass(frozen=True)
class MetaAlgorithm(MetaOptimizer):
    """Base class of the algorithms: the meta-gradient, with the settings of the meta-optimizer that applies it."""

    algorithm: ClassVar[str]

    @property
    def needs_query(self) -> bool:
        """Whether the algorithm needs query images."""
        return False

    @property
    def serial(self) -> bool:
        """Whether the initialisation is updated after each task of a batch, not once for all."""
        return False

    @property
    def second_order(self) -> bool:
        """Whether the meta-gradient may go through the inner loop."""
        return False

    @property
    def generator_objective(self) -> GeneratorObjective:
        """The discriminator that judges the adapted generator on the query set, as in `QueryObjective`."""
        return "support"

    @property
    def needs_query_adaptation(self) -> bool:
        """Whether noise is drawn to adapt a discriminator to the query images."""
        return self.generator_objective == "query"

    @property
    def checkpointing(self) -> Checkpointing | None:
        """States of the inner loop that a gradient through it keeps, as in `QueryObjective`."""
        return None

    @property
    def multi_step(self) -> bool:
        """Whether the query losses after every inner step count, each with its own noise."""
        return False

    def check(self, inner: InnerLoop) -> None:
        """Raise ValueError if the inner loop's settings contradict this algorithm."""

    def meta_gradient(
        self,
        executor: Executor,
        initial: Pair[Tensor],
        batch: TaskBatch,
        noise: Noise,
        meta_step: int,
        carried: Pair[TrainState] | None = None,
    ) -> MetaGradient:
        """Return the meta-gradient of one task batch; `carried` is the inner optimizers' state to start from."""
        raise NotImplementedError

    def objective(self, meta_step: int, steps: int) -> QueryObjective | None:
        """Return the query losses that a meta-step differentiates; None: the meta-gradient is Reptile's."""
        return None

    def settings_at(self, meta_step: int, steps: int) -> Hashable:
        """Return the settings that the meta-step changes, as a key: meta-steps of one key share a recording."""
        return None

    def to_config(self) -> dict[str, Any]:
        """Return the settings as JSON-able data."""
        config = {"algorithm": self.algorithm} | {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return config | {"lr": rate_to_config(self.lr), "betas": list(self.betas)}


@dataclass(frozen=True)
class Reptile(MetaAlgorithm):
    """Reptile (Nichol et al. 2018, arXiv:1803.02999), whose meta-gradient is `theta - mean(phi)`.

    With `optimizer="sgd"` this is `theta + lr (mean(phi) - theta)`; the default feeds the difference to Adam, as FIGR
    does (arXiv:1901.02199).

    Args:
        serial: update after each task of the batch instead of once with their mean; a meta-step still counts one.

    The other arguments are `MetaOptimizer`'s.

    Example:
        >>> from metagan_fast import Reptile, schedules
        >>> meta = Reptile(optimizer="sgd", lr=schedules.Linear(1.0, 0.0, steps=1000), clip_norm=10.0)
        >>> meta.needs_query
        False
    """

    serial: bool = False

    algorithm = "reptile"

    def __post_init__(self) -> None:
        super().__post_init__()
        convert(self, flag, "serial")

    def meta_gradient(
        self,
        executor: Executor,
        initial: Pair[Tensor],
        batch: TaskBatch,
        noise: Noise,
        meta_step: int,
        carried: Pair[TrainState] | None = None,
    ) -> MetaGradient:
        return executor.reptile_gradient(initial, batch, noise, carried)


@dataclass(frozen=True)
class FOMAML(MetaAlgorithm):
    """First-order MAML (Finn et al. 2017, arXiv:1703.03400, section 5.2): query gradients at `phi`.

    Args:
        generator_objective: the discriminator that judges the adapted generator on the query set: "support" (adapted on
            the support images), "query" (adapted from the initial one on the query images against the adapted
            generator, in as many steps, as DAWSON does, arXiv:2001.00576) or "initial" (not adapted).
        step_weights: None for the query loss after the last step alone; "uniform", one weight a step, or a callable of
            the meta-step that returns them, for MAML++'s multi-step loss (Antoniou et al. 2019, arXiv:1810.09502,
            section 4), see `AnnealedStepWeights`.

    The other arguments are `MetaOptimizer`'s.

    Example:
        >>> from metagan_fast import FOMAML
        >>> FOMAML(lr=1e-3, step_weights="uniform").weights_at(meta_step=0, steps=4)
        (0.25, 0.25, 0.25, 0.25)
    """

    generator_objective: GeneratorObjective = "support"
    step_weights: str | Sequence[float] | Callable[[int], Sequence[float]] | None = None

    algorithm = "fomaml"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.generator_objective not in ("support", "query", "initial"):
            raise ValueError(
                f'expected generator_objective "support", "query" or "initial", got {self.generator_objective!r}'
            )
        if isinstance(self.step_weights, str) and self.step_weights != "uniform":
            raise ValueError(f'expected step_weights "uniform", a sequence or a callable, got {self.step_weights!r}')
        if not (self.step_weights is None or isinstance(self.step_weights, str) or callable(self.step_weights)):
            convert(self, reals, "step_weights")
        if self.multi_step and self.generator_objective == "query":
            raise ValueError(
                'expected step_weights=None with generator_objective="query": a discriminator would be adapted to the '
                'query images once an inner step; use generator_objective="support"'
            )

    @property
    def needs_query(self) -> bool:
        return True

    @property
    def multi_step(self) -> bool:
        return self.step_weights is not None

    def is_first_order(self, meta_step: int) -> bool:
        """Whether the inner loop's Jacobian is taken as the identity at this meta-step."""
        return True

    def weights_at(self, meta_step: int, steps: int) -> tuple[float, ...]:
        """Return the weight of the query losses after each of `steps` inner steps; ValueError for another count."""
        if self.step_weights is None:
            return (0.0,) * (steps - 1) + (1.0,)
        if self.step_weights == "uniform":
            return (1.0 / steps,) * steps
        weights = self.step_weights(meta_step) if callable(self.step_weights) else self.step_weights
        values = reals("step_weights", weights)
        if len(values) != steps or not any(values):
            raise ValueError(
                f"expected step_weights to be {steps} numbers, one an inner step and not all zero, got {list(values)}"
            )
        return values

    def settings_at(self, meta_step: int, steps: int) -> Hashable:
        return self.is_first_order(meta_step), self.weights_at(meta_step, steps)

    def check(self, inner: InnerLoop) -> None:
        if inner.inner_state == "persist":
            raise ValueError(
                f'expected inner_state="reset" with {self.algorithm.upper()}, whose meta-gradient is taken at inner '
                'loops that start afresh; use Reptile for inner_state="persist"'
            )
        self.weights_at(0, inner.steps)

    def meta_gradient(
        self,
        executor: Executor,
        initial: Pair[Tensor],
        batch: TaskBatch,
        noise: Noise,
        meta_step: int,
        carried: Pair[TrainState] | None = None,
    ) -> MetaGradient:
        return executor.query_gradient(initial, batch, noise, self.objective(meta_step, noise.steps))

    def objective(self, meta_step: int, steps: int) -> QueryObjective:
        return QueryObjective(
            first_order=self.is_first_order(meta_step),
            generator_objective=self.generator_objective,
            step_weights=self.weights_at(meta_step, steps),
            multi_step=self.multi_step,
            checkpointing=self.checkpointing,
        )

    def to_config(self) -> dict[str, Any]:
        config = super().to_config()
        if callable(self.step_weights):
            if not isinstance(self.step_weights, AnnealedStepWeights):
                raise ValueError(
                    'expected step_weights that can be saved: None, "uniform", numbers or AnnealedStepWeights, '
                    f"got {self.step_weights!r}"
                )
            config["step_weights"] = dataclasses.asdict(self.step_weights)
        elif self.step_weights is not None and not isinstance(self.step_weights, str):
            config["step_weights"] = list(self.step_weights)
        return config


@dataclass(frozen=True)
class MAML(FOMAML):
    """MAML (Finn et al. 2017, arXiv:1703.03400): query gradients through the inner loop.

    Memory holds one inner step's graph and parameter states of the inner loop, not K graphs: the steps are replayed in
    reverse.

    Args:
        checkpointing: parameter states that are kept: "every step", or "sqrt" for about 2 sqrt(K) of the K, between
            which the inner loop runs once more, with the same result (Chen et al. 2016, arXiv:1604.06174); None: of
            every step, unless `MetaGAN(max_memory=...)` needs fewer.
        first_order_steps: number of first-order meta-steps before second-order ones begin (MAML++'s derivative-order
            annealing, Antoniou et al. 2019, section 4).

    The other arguments are `FOMAML`'s.

    Example:
        >>> import torch
        >>> import metagan_fast as mgf
        >>> generator, discriminator = mgf.models.mlp((1, 4, 4), latent_dim=2, hidden=(8,))
        >>> inner, meta = mgf.InnerLoop(lr=1e-2, steps=2), mgf.MAML(lr=1e-3)
        >>> learner = mgf.MetaGAN(generator, discriminator, latent_dim=2, inner=inner, meta=meta)
        >>> images = torch.rand(3, 8, 1, 4, 4) * 2 - 1  # three tasks of eight images
        >>> metrics = learner.meta_step(mgf.TaskBatch(support=images[:, :4], query=images[:, 4:]))
        >>> sorted(name for name in metrics if name.startswith("query"))
        ['query_loss_discriminator', 'query_loss_generator']
    """

    first_order_steps: int = 0
    checkpointing: Checkpointing | None = None

    algorithm = "maml"

    def __post_init__(self) -> None:
        super().__post_init__()
        convert(self, count, "first_order_steps")
        if self.checkpointing not in (*CHECKPOINTING, None):
            raise ValueError(f'expected checkpointing "every step", "sqrt" or None, got {self.checkpointing!r}')

    def to_config(self) -> dict[str, Any]:
        config = super().to_config()
        if self.checkpointing is None:  # as in older records
            del config["checkpointing"]
        return config

    @property
    def second_order(self) -> bool:
        return True

    def is_first_order(self, meta_step: int) -> bool:
        return meta_step < self.first_order_steps


@dataclass(frozen=True)
class AnnealedStepWeights:
    """Weights of the query losses after each inner step, annealed from uniform to the last step alone.

    Over `meta_steps` meta-steps the weights of earlier steps fall linearly to 0, and the last step gains what they lose
    (MAML++'s multi-step loss annealing, Antoniou et al. 2019, arXiv:1810.09502, section 4).

    Example:
        >>> from metagan_fast import AnnealedStepWeights
        >>> weights = AnnealedStepWeights(steps=4, meta_steps=100)
        >>> weights(0), weights(100)
        ((0.25, 0.25, 0.25, 0.25), (0.0, 0.0, 0.0, 1.0))
    """

    steps: int
    meta_steps: int

    def __post_init__(self) -> None:
        convert(self, count, "steps", "meta_steps", least=1)

    def __call__(self, meta_step: int) -> tuple[float, ...]:
        early = max(0.0, 1.0 - meta_step / self.meta_steps) / self.steps
        return (early,) * (self.steps - 1) + (1.0 - early * (self.steps - 1),)


ALGORITHMS: dict[str, type[MetaAlgorithm]] = {cls.algorithm: cls for cls in (Reptile, FOMAML, MAML)}


def get(algorithm: str | MetaAlgorithm) -> MetaAlgorithm:
    """Return the algorithm of a name with its defaults; return an algorithm unchanged.

    Raises:
        ValueError: an unknown name, or another object.
    """
    if isinstance(algorithm, MetaAlgorithm):
        return algorithm
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        classes = ", ".join(f"{cls.__name__}()" for cls in ALGORITHMS.values())
        raise ValueError(
            f"expected a meta-algorithm of {', '.join(ALGORITHMS)}, or an object such as {classes}; got {algorithm!r}"
        )
    return ALGORITHMS[algorithm]()


def from_config(config: dict[str, Any]) -> MetaAlgorithm:
    """Build the algorithm that `to_config` described."""
    arguments = dict(config)
    algorithm = ALGORITHMS[arguments.pop("algorithm")]
    arguments["lr"] = rate_from_config(arguments["lr"])
    arguments["betas"] = tuple(arguments["betas"])
    if isinstance(arguments.get("step_weights"), dict):
        arguments["step_weights"] = AnnealedStepWeights(**arguments["step_weights"])
    elif isinstance(arguments.get("step_weights"), list):
        arguments["step_weights"] = tuple(arguments["step_weights"])
    return algorithm(**arguments)
