"""The torch executor: any module, any device, the whole task batch in one call.

The discriminator's update treats the generator as a constant, and the generator's update the discriminator's weights.
MAML's adjoint replays one inner step at a time from stored states, so its memory is one step's graph and K states; it
includes the mixed derivatives that these first-order updates omit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..._utils.pair import Pair
from ...inner import OPTIMIZERS, InnerLoop, TrainState
from ...losses import Loss
from ...noise import Noise, NoiseShape
from ...ops.reference import narrow
from ...tasks import TaskBatch
from ..base import LOSSES, Executor, GeneratorObjective, InnerLoopResult, MetaGradient, Network, QueryObjective
from ..task_sum import TaskSum
from .batched import BatchedModule
from .exact_norms import ExactWeightNorm
from .memory_trace import WithoutUpdates, peak_bytes
from .objectives import Objectives

AdjointState = list[Tensor | None]
"""Cotangents of the tensors of `_tensors(state)`, pulled back through the inner loop; None stands for zero."""

Step = Callable[[Pair[TrainState]], Pair[TrainState]]
"""One inner step, differentiable to any order."""


class TorchExecutor(Executor):
    """Executor in PyTorch.

    Args:
        networks: generator and discriminator; only the modules' structure is used, parameters are passed in flat.
        loss: the GAN loss of the inner loop.
        inner: the inner loop's settings.
        allow_random: let the modules draw random numbers.
        autocast: run the networks under bf16 autocast; parameters and updates keep their dtype.
        reason: why this executor runs them, for `explain`.
    """

    name = "torch"
    is_recordable = True

    def __init__(
        self,
        networks: Pair[Network],
        *,
        loss: Loss,
        inner: InnerLoop,
        allow_random: bool = False,
        autocast: bool = False,
        reason: str,
    ) -> None:
        batched = partial(BatchedModule, allow_random=allow_random, autocast=autocast)
        self._generator, self._discriminator = (batched(*network, role) for role, network in networks.items())
        self._objectives = Objectives(self._generator, self._discriminator, loss)
        self._clip = loss.clip
        self._inner = inner
        self._reason = reason

    def inner_loop(
        self, initial: Pair[Tensor], batch: TaskBatch, noise: Noise, carried: Pair[TrainState] | None = None
    ) -> InnerLoopResult:
        state, metrics, _ = self._adapt(initial, batch, noise, carried, keep=set())
        history = {name: torch.stack([step[name] for step in metrics]) for name in LOSSES}
        return InnerLoopResult(state, metrics[-1], history)

    def query_gradient(
        self,
        initial: Pair[Tensor],
        batch: TaskBatch,
        noise: Noise,
        objective: QueryObjective,
        total: TaskSum | None = None,
    ) -> MetaGradient:
        weights = objective.step_weights
        evaluated = {step + 1 for step in range(noise.steps) if weights[step] != 0}
        last_segment = (noise.steps - 1) // objective.segment * objective.segment
        starts = set(range(0, last_segment, objective.segment))
        keep = evaluated if objective.first_order else starts | set(range(last_segment, noise.steps))
        _, (*_, metrics), states = self._adapt(initial, batch, noise, None, keep)
        adjoints: Pair[AdjointState] = Pair([], [])
        for step in reversed(range(noise.steps)):
            if not objective.first_order and step not in states:  # run its segment again, from the state that is kept
                states |= self._run_again(states, batch, noise, step // objective.segment * objective.segment, step)
            if step + 1 in evaluated:
                gradients, losses = self._query_gradients(states[step + 1], initial, batch, noise, objective, step)
                adjoints = adjoints.map(partial(_add, weight=weights[step]), gradients)
                metrics = losses | metrics  # the last step's losses, evaluated first, take precedence
            if not objective.first_order:
                replay = partial(self._step, batch=batch, noise=noise, step=step, create_graph=True)
                adjoints = Pair(*_pull_back(replay, states[step], adjoints))
                del states[step + 1]
        generator, discriminator = adjoints.generator[_GENERATOR], adjoints.discriminator[_DISCRIMINATOR]
        assert generator is not None and discriminator is not None
        if total is None:
            return MetaGradient(generator.mean(0), discriminator.mean(0), metrics)
        total.add(Pair(generator, discriminator))
        return MetaGradient(*total.value.map(narrow, initial), metrics)

    @torch.enable_grad()
    def _run_again(
        self, states: dict[int, Pair[TrainState]], batch: TaskBatch, noise: Noise, first: int, last: int
    ) -> dict[int, Pair[TrainState]]:
        """Return the states at the start of steps `first` + 1 to `last`, run again from the one kept at `first`."""
        again: dict[int, Pair[TrainState]] = {}
        state = _copy(states[first])
        for step in range(first, last):
            state = self._step(state, batch, noise, step, create_graph=False)
            again[step + 1] = state if step + 1 == last else _copy(state)
        return again

    @torch.enable_grad()
    def query_losses(self, params: Pair[Tensor], batch: TaskBatch, noise: Noise) -> dict[str, Tensor]:
        assert noise.query_generator_latents is not None
        last = noise.query_generator_latents.shape[0] - 1
        return _query_metrics(self._query_losses(params, params.discriminator, batch, noise, last))

    @torch.no_grad()
    def generate(self, generator: Tensor, latents: Tensor) -> Tensor:
        return self._generator(generator, latents)

    @torch.no_grad()
    def score(self, discriminator: Tensor, images: Tensor) -> Tensor:
        return self._objectives.scores(discriminator, images)

    def memory_use(
        self, initial: Pair[Tensor], shape: NoiseShape, objective: QueryObjective | None, *, rows: bool = False
    ) -> dict[str, int]:
        """As `Executor.memory_use`, from a trace of two inner steps on fake tensors.

        Kept states of further steps are added. PyTorch's temporary memory within an operation is not seen, such as
        reordered weights of a convolution. On a CUDA device this is the memory in use, of which the caching allocator
        reserves more; it has not been compared with a device's.
        """
        like = initial.generator
        latents = torch.zeros(1, 2, shape.latent_dim, dtype=like.dtype, device=like.device)
        image_shape = self.generate(like.unsqueeze(0), latents).shape[2:]  # also decides how the generator runs
        image = torch.zeros(1, 2, *image_shape, dtype=like.dtype, device=like.device)
        with torch.no_grad():
            self._discriminator(initial.discriminator.unsqueeze(0), image)
        steps = min(shape.steps, 2)
        short = replace(shape, steps=steps, evaluations=min(shape.evaluations, steps))
        traced = copy.copy(self)
        traced._inner = WithoutUpdates(**vars(self._inner))
        make = partial(_arguments, initial, short, image_shape)
        buffers = OPTIMIZERS[self._inner.optimizer].buffers(self._inner)
        state = shape.tasks * sum(x.numel() * x.element_size() for x in initial) * (1 + buffers)
        kept = 0
        if objective is None:
            run = traced.inner_loop if rows else traced.reptile_gradient
            peak = peak_bytes(make, lambda given: run(*given))
        else:
            adapts = objective.generator_objective == "query" and not objective.first_order
            brief = replace(objective, step_weights=objective.step_weights[-steps:])
            peak = peak_bytes(make, lambda given: traced.query_gradient(given[0], given[1], given[2], brief))
            of_discriminator = state * initial.discriminator.numel() // sum(x.numel() for x in initial)
            updates = self._inner.critic_steps if adapts else 0  # of an opponent, a step

            def kept_by(each: QueryObjective) -> int:
                return state * each.states_kept + of_discriminator * updates * len(each.step_weights)

            kept = kept_by(objective)
            peak += kept - kept_by(brief)
        return {
            "activations and gradients": peak - state - kept,
            "adapted parameters and optimizer state": state,
            "derivative through the inner loop": kept,
        }

    def explain(self, shots: int, *, second_order: bool, generator_objective: GeneratorObjective) -> str:
        return f"executor: torch, because {self._reason}"

    @torch.enable_grad()
    def _adapt(
        self, initial: Pair[Tensor], batch: TaskBatch, noise: Noise, carried: Pair[TrainState] | None, keep: set[int]
    ) -> tuple[Pair[TrainState], list[dict[str, Tensor]], dict[int, Pair[TrainState]]]:
        """Run the inner loop in place; return the final states, each step's metrics, and the kept states.

        `keep` lists the steps whose initial state is copied; step K stands for the final state.
        """
        rows = initial.map(lambda params: params.detach().expand(batch.tasks, -1).clone())
        state = rows.map(self._inner.start, carried or (None, None))
        states: dict[int, Pair[TrainState]] = {}
        metrics: list[dict[str, Tensor]] = []
        for step in range(noise.steps):
            if step in keep:
                states[step] = _copy(state)
            state, of_step = self._step_and_metrics(state, batch, noise, step, create_graph=False)
            metrics.append(of_step)
        states[noise.steps] = state
        return state, metrics, states

    def _step(
        self, state: Pair[TrainState], batch: TaskBatch, noise: Noise, step: int, create_graph: bool
    ) -> Pair[TrainState]:
        return self._step_and_metrics(state, batch, noise, step, create_graph)[0]

    def _step_and_metrics(
        self, state: Pair[TrainState], batch: TaskBatch, noise: Noise, step: int, create_graph: bool
    ) -> tuple[Pair[TrainState], dict[str, Tensor]]:
        """Take one inner step: `critic_steps` discriminator updates, then `generator_steps` generator updates."""
        generator, discriminator = state
        rate_step = noise.first_step + step
        for critic_step in range(self._inner.critic_steps):
            real = batch.support
            if noise.support_index is not None:
                index = noise.support_index[step, critic_step]
                real = real[torch.arange(batch.tasks, device=index.device)[:, None], index]
            latents, interpolation = (
                noise.discriminator_latents[step, critic_step],
                noise.interpolation[step, critic_step],
            )
            discriminator, metrics = self._update_discriminator(
                discriminator, generator.params, real, latents, interpolation, rate_step, create_graph
            )
        opponent = discriminator.params if create_graph else discriminator.params.detach()
        first = step * self._inner.generator_steps
        for latents in noise.generator_latents[first : first + self._inner.generator_steps]:
            params = _independent(generator.params, create_graph)
            loss = self._objectives.generator_loss(opponent, params, latents, real)
            generator = self._update(generator, params, loss, self._inner.generator_rate(rate_step), create_graph)
        metrics["loss_generator"] = loss.detach()
        return Pair(generator, discriminator), metrics

    def _update_discriminator(
        self,
        discriminator: TrainState,
        generator: Tensor,
        real: Tensor,
        latents: Tensor,
        interpolation: Tensor,
        step: int,
        create_graph: bool,
    ) -> tuple[TrainState, dict[str, Tensor]]:
        with torch.set_grad_enabled(create_graph):
            fake = self._generator(generator, latents)
        if fake.shape[2:] != real.shape[2:]:
            raise ValueError(
                f"the generator makes images of shape {list(fake.shape[2:])}, the batch holds {list(real.shape[2:])}; "
                "build the networks for the data's size and channels"
            )
        params = _independent(discriminator.params, create_graph)
        loss, penalty = self._objectives.discriminator_loss(
            params, real, fake, interpolation, differentiated_twice=create_graph
        )
        discriminator = self._update(discriminator, params, loss, self._inner.discriminator_rate(step), create_graph)
        if self._clip is not None:
            clamp = discriminator.params.clamp if create_graph else discriminator.params.clamp_
            discriminator = discriminator._replace(params=clamp(-self._clip, self._clip))
        metrics = {"loss_discriminator": loss.detach()}
        if penalty is not None:
            metrics["penalty"] = penalty.detach()
        return discriminator, metrics

    def _update(self, network: TrainState, params: Tensor, loss: Tensor, lr: float, create_graph: bool) -> TrainState:
        (gradient,) = torch.autograd.grad(loss.sum(), params, create_graph=create_graph)
        with torch.set_grad_enabled(create_graph):
            return self._inner.update(network, gradient, lr, in_place=not create_graph)

    def _query_losses(
        self, params: Pair[Tensor], opponent: Tensor, batch: TaskBatch, noise: Noise, evaluation: int
    ) -> Pair[Tensor]:
        """Return the query losses, `[tasks]` each; `opponent` judges the generator."""
        assert batch.query is not None and noise.query_interpolation is not None
        assert noise.query_discriminator_latents is not None and noise.query_generator_latents is not None
        generator_loss = self._objectives.generator_loss(
            opponent, params.generator, noise.query_generator_latents[evaluation], batch.query
        )
        fake = self._generator(params.generator, noise.query_discriminator_latents[evaluation])
        discriminator_loss, _ = self._objectives.discriminator_loss(
            params.discriminator, batch.query, fake, noise.query_interpolation[evaluation]
        )
        return Pair(generator_loss, discriminator_loss)

    @torch.enable_grad()
    def _query_gradients(
        self,
        state: Pair[TrainState],
        initial: Pair[Tensor],
        batch: TaskBatch,
        noise: Noise,
        objective: QueryObjective,
        step: int,
    ) -> tuple[Pair[AdjointState], dict[str, Tensor]]:
        """Return each query loss's cotangents of both networks' parameters, and the losses as metrics."""
        generator, discriminator = (network.params.detach().requires_grad_() for network in state)
        opponent = discriminator
        on_query: list[tuple[Step, Pair[TrainState]]] = []
        if objective.generator_objective != "support":
            opponent = initial.discriminator.detach().expand(batch.tasks, -1)
        if objective.generator_objective == "query":
            keep = not objective.first_order
            opponent, on_query = self._adapt_to_query(opponent, state.generator, batch, noise, keep)
        params = Pair(generator, discriminator)
        losses = self._query_losses(params, opponent, batch, noise, step if objective.multi_step else 0)
        metrics = _query_metrics(losses)
        if objective.first_order:
            (by_generator,) = torch.autograd.grad(losses.generator.sum(), (generator,))
            (by_discriminator,) = torch.autograd.grad(losses.discriminator.sum(), (discriminator,))
            return Pair[AdjointState]([by_generator, None], [None, by_discriminator]), metrics
        of_discriminator: AdjointState = list(
            torch.autograd.grad(losses.discriminator.sum(), (generator, discriminator), retain_graph=True)
        )
        inputs = (generator, opponent) if opponent.requires_grad else (generator,)
        of_generator: AdjointState = list(torch.autograd.grad(losses.generator.sum(), inputs))
        for replay, before in reversed(on_query):
            (of_generator,) = _pull_back(replay, before, (of_generator,))
        if opponent is not discriminator:  # the rest is by the initial discriminator, a constant in this objective
            of_generator = [of_generator[_GENERATOR], None]
        return Pair(of_generator, of_discriminator), metrics

    def _adapt_to_query(
        self, start: Tensor, generator: TrainState, batch: TaskBatch, noise: Noise, keep: bool
    ) -> tuple[Tensor, list[tuple[Step, Pair[TrainState]]]]:
        """Adapt the initial discriminator to the query images against the adapted generator.

        Returns:
            The discriminator, requiring grad, and with `keep` for each update its replay function with the state
            before it.
        """
        assert batch.query is not None
        assert noise.query_adaptation_latents is not None and noise.query_adaptation_interpolation is not None

        def update(state: Pair[TrainState], *, step: int, critic_step: int, create_graph: bool) -> Pair[TrainState]:
            assert batch.query is not None
            assert noise.query_adaptation_latents is not None and noise.query_adaptation_interpolation is not None
            discriminator, _ = self._update_discriminator(
                state.discriminator,
                state.generator.params,
                batch.query,
                noise.query_adaptation_latents[step, critic_step],
                noise.query_adaptation_interpolation[step, critic_step],
                step,
                create_graph,
            )
            return Pair(state.generator, discriminator)

        state = Pair(TrainState(generator.params.detach()), self._inner.start(start.clone()))
        history: list[tuple[Step, Pair[TrainState]]] = []
        for step in range(noise.steps):
            for critic_step in range(self._inner.critic_steps):
                replay = partial(update, step=step, critic_step=critic_step, create_graph=True)
                if keep:  # the generator stays, so one copy of the discriminator is enough
                    history.append((replay, Pair(state.generator, _copy_network(state.discriminator))))
                state = update(state, step=step, critic_step=critic_step, create_graph=False)
        return state.discriminator.params.detach().requires_grad_(), history


_GENERATOR, _DISCRIMINATOR = 0, 1  # indices of the parameters' cotangents in an AdjointState; buffers follow


def _arguments(
    initial: Pair[Tensor], shape: NoiseShape, image_shape: Sequence[int]
) -> tuple[Pair[Tensor], TaskBatch, Noise]:
    """Return empty arguments of an inner loop with the sizes of `shape`."""

    def empty(*size: int, dtype: torch.dtype = initial.generator.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device=initial.generator.device)

    dtypes = {"support_index": torch.int64}
    noise = Noise(
        **{
            name: empty(*size, dtype=dtypes.get(name, initial.generator.dtype))
            for name, size in shape.tensors().items()
        }
    )
    query = empty(shape.tasks, shape.query, *image_shape) if shape.query else None
    batch = TaskBatch.trusted(empty(shape.tasks, shape.shots, *image_shape), query)
    return initial.map(lambda params: empty(params.numel())), batch, noise


def _tensors(state: Pair[TrainState]) -> tuple[Tensor, ...]:
    """Return a state's tensors: both networks' parameters, then the generator's buffers, then the discriminator's."""
    generator, discriminator = state
    return (generator.params, discriminator.params, *generator.buffers, *discriminator.buffers)


def _with_tensors(state: Pair[TrainState], tensors: Sequence[Tensor]) -> Pair[TrainState]:
    generator, discriminator = state
    buffers = tensors[2 : 2 + len(generator.buffers)], tensors[2 + len(generator.buffers) :]
    return Pair(
        generator._replace(params=tensors[_GENERATOR], buffers=tuple(buffers[0])),
        discriminator._replace(params=tensors[_DISCRIMINATOR], buffers=tuple(buffers[1])),
    )


def _copy(state: Pair[TrainState]) -> Pair[TrainState]:
    return _with_tensors(state, [tensor.clone() for tensor in _tensors(state)])


def _copy_network(state: TrainState) -> TrainState:
    return state.with_tensors([tensor.clone() for tensor in state.tensors])


def _query_metrics(losses: Pair[Tensor]) -> dict[str, Tensor]:
    return {
        "query_loss_discriminator": losses.discriminator.detach(),
        "query_loss_generator": losses.generator.detach(),
    }


def _independent(params: Tensor, create_graph: bool) -> Tensor:
    """Return a new variable with the values of `params`, for partial derivatives.

    With `create_graph` it is a view in the graph: after the discriminator's update the discriminator depends on the
    generator, and the generator's gradient must not follow that path.
    """
    return params.view_as(params) if create_graph else params.detach().requires_grad_()


@torch.enable_grad()
def _pull_back(step: Step, before: Pair[TrainState], adjoints: Sequence[AdjointState]) -> list[AdjointState]:
    """Return the vector-Jacobian products of each adjoint with `step` at the state `before`."""
    inputs = [tensor.detach().requires_grad_() for tensor in _tensors(before)]
    with ExactWeightNorm():
        outputs = _tensors(step(_with_tensors(before, inputs)))
    pulled: list[AdjointState] = []
    for number, adjoint in enumerate(adjoints):
        seeded = [(o, c) for o, c in zip(outputs, adjoint, strict=False) if c is not None]  # None, missing: zero
        grads = torch.autograd.grad(
            [output for output, _ in seeded],
            inputs,
            [cotangent for _, cotangent in seeded],
            retain_graph=number + 1 < len(adjoints),
            allow_unused=True,
        )
        pulled.append(list(grads))
    return pulled


def _add(total: AdjointState, gradients: AdjointState, weight: float) -> AdjointState:
    """Return total + weight * gradients; missing trailing entries are zero."""
    result = list(total) + [None] * (len(gradients) - len(total))
    for index, gradient in enumerate(gradients):
        if gradient is not None:
            before = result[index]
            result[index] = weight * gradient if before is None else before + weight * gradient
    return result
