"""The native executor: the inner loops of a task batch in one call of the compiled engine, on a CPU."""

from __future__ import annotations

from torch import Tensor, nn

from ... import _native
from ...flat import FlatLayout
from ...inner import OPTIMIZERS, InnerLoop, TrainState
from ...losses import Loss
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
)
from .engine_call import CallBuilder, check_image_count, inner_settings, loss_settings
from .lowering import Plan, describe_plan, inner_step_multiply_adds, make_plan

_DIFFERENTIABLE = ("sgd", "momentum")
"""Inner optimizers that the engine differentiates through."""

_INNER_METRICS = ("loss_discriminator", "penalty", "loss_generator")
_QUERY_METRICS = ("query_loss_discriminator", "query_loss_generator")


class NativeExecutor:
    """Executor on the compiled engine; see `Executor` for the methods.

    Args:
        generator, discriminator: the modules; only their structure is used, parameters are passed in flat.
        generator_layout, discriminator_layout: the layouts of the flat parameters, float32 on a CPU.
        latent_dim: elements of a latent vector.
        loss: the GAN loss of the inner loop.
        inner: the inner loop's settings.
        precision: "float32", or "bf16" to round the operands of matrix products to bf16 (in convolution derivatives by
            Winograd, after its transforms); sums, activations, parameters and updates are float32 either way.

    Raises:
        ValueError: the engine does not support a network (a `PlanError` names the layer), the loss or this machine.
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
        self._layouts = generator_layout, discriminator_layout
        self._calls = CallBuilder(self.generator, self.discriminator, loss, inner, latent_dim)
        self._inner = inner
        self._loss = loss
        settings = loss_settings(loss), inner_settings(inner), precision
        self._engine = _native.make_engine(self.generator.to_core(), self.discriminator.to_core(), *settings)

    @staticmethod
    def check_second_order(loss: Loss, inner: InnerLoop) -> None:
        """Raise ValueError if the engine cannot differentiate through the inner loop."""
        if inner.optimizer not in _DIFFERENTIABLE:
            raise ValueError(
                f"the native executor differentiates through inner loops by {' and '.join(_DIFFERENTIABLE)}, got "
                f"{inner.optimizer}"
            )
        if loss.penalty is not None:
            raise ValueError("the native executor does not differentiate through inner loops with a gradient penalty")
        if loss.relativistic:
            raise ValueError("the native executor does not differentiate through inner loops with a relativistic loss")

    def inner_loop(
        self, initial: Parameters, batch: TaskBatch, noise: Noise, carried: TrainStates | None = None
    ) -> InnerLoopResult:
        call = self._calls.inner_call(initial, batch, noise)
        states = []
        for role, plan, before, updates in zip(
            ("generator", "discriminator"),
            (self.generator, self.discriminator),
            carried or (None, None),
            (noise.steps, noise.steps * self._inner.critic_steps),
            strict=True,
        ):
            rows = call.write(role, batch.tasks, plan.numel)
            state = TrainState(rows)
            if before is not None or self.persists_state:
                state = self._inner.start(rows, before)
            states.append(state._replace(updates=state.updates + updates))
        call.update("generator_buffers", states[0].buffers)
        call.update("discriminator_buffers", states[1].buffers)
        call.arguments["updates_done"] = tuple(before.updates for before in carried) if carried else (0, 0)
        metrics = call.write("metrics", len(_INNER_METRICS), batch.tasks)
        losses = call.write("step_losses", noise.steps, len(LOSSES), batch.tasks)
        self._engine.inner_loop(call.arguments)
        history = dict(zip(LOSSES, losses.unbind(1), strict=True))
        return InnerLoopResult(TrainStates(*states), self._metrics(metrics, _INNER_METRICS), history)

    @property
    def persists_state(self) -> bool:
        """True if the optimizer state is carried on to the next inner loop."""
        return self._inner.inner_state == "persist"

    def reptile_gradient(self, initial: Parameters, batch: TaskBatch, noise: Noise) -> MetaGradient:
        """Return the mean over tasks of initial - adapted parameters, without storing all adapted parameters.

        Bitwise equal to `functional.reptile_gradient` on the result of `inner_loop`; optimizer state is not returned.
        """
        call = self._calls.inner_call(initial, batch, noise)
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
        call = self._calls.inner_call(initial, batch, noise)
        evaluations = noise.steps if objective.multi_step else 1
        self._calls.read_query(call, batch, noise, slice(evaluations))
        call.arguments |= {
            "step_weights": tuple(map(float, objective.step_weights)),
            "multi_step": int(objective.multi_step),
            "first_order": int(objective.first_order),
            "objective": objective.generator_objective,
        }
        if objective.generator_objective == "query":
            updates = noise.steps, self._inner.critic_steps, batch.tasks, batch.query_shots
            call.read("query_adaptation_latents", noise.query_adaptation_latents, *updates, self._calls.latent_dim)
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
        self._calls.read_query(call, batch, noise, slice(-1, None))
        metrics = call.write("metrics", len(_QUERY_METRICS), batch.tasks)
        self._engine.query_losses(call.arguments)
        return self._metrics(metrics, _QUERY_METRICS)

    def generate(self, generator: Tensor, latents: Tensor) -> Tensor:
        tasks, count = latents.shape[:2]
        check_image_count("generator", self.generator, count)
        call = _native.EngineCall(tasks=tasks, count=count, threads=_native.threads())
        call.read("generator", generator, tasks, self.generator.numel)
        call.read("latents", latents, tasks, count, self._calls.latent_dim)
        images = call.write("images", tasks, count, *self.generator.output_shape)
        self._engine.generate(call.arguments)
        return images

    def explain(
        self, shots: int, *, second_order: bool = False, generator_objective: GeneratorObjective = "support"
    ) -> str:
        """Describe both plans, the multiply-adds of an inner step and the bytes of a task.

        Args:
            shots: support images of the task.
            second_order: include the memory of a gradient through the inner loop, with as many query images.
            generator_objective: as in `QueryObjective`.
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
        workspace = self._engine.workspace_bytes(images, query, self._inner.steps, generator_objective, second_order)
        return (
            f"generator, {self.generator.numel:,} elements\n{describe_plan(self.generator, self._layouts[0])}\n\n"
            f"discriminator, {self.discriminator.numel:,} elements\n"
            f"{describe_plan(self.discriminator, self._layouts[1])}\n\n"
            f"an inner step of a task, {images} images an update: {arithmetic:,} multiply-adds\n"
            f"memory of a task: {rows:,} bytes of parameters and optimizer state, {workspace:,} bytes of a thread's own"
        )

    def _metrics(self, rows: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        metrics = dict(zip(names, rows.unbind(0), strict=True))
        if self._loss.penalty is None:
            metrics.pop("penalty", None)
        return metrics


def make_plans(
    generator: nn.Module,
    discriminator: nn.Module,
    generator_layout: FlatLayout,
    discriminator_layout: FlatLayout,
    latent_dim: int,
) -> tuple[Plan, Plan]:
    """Lower both networks of a GAN to plans.

    Raises:
        PlanError: the engine does not support a layer, the generator's output is not an image, or the
            discriminator's is not a score.
    """
    images = make_plan(generator, generator_layout, (latent_dim,), "generator", output="images")
    return images, make_plan(discriminator, discriminator_layout, images.output_shape, "discriminator", output="scores")
