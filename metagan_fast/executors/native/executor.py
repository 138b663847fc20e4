"""The native executor: the inner loops of a task batch in one call of the compiled engine, on a CPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ... import _native
from ..._utils.pair import ROLES, Pair
from ...inner import OPTIMIZERS, InnerLoop, TrainState
from ...losses import Loss
from ...noise import Noise, NoiseShape
from ...tasks import TaskBatch
from ..base import LOSSES, Executor, GeneratorObjective, InnerLoopResult, MetaGradient, Network, QueryObjective
from ..task_sum import TaskSum
from .engine_call import CallBuilder, check_image_count, inner_settings, loss_settings
from .lowering import Plan, describe_plan, inner_step_multiply_adds, make_plan

_DIFFERENTIABLE = ("sgd", "momentum")
"""Inner optimizers that the engine differentiates through."""

_INNER_METRICS = ("loss_discriminator", "penalty", "loss_generator")
_QUERY_METRICS = ("query_loss_discriminator", "query_loss_generator")


class NativeExecutor(Executor):
    """Executor on the compiled engine.

    Args:
        networks: generator and discriminator, float32 on a CPU; only the modules' structure is used, parameters are
            passed in flat.
        latent_dim: elements of a latent vector.
        loss: the GAN loss of the inner loop.
        inner: the inner loop's settings.
        precision: "float32", or "bf16" to round the operands of matrix products to bf16 (in convolution derivatives by
            Winograd, after its transforms); sums, activations, parameters and updates are float32 either way.

    Raises:
        ValueError: the engine does not support a network (a `PlanError` names the layer), the loss or this machine.
    """

    name = "native"
    is_recordable = False

    def __init__(
        self, networks: Pair[Network], *, latent_dim: int, loss: Loss, inner: InnerLoop, precision: str = "float32"
    ) -> None:
        available, reason = _native.is_available()
        if not available:
            raise ValueError(reason)
        self._networks = networks
        self._plans = make_plans(networks, latent_dim)
        self._calls = CallBuilder(*self._plans, loss, inner, latent_dim)
        self._inner = inner
        self._loss = loss
        self._precision = precision
        generator, discriminator = self._plans.map(Plan.to_core)
        settings = loss_settings(loss), inner_settings(inner), precision
        self._engine = _native.make_engine(generator, discriminator, *settings)

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
        self, initial: Pair[Tensor], batch: TaskBatch, noise: Noise, carried: Pair[TrainState] | None = None
    ) -> InnerLoopResult:
        call = self._calls.inner_call(initial, batch, noise)

        def start(role: str, plan: Plan, before: TrainState | None, updates: int) -> TrainState:
            rows = call.write(role, batch.tasks, plan.numel)
            state = TrainState(rows)
            if before is not None or self._persists_state:
                state = self._inner.start(rows, before)
            call.update(f"{role}_buffers", state.buffers)
            return state._replace(updates=state.updates + updates)

        updates = noise.steps * self._inner.generator_steps, noise.steps * self._inner.critic_steps
        networks = ROLES.map(start, self._plans, carried or (None, None), updates)
        call.arguments["updates_done"] = tuple(before.updates for before in carried) if carried else (0, 0)
        metrics = call.write("metrics", len(_INNER_METRICS), batch.tasks)
        losses = call.write("step_losses", noise.steps, len(LOSSES), batch.tasks)
        self._engine.inner_loop(call.arguments)
        history = dict(zip(LOSSES, losses.unbind(1), strict=True))
        return InnerLoopResult(networks, self._metrics(metrics, _INNER_METRICS), history)

    @property
    def _persists_state(self) -> bool:
        """True if the optimizer state is carried on to the next inner loop."""
        return self._inner.inner_state == "persist"

    def reptile_gradient(
        self,
        initial: Pair[Tensor],
        batch: TaskBatch,
        noise: Noise,
        carried: Pair[TrainState] | None = None,
        total: TaskSum | None = None,
    ) -> MetaGradient:
        """Fuse inner loop and difference, bitwise equal to the default, unless its adapted networks are needed.

        The fused call does not store all adapted parameters, and returns no optimizer state.
        """
        if batch.query is not None or self._persists_state:
            return super().reptile_gradient(initial, batch, noise, carried, total)
        call = self._calls.inner_call(initial, batch, noise)
        difference = self._write(call, "difference", total)
        metrics = call.write("metrics", len(_INNER_METRICS), batch.tasks)
        self._engine.inner_loop(call.arguments)
        if total is not None:
            total.count(batch.tasks)
        return MetaGradient(*difference, self._metrics(metrics, _INNER_METRICS))

    def query_gradient(
        self,
        initial: Pair[Tensor],
        batch: TaskBatch,
        noise: Noise,
        objective: QueryObjective,
        total: TaskSum | None = None,
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
            "segment": objective.segment,
        }
        if objective.generator_objective == "query":
            updates = noise.steps, self._inner.critic_steps, batch.tasks, batch.query_shots
            call.read("query_adaptation_latents", noise.query_adaptation_latents, *updates, self._calls.latent_dim)
            call.read("query_adaptation_interpolation", noise.query_adaptation_interpolation, *updates)
        gradient = self._write(call, "gradient", total)
        names = (*_INNER_METRICS, *_QUERY_METRICS)
        metrics = call.write("metrics", len(names), batch.tasks)
        self._engine.query_gradient(call.arguments)
        if total is not None:
            total.count(batch.tasks)
        return MetaGradient(*gradient, self._metrics(metrics, names))

    def query_losses(self, params: Pair[Tensor], batch: TaskBatch, noise: Noise) -> dict[str, Tensor]:
        call = _native.EngineCall(tasks=batch.tasks, threads=_native.threads())
        ROLES.map(lambda role, rows, plan: call.read(role, rows, batch.tasks, plan.numel), params, self._plans)
        self._calls.read_query(call, batch, noise, slice(-1, None))
        metrics = call.write("metrics", len(_QUERY_METRICS), batch.tasks)
        self._engine.query_losses(call.arguments)
        return self._metrics(metrics, _QUERY_METRICS)

    def generate(self, generator: Tensor, latents: Tensor) -> Tensor:
        tasks, count = latents.shape[:2]
        plan = self._plans.generator
        check_image_count("generator", plan, count)
        call = _native.EngineCall(tasks=tasks, count=count, threads=_native.threads())
        call.read("generator", generator, tasks, plan.numel)
        call.read("latents", latents, tasks, count, self._calls.latent_dim)
        images = call.write("images", tasks, count, *plan.output_shape)
        self._engine.generate(call.arguments)
        return images

    def score(self, discriminator: Tensor, images: Tensor) -> Tensor:
        tasks, count = images.shape[:2]
        plan = self._plans.discriminator
        check_image_count("discriminator", plan, count)
        call = _native.EngineCall(tasks=tasks, count=count, threads=_native.threads())
        call.read("discriminator", discriminator, tasks, plan.numel)
        call.read("images", images, tasks, count, *self._plans.generator.output_shape)
        scores = call.write("scores", tasks, count)
        self._engine.score(call.arguments)
        return scores

    def memory_use(
        self, initial: Pair[Tensor], shape: NoiseShape, objective: QueryObjective | None, *, rows: bool = False
    ) -> dict[str, int]:
        """As `Executor.memory_use`; workers keep their memory from call to call, so a meta-step's calls add up."""
        both = 4 * sum(plan.numel for plan in self._plans)
        returns_rows = objective is None and (rows or shape.query > 0 or self._persists_state)
        use = self._engine.memory_use(self._sizes(shape, objective, rows=returns_rows))
        del use["workers"]
        buffers = OPTIMIZERS[self._inner.optimizer].buffers(self._inner) if self._persists_state else 0
        adapted = shape.tasks * both * (1 + buffers) if returns_rows else 0
        return {
            "activations": use["activations"] + use["scratch"],
            "adapted parameters and optimizer state": use["optimizer_state"] + use["sums"] + adapted,
            "derivative through the inner loop": use["adjoint"],
            "meta-gradient": 0 if rows else both,
        }

    def _sizes(
        self, shape: NoiseShape, objective: QueryObjective | None, *, rows: bool = False, threads: int | None = None
    ) -> dict[str, Any]:
        """Return the arguments of the engine's `memory_use`."""
        real = shape.shots if shape.batch_size is None else shape.batch_size
        sizes: dict[str, Any] = {
            "tasks": shape.tasks,
            "threads": _native.threads() if threads is None else threads,
            "steps": shape.steps,
            "batch": real,
            "generated": real if shape.generated is None else shape.generated,
            "query_count": shape.query,
            "rows": int(rows),
            "objective": None,
        }
        if objective is not None:
            sizes |= {
                "objective": objective.generator_objective,
                "first_order": int(objective.first_order),
                "segment": min(objective.segment, shape.steps),
            }
        return sizes

    def explain(self, shots: int, *, second_order: bool, generator_objective: GeneratorObjective) -> str:
        """Describe both plans, the multiply-adds of an inner step and the bytes of a task."""
        images = self._inner.mini_batch(shots) or shots
        generated = self._inner.generated or images
        loss, penalty = self._loss, self._loss.penalty
        points = {"interpolate": images, "real": images, "fake": generated, "both": images + generated}
        parted = loss.separate_batches or not self._plans.discriminator.mixes_images
        arithmetic = inner_step_multiply_adds(
            *self._plans,
            images,
            generated,
            0 if penalty is None else points[penalty.location],
            critic_steps=self._inner.critic_steps,
            generator_steps=self._inner.generator_steps,
            at_images=penalty is not None and penalty.location != "interpolate" and parted,
            relativistic=loss.relativistic,
        )
        buffers = OPTIMIZERS[self._inner.optimizer].buffers(self._inner)
        rows = 4 * (1 + buffers) * sum(plan.numel for plan in self._plans)
        query = images if second_order or generator_objective == "query" else 0
        weights = (0.0,) * self._inner.steps
        objective = QueryObjective(
            first_order=not second_order, generator_objective=generator_objective, step_weights=weights
        )
        shape = NoiseShape(
            tasks=1, shots=images, latent_dim=1, steps=self._inner.steps, query=query, generated=generated
        )
        is_query = second_order or generator_objective == "query"
        use = self._engine.memory_use(self._sizes(shape, objective if is_query else None, threads=1))
        workspace = sum(use.values()) - use["workers"]
        tables = [
            f"{role}, {plan.numel:,} elements\n{describe_plan(plan, network.layout)}\n\n"
            for role, plan, network in zip(ROLES, self._plans, self._networks, strict=True)
        ]
        shown = f"{images} images" if generated == images else f"{images} real and {generated} generated images"
        return (
            f"executor: native, {self._precision}\n\n{''.join(tables)}"
            f"an inner step of a task, {shown} an update: {arithmetic:,} multiply-adds\n"
            f"memory of a task: {rows:,} bytes of parameters and optimizer state, {workspace:,} bytes of a thread's own"
        )

    def _write(self, call: _native.EngineCall, name: str, total: TaskSum | None) -> Pair[Tensor]:
        """Pass an output `[numel]` for each network, that of `total` if there is one, and return them."""
        if total is None or total.sums is None:
            outputs = ROLES.map(lambda role, plan: call.write(f"{role}_{name}", plan.numel), self._plans)
        else:
            outputs = total.sums
            ROLES.map(lambda role, sums: call.go_on(f"{role}_{name}", sums), outputs)
        if total is not None:
            call.arguments |= {"added": total.added, "summed": total.tasks}
            total.sums = outputs
        return outputs

    def _metrics(self, rows: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        metrics = dict(zip(names, rows.unbind(0), strict=True))
        if self._loss.penalty is None:
            metrics.pop("penalty", None)
        return metrics


def make_plans(networks: Pair[Network], latent_dim: int) -> Pair[Plan]:
    """Lower both networks of a GAN to plans.

    Raises:
        PlanError: the engine does not support a layer, the generator's output is not an image, or the
            discriminator's is not a score.
    """
    generator, discriminator = networks
    images = make_plan(*generator, (latent_dim,), "generator", output="images")
    return Pair(images, make_plan(*discriminator, images.output_shape, "discriminator", output="scores"))
