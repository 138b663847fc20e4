"""The native executor: whole inner loops of a task batch in one call of the compiled engine, on a CPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ... import _native
from ...flat import FlatLayout
from ...inner import OPTIMIZERS, InnerLoop, TrainState
from ...losses import (
    FIGR,
    WGAN,
    WGANGP,
    GradientPenalty,
    Hinge,
    LeastSquares,
    Loss,
    Minimax,
    NonSaturating,
    Penalty,
    RelativisticAverage,
    ZeroCenteredPenalty,
)
from ...noise import Noise
from ...tasks import TaskBatch
from ..base import (
    LOSSES,
    GeneratorObjective,
    InnerLoopResult,
    MetaGradient,
    Parameters,
    QueryObjective,
    TrainStates,
    one_image_error,
)
from .lowering import Plan, describe_plan, inner_step_multiply_adds, make_plan

_OBJECTIVES: dict[GeneratorObjective, int] = {"support": 0, "initial": 1, "query": 2}
_DIFFERENTIATED = ("sgd", "momentum")
_NOT_WANTED = (  # until asked for
    *("generator", "discriminator", "generator_difference", "discriminator_difference"),
    "step_losses",
)
_INNER_METRICS = ("loss_discriminator", "penalty", "loss_generator")
_QUERY_METRICS = ("query_loss_discriminator", "query_loss_generator")

_Term = tuple[str, float, float]
"""Its name, the factor of the score and, for "half_square", the label."""


class _Terms(NamedTuple):
    """What a loss makes of each score: the discriminator on real and fake images, the generator on fake ones."""

    real: _Term
    fake: _Term
    generator: _Term


def _linear(factor: float) -> _Term:
    return "linear", factor, 0.0


def _softplus(factor: float) -> _Term:
    return "softplus", factor, 0.0


_TERMS: dict[type[Loss], _Terms] = {
    Minimax: _Terms(_softplus(-1), _softplus(1), ("negative_softplus", 1, 0.0)),
    NonSaturating: _Terms(_softplus(-1), _softplus(1), _softplus(-1)),
    RelativisticAverage: _Terms(_softplus(-1), _softplus(1), _softplus(-1)),
    Hinge: _Terms(("hinge", -1, 0.0), ("hinge", 1, 0.0), _linear(-1)),
    WGAN: _Terms(_linear(-1), _linear(1), _linear(-1)),
    WGANGP: _Terms(_linear(-1), _linear(1), _linear(-1)),
    FIGR: _Terms(_linear(0.5), _linear(-0.5), _linear(1)),
}


class NativeExecutor:
    """Run inner loops in the compiled engine; see `Executor` for the methods.

    Args:
        generator, discriminator: the modules; their parameters are passed in flat, so only their structure is used.
        generator_layout, discriminator_layout: the layouts of the flat parameters, float32 on a CPU.
        latent_dim: size of a latent.
        loss: what the inner loop minimises.
        inner: its settings.
        precision: "float32", or "bf16" to round the operands of matrix products to bf16, after Winograd's transforms
            where derivatives of convolutions go by these; sums, activations, parameters and updates are float32 either
            way.

    Raises:
        ValueError: a network, a loss or a machine that the engine cannot serve; a `PlanError` names the layer.
    """

    name = "native"

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        generator_layout: FlatLayout,
        discriminator_layout: FlatLayout,
        *,
        latent_dim: int,
        loss: Loss,
        inner: InnerLoop,
        precision: str = "float32",
    ) -> None:
        available, reason = _native.is_available()
        if not available:
            raise ValueError(reason)
        self.generator, self.discriminator = make_plans(
            generator, discriminator, generator_layout, discriminator_layout, latent_dim
        )
        self._image_shape = self.generator.output_shape
        self._layouts = generator_layout, discriminator_layout
        self._latent_dim = latent_dim
        self._inner = inner
        self._loss = loss
        settings = loss_settings(loss), inner_settings(inner), precision
        self._engine = _native.make_engine(self.generator.to_core(), self.discriminator.to_core(), *settings)

    @staticmethod
    def check_second_order(loss: Loss, inner: InnerLoop) -> None:
        """Raise ValueError where the engine cannot differentiate through the inner loop."""
        if inner.optimizer not in _DIFFERENTIATED:
            raise ValueError(
                f"the native executor differentiates inner loops by {' and '.join(_DIFFERENTIATED)}, not by "
                f"{inner.optimizer}"
            )
        if loss.penalty is not None:
            raise ValueError("the native executor does not differentiate inner loops with a gradient penalty")

    def inner_loop(
        self, initial: Parameters, batch: TaskBatch, noise: Noise, carried: TrainStates | None = None
    ) -> InnerLoopResult:
        call = self._inner_call(initial, batch, noise)
        networks = []
        for role, plan, before, updates in zip(
            ("generator", "discriminator"),
            (self.generator, self.discriminator),
            carried or (None, None),
            (noise.steps, noise.steps * self._inner.critic_steps),
            strict=True,
        ):
            rows = call.write(role, batch.tasks, plan.numel)
            state = TrainState(rows)
            if before is not None or self.hands_on_state:
                state = self._inner.start(rows, before)
            networks.append(state._replace(updates=state.updates + updates))
        call.update("generator_buffers", networks[0].buffers)
        call.update("discriminator_buffers", networks[1].buffers)
        call.arguments["updates_done"] = tuple(before.updates for before in carried) if carried else (0, 0)
        metrics = call.write("metrics", len(_INNER_METRICS), batch.tasks)
        losses = call.write("step_losses", noise.steps, len(LOSSES), batch.tasks)
        self._engine.inner_loop(call.arguments)
        history = dict(zip(LOSSES, losses.unbind(1), strict=True))
        return InnerLoopResult(TrainStates(*networks), self._metrics(metrics, _INNER_METRICS), history)

    @property
    def hands_on_state(self) -> bool:
        """Whether the optimizers' state outlives an inner loop, so that all it ends with is wanted."""
        return self._inner.inner_state == "persist"

    def reptile_gradient(self, initial: Parameters, batch: TaskBatch, noise: Noise) -> MetaGradient:
        """Return the mean over tasks of initial - adapted parameters, never holding all adapted ones.

        The same bytes as `functional.reptile_gradient` of what `inner_loop` returns, without optimizer state.
        """
        call = self._inner_call(initial, batch, noise)
        generator = call.write("generator_difference", self.generator.numel)
        discriminator = call.write("discriminator_difference", self.discriminator.numel)
        metrics = call.write("metrics", len(_INNER_METRICS), batch.tasks)
        self._engine.inner_loop(call.arguments)
        return MetaGradient(generator, discriminator, self._metrics(metrics, _INNER_METRICS))

    def query_gradient(
        self, initial: Parameters, batch: TaskBatch, noise: Noise, objective: QueryObjective
    ) -> MetaGradient:
        if not objective.first_order:
            self.check_second_order(self._loss, self._inner)
        call = self._inner_call(initial, batch, noise)
        evaluations = noise.steps if objective.multi_step else 1
        self._read_query(call, batch, noise, slice(evaluations))
        call.arguments |= {
            "step_weights": tuple(map(float, objective.step_weights)),
            "multi_step": int(objective.multi_step),
            "first_order": int(objective.first_order),
            "objective": _OBJECTIVES[objective.generator_objective],
        }
        if objective.generator_objective == "query":
            updates = noise.steps, self._inner.critic_steps, batch.tasks, batch.query_shots
            call.read("query_adaptation_latents", noise.query_adaptation_latents, *updates, self._latent_dim)
            call.read("query_adaptation_interpolation", noise.query_adaptation_interpolation, *updates)
        generator = call.write("generator_gradient", self.generator.numel)
        discriminator = call.write("discriminator_gradient", self.discriminator.numel)
        names = (*_INNER_METRICS, *_QUERY_METRICS)
        metrics = call.write("metrics", len(names), batch.tasks)
        self._engine.query_gradient(call.arguments)
        return MetaGradient(generator, discriminator, self._metrics(metrics, names))

    def query_losses(self, params: Parameters, batch: TaskBatch, noise: Noise) -> dict[str, Tensor]:
        call = _native.EngineCall(tasks=batch.tasks, threads=_native.threads())
        call.read("generator", params.generator, batch.tasks, self.generator.numel)
        call.read("discriminator", params.discriminator, batch.tasks, self.discriminator.numel)
        self._read_query(call, batch, noise, slice(-1, None))
        metrics = call.write("metrics", len(_QUERY_METRICS), batch.tasks)
        self._engine.query_losses(call.arguments)
        return self._metrics(metrics, _QUERY_METRICS)

    def generate(self, generator: Tensor, latents: Tensor) -> Tensor:
        tasks, count = latents.shape[:2]
        _check_images_count("generator", self.generator, count)
        call = _native.EngineCall(tasks=tasks, count=count, threads=_native.threads())
        call.read("generator", generator, tasks, self.generator.numel)
        call.read("latents", latents, tasks, count, self._latent_dim)
        images = call.write("images", tasks, count, *self._image_shape)
        self._engine.generate(call.arguments)
        return images

    def explain(
        self, shots: int, *, second_order: bool = False, generator_objective: GeneratorObjective = "support"
    ) -> str:
        """Describe both plans, the arithmetic of an inner step and the memory of a task with `shots` support images.

        `second_order`: the memory of a gradient through the inner loop, with as many query images.
        """
        images = min(shots, self._inner.batch_size or shots)
        arithmetic = inner_step_multiply_adds(
            self.generator,
            self.discriminator,
            images,
            critic_steps=self._inner.critic_steps,
            penalty=self._loss.penalty is not None,
        )
        buffers = OPTIMIZERS[self._inner.optimizer].buffers(self._inner)
        rows = 4 * (1 + buffers) * (self.generator.numel + self.discriminator.numel)
        query = images if second_order or generator_objective == "query" else 0
        objective = _OBJECTIVES[generator_objective]
        workspace = self._engine.workspace_bytes(images, query, self._inner.steps, objective, second_order)
        return (
            f"generator, {self.generator.numel:,} elements\n{describe_plan(self.generator, self._layouts[0])}\n\n"
            f"discriminator, {self.discriminator.numel:,} elements\n"
            f"{describe_plan(self.discriminator, self._layouts[1])}\n\n"
            f"an inner step of a task, {images} images an update: {arithmetic:,} multiply-adds\n"
            f"memory of a task: {rows:,} bytes of parameters and optimizer state, {workspace:,} bytes of a thread's own"
        )

    def _inner_call(self, initial: Parameters, batch: TaskBatch, noise: Noise) -> _native.EngineCall:
        """Return a call with all that goes into an inner loop."""
        self._check_images(batch)
        tasks, steps, critic_steps = batch.tasks, noise.steps, self._inner.critic_steps
        rows = noise.generator_latents.shape[2]
        self._check_rows(rows)
        call = _native.EngineCall(
            threads=_native.threads(),
            tasks=tasks,
            shots=batch.shots,
            batch=rows,
            steps=steps,
            generator_lrs=tuple(self._inner.generator_rate(step) for step in range(steps)),
            discriminator_lrs=tuple(self._inner.discriminator_rate(step) for step in range(steps)),
            updates_done=(0, 0),
            generator_buffers=(),
            discriminator_buffers=(),
        )
        for name in _NOT_WANTED:
            call.arguments[name] = 0
        call.read("initial_generator", initial.generator, self.generator.numel)
        call.read("initial_discriminator", initial.discriminator, self.discriminator.numel)
        call.read("support", batch.support, tasks, batch.shots, *self._image_shape)
        if noise.support_index is not None:
            low, high = noise.support_index.aminmax()
            if low < 0 or high >= batch.shots:
                raise ValueError(f"expected noise.support_index in 0 to {batch.shots - 1}, got {low} to {high}")
        elif rows != batch.shots:
            raise ValueError(f"expected latents for {batch.shots} support images without a support_index, got {rows}")
        call.read("support_index", noise.support_index, steps, critic_steps, tasks, rows, dtype=torch.int64)
        updates = steps, critic_steps, tasks, rows
        call.read("discriminator_latents", noise.discriminator_latents, *updates, self._latent_dim)
        call.read("generator_latents", noise.generator_latents, steps, tasks, rows, self._latent_dim)
        call.read("interpolation", noise.interpolation, *updates)
        return call

    def _read_query(self, call: _native.EngineCall, batch: TaskBatch, noise: Noise, chosen: slice) -> None:
        """Add the query images and the noise of the chosen evaluations."""
        assert batch.query is not None
        assert noise.query_discriminator_latents is not None and noise.query_generator_latents is not None
        assert noise.query_interpolation is not None
        self._check_images(batch)
        self._check_rows(batch.query_shots)
        interpolation = noise.query_interpolation[chosen]
        sizes = (interpolation.shape[0], batch.tasks, batch.query_shots)
        call.arguments |= {"query_count": batch.query_shots, "evaluations": sizes[0]}
        call.arguments |= {"query_adaptation_latents": 0, "query_adaptation_interpolation": 0}
        call.read("query", batch.query, batch.tasks, batch.query_shots, *self._image_shape)
        for name in ("query_discriminator_latents", "query_generator_latents"):
            call.read(name, getattr(noise, name)[chosen], *sizes, self._latent_dim)
        call.read("query_interpolation", interpolation, *sizes)

    def _check_images(self, batch: TaskBatch) -> None:
        if batch.image_shape != self._image_shape:
            raise ValueError(
                f"the generator makes images of shape {list(self._image_shape)}, the batch holds "
                f"{list(batch.image_shape)}; build the networks for the data's size and channels"
            )

    def _check_rows(self, rows: int) -> None:
        """Raise ValueError where a pass over `rows` images, real or generated, leaves batch norm with a single one."""
        _check_images_count("generator", self.generator, rows)
        loss = self._loss
        always_both = loss.generator_needs_real and not loss.separate_batches and loss.penalty is None
        _check_images_count("discriminator", self.discriminator, 2 * rows if always_both else rows)

    def _metrics(self, rows: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        metrics = dict(zip(names, rows.unbind(0), strict=True))
        if self._loss.penalty is None:
            metrics.pop("penalty", None)
        return metrics


def _check_images_count(name: str, plan: Plan, count: int) -> None:
    if count == 1 and not plan.takes_one_image:
        raise ValueError(one_image_error(name))


def make_plans(
    generator: nn.Module,
    discriminator: nn.Module,
    generator_layout: FlatLayout,
    discriminator_layout: FlatLayout,
    latent_dim: int,
) -> tuple[Plan, Plan]:
    """Express both networks of a GAN in the operations of the engine.

    Raises:
        PlanError: a layer that the engine does not know, or an output that is no image or no score.
    """
    images = make_plan(generator, generator_layout, (latent_dim,), "generator", output="images")
    return images, make_plan(discriminator, discriminator_layout, images.output_shape, "discriminator", output="scores")


def loss_settings(loss: Loss) -> dict[str, Any]:
    """Return a loss as the engine reads it.

    Raises:
        ValueError: a loss or a penalty of a class of one's own.
    """
    if type(loss) is LeastSquares:
        labels = loss.real_label, loss.fake_label, loss.generator_label
        terms = _Terms(*(("half_square", 1.0, float(label)) for label in labels))
    elif type(loss) in _TERMS:
        terms = _TERMS[type(loss)]
    else:
        raise ValueError(f"the native executor knows the losses of metagan_fast.losses, not {type(loss).__name__}")
    return terms._asdict() | {
        "relativistic": int(type(loss) is RelativisticAverage),
        "separate_batches": int(loss.separate_batches),
        "clip": float(loss.clip or 0.0),
        **_penalty_settings(loss.penalty),
    }


def _penalty_settings(penalty: Penalty | None) -> dict[str, Any]:
    if penalty is None:
        kind, weight, location = "", 0.0, "interpolate"
    elif type(penalty) is GradientPenalty:
        kind, weight, location = penalty.norm, penalty.weight, penalty.location
    elif type(penalty) is ZeroCenteredPenalty:
        kind, weight, location = "zero_centered", penalty.weight, penalty.location
    else:
        raise ValueError(
            f"the native executor knows the penalties of metagan_fast.losses, not {type(penalty).__name__}"
        )
    return {"penalty": kind, "penalty_weight": float(weight), "penalty_location": location}


def inner_settings(inner: InnerLoop) -> dict[str, Any]:
    """Return the inner optimizer as the engine reads it."""
    return {
        "optimizer": inner.optimizer,
        "momentum": float(inner.momentum_factor),
        "beta1": float(inner.betas[0]),
        "beta2": float(inner.betas[1]),
        "eps": float(inner.eps),
        "alpha": float(inner.alpha),
        "weight_decay": float(inner.weight_decay),
        "critic_steps": inner.critic_steps,
    }
