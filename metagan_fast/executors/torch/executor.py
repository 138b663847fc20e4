"""The torch executor: any module, any device, the whole task batch in one call.

First-order quantities are computed as such: the generator is a constant in the discriminator's update and the
discriminator's weights are in the generator's. MAML's adjoint replays one inner step at a time from stored states, so
its memory is one step's graph and K states, and it keeps the mixed derivatives that the first-order passes leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ...flat import FlatLayout
from ...inner import InnerLoop, TrainState
from ...losses import Loss
from ...noise import Noise
from ...tasks import TaskBatch
from ..base import LOSSES, InnerLoopResult, MetaGradient, Parameters, QueryObjective, TrainStates
from .batched import BatchedModule
from .exact_norms import ExactWeightNorm
from .objectives import Objectives

Sweep = list[Tensor | None]
"""Cotangents of a state's tensors on their way back through the inner loop; None stands for zero."""

Step = Callable[[TrainStates], TrainStates]
"""One inner step, differentiable to any order."""


class TorchExecutor:
    """Run inner loops with PyTorch; see `Executor` for the methods.

    Args:
        generator, discriminator: the modules; their parameters are passed in flat, so only their structure is used.
        generator_layout, discriminator_layout: the layouts of the flat parameters.
        loss: what the inner loop minimises.
        inner: its settings.
        allow_random: let the modules draw random numbers.
        autocast: run the networks under bf16 autocast, with parameters and updates in their own dtype.
    """

    name = "torch"

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        generator_layout: FlatLayout,
        discriminator_layout: FlatLayout,
        *,
        loss: Loss,
        inner: InnerLoop,
        allow_random: bool = False,
        autocast: bool = False,
    ) -> None:
        batched = partial(BatchedModule, allow_random=allow_random, autocast=autocast)
        self._generator = batched(generator, generator_layout, "generator")
        self._discriminator = batched(discriminator, discriminator_layout, "discriminator")
        self._objectives = Objectives(self._generator, self._discriminator, loss)
        self._clip = loss.clip
        self._inner = inner

    def inner_loop(
        self, initial: Parameters, batch: TaskBatch, noise: Noise, carried: TrainStates | None = None
    ) -> InnerLoopResult:
        networks, metrics, _ = self._adapt(initial, batch, noise, carried, keep=set())
        history = {name: torch.stack([step[name] for step in metrics]) for name in LOSSES}
        return InnerLoopResult(networks, metrics[-1], history)

    def query_gradient(
        self, initial: Parameters, batch: TaskBatch, noise: Noise, objective: QueryObjective
    ) -> MetaGradient:
        weights = objective.step_weights
        evaluated = {step + 1 for step in range(noise.steps) if weights[step] != 0}
        keep = evaluated if objective.first_order else set(range(noise.steps + 1))
        _, (*_, metrics), states = self._adapt(initial, batch, noise, None, keep)
        of_generator: Sweep = []
        of_discriminator: Sweep = []
        for step in reversed(range(noise.steps)):
            if step + 1 in evaluated:
                gradients, losses = self._query_gradients(states[step + 1], initial, batch, noise, objective, step)
                of_generator = _add(of_generator, gradients[0], weights[step])
                of_discriminator = _add(of_discriminator, gradients[1], weights[step])
                metrics = losses | metrics  # the last step's, which comes first, stays
            if not objective.first_order:
                replay = partial(self._step, batch=batch, noise=noise, step=step, create_graph=True)
                of_generator, of_discriminator = _pull_back(replay, states[step], (of_generator, of_discriminator))
        generator, discriminator = of_generator[_GENERATOR], of_discriminator[_DISCRIMINATOR]
        assert generator is not None and discriminator is not None
        return MetaGradient(generator.mean(0), discriminator.mean(0), metrics)

    @torch.enable_grad()
    def query_losses(self, params: Parameters, batch: TaskBatch, noise: Noise) -> dict[str, Tensor]:
        assert noise.query_generator_latents is not None
        last = noise.query_generator_latents.shape[0] - 1
        return _query_metrics(*self._query_losses(params, params.discriminator, batch, noise, last))

    @torch.no_grad()
    def generate(self, generator: Tensor, latents: Tensor) -> Tensor:
        return self._generator(generator, latents)

    @torch.enable_grad()
    def _adapt(
        self, initial: Parameters, batch: TaskBatch, noise: Noise, carried: TrainStates | None, keep: set[int]
    ) -> tuple[TrainStates, list[dict[str, Tensor]], dict[int, TrainStates]]:
        """Run the inner loop in place; return each step's metrics, and copies of the states before those to `keep`."""
        networks = TrainStates(
            *(
                self._inner.start(params.detach().expand(batch.tasks, -1).clone(), before)
                for params, before in zip(initial, carried or (None, None), strict=True)
            )
        )
        states: dict[int, TrainStates] = {}
        metrics: list[dict[str, Tensor]] = []
        for step in range(noise.steps):
            if step in keep:
                states[step] = _copy(networks)
            networks, of_step = self._step_and_metrics(networks, batch, noise, step, create_graph=False)
            metrics.append(of_step)
        states[noise.steps] = networks
        return networks, metrics, states

    def _step(
        self, networks: TrainStates, batch: TaskBatch, noise: Noise, step: int, create_graph: bool
    ) -> TrainStates:
        return self._step_and_metrics(networks, batch, noise, step, create_graph)[0]

    def _step_and_metrics(
        self, networks: TrainStates, batch: TaskBatch, noise: Noise, step: int, create_graph: bool
    ) -> tuple[TrainStates, dict[str, Tensor]]:
        """Take one inner step: `critic_steps` discriminator updates, then one of the generator."""
        generator, discriminator = networks
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
                discriminator, generator.params, real, latents, interpolation, step, create_graph
            )
        params = _independent(generator.params, create_graph)
        opponent = discriminator.params if create_graph else discriminator.params.detach()
        loss = self._objectives.generator_loss(opponent, params, noise.generator_latents[step], real)
        generator = self._update(generator, params, loss, self._inner.generator_rate(step), create_graph)
        metrics["loss_generator"] = loss.detach()
        return TrainStates(generator, discriminator), metrics

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
        self, params: Parameters, opponent: Tensor, batch: TaskBatch, noise: Noise, evaluation: int
    ) -> tuple[Tensor, Tensor]:
        """Return the query losses of generator and discriminator, `[tasks]` each; `opponent` judges the generator."""
        assert batch.query is not None and noise.query_interpolation is not None
        assert noise.query_discriminator_latents is not None and noise.query_generator_latents is not None
        generator_loss = self._objectives.generator_loss(
            opponent, params.generator, noise.query_generator_latents[evaluation], batch.query
        )
        fake = self._generator(params.generator, noise.query_discriminator_latents[evaluation])
        discriminator_loss, _ = self._objectives.discriminator_loss(
            params.discriminator, batch.query, fake, noise.query_interpolation[evaluation]
        )
        return generator_loss, discriminator_loss

    @torch.enable_grad()
    def _query_gradients(
        self,
        networks: TrainStates,
        initial: Parameters,
        batch: TaskBatch,
        noise: Noise,
        objective: QueryObjective,
        step: int,
    ) -> tuple[tuple[Sweep, Sweep], dict[str, Tensor]]:
        """Return the derivatives of each query loss by (generator, discriminator), and the losses as metrics."""
        generator, discriminator = (network.params.detach().requires_grad_() for network in networks)
        opponent = discriminator
        on_query: list[tuple[Step, TrainStates]] = []
        if objective.generator_objective != "support":
            opponent = initial.discriminator.detach().expand(batch.tasks, -1)
        if objective.generator_objective == "query":
            opponent, on_query = self._adapt_to_query(opponent, networks.generator, batch, noise)
        params = Parameters(generator, discriminator)
        losses = self._query_losses(params, opponent, batch, noise, step if objective.multi_step else 0)
        metrics = _query_metrics(*losses)
        if objective.first_order:
            (by_generator,) = torch.autograd.grad(losses[0].sum(), (generator,))
            (by_discriminator,) = torch.autograd.grad(losses[1].sum(), (discriminator,))
            return ([by_generator, None], [None, by_discriminator]), metrics
        of_discriminator: Sweep = list(
            torch.autograd.grad(losses[1].sum(), (generator, discriminator), retain_graph=True)
        )
        inputs = (generator, opponent) if opponent.requires_grad else (generator,)
        of_generator: Sweep = list(torch.autograd.grad(losses[0].sum(), inputs))
        for replay, before in reversed(on_query):
            (of_generator,) = _pull_back(replay, before, (of_generator,))
        if opponent is not discriminator:  # what is left belongs to the initial discriminator, a constant here
            of_generator = [of_generator[_GENERATOR], None]
        return (of_generator, of_discriminator), metrics

    def _adapt_to_query(
        self, start: Tensor, generator: TrainState, batch: TaskBatch, noise: Noise
    ) -> tuple[Tensor, list[tuple[Step, TrainStates]]]:
        """Adapt the initial discriminator to the query images against the adapted generator.

        Returns:
            The discriminator, requiring grad, and each update as a function with the state before it.
        """
        assert batch.query is not None
        assert noise.query_adaptation_latents is not None and noise.query_adaptation_interpolation is not None

        def update(networks: TrainStates, *, step: int, critic_step: int, create_graph: bool) -> TrainStates:
            assert batch.query is not None
            assert noise.query_adaptation_latents is not None and noise.query_adaptation_interpolation is not None
            discriminator, _ = self._update_discriminator(
                networks.discriminator,
                networks.generator.params,
                batch.query,
                noise.query_adaptation_latents[step, critic_step],
                noise.query_adaptation_interpolation[step, critic_step],
                step,
                create_graph,
            )
            return TrainStates(networks.generator, discriminator)

        networks = TrainStates(TrainState(generator.params.detach()), self._inner.start(start.clone()))
        history: list[tuple[Step, TrainStates]] = []
        for step in range(noise.steps):
            for critic_step in range(self._inner.critic_steps):
                replay = partial(update, step=step, critic_step=critic_step, create_graph=True)
                history.append((replay, _copy(networks)))
                networks = update(networks, step=step, critic_step=critic_step, create_graph=False)
        return networks.discriminator.params.detach().requires_grad_(), history


_GENERATOR, _DISCRIMINATOR = 0, 1  # where a sweep keeps the cotangents of the parameters; buffers come after


def _tensors(networks: TrainStates) -> tuple[Tensor, ...]:
    """List a state's tensors: both networks' parameters, then the generator's buffers, then the discriminator's."""
    generator, discriminator = networks
    return (generator.params, discriminator.params, *generator.buffers, *discriminator.buffers)


def _with_tensors(networks: TrainStates, tensors: Sequence[Tensor]) -> TrainStates:
    generator, discriminator = networks
    buffers = tensors[2 : 2 + len(generator.buffers)], tensors[2 + len(generator.buffers) :]
    return TrainStates(
        generator._replace(params=tensors[_GENERATOR], buffers=tuple(buffers[0])),
        discriminator._replace(params=tensors[_DISCRIMINATOR], buffers=tuple(buffers[1])),
    )


def _copy(networks: TrainStates) -> TrainStates:
    return _with_tensors(networks, [tensor.clone() for tensor in _tensors(networks)])


def _query_metrics(generator_loss: Tensor, discriminator_loss: Tensor) -> dict[str, Tensor]:
    return {
        "query_loss_discriminator": discriminator_loss.detach(),
        "query_loss_generator": generator_loss.detach(),
    }


def _independent(params: Tensor, create_graph: bool) -> Tensor:
    """Return `params` as a variable of its own, so that a gradient by it does not run through what depends on them.

    With a graph it is an alias: after the discriminator's update the discriminator itself depends on the generator,
    and the generator's gradient must not follow that path.
    """
    return params.view_as(params) if create_graph else params.detach().requires_grad_()


@torch.enable_grad()
def _pull_back(step: Step, before: TrainStates, sweeps: Sequence[Sweep]) -> list[Sweep]:
    """Multiply each sweep's cotangents by the transposed Jacobian of `step` at the state `before`."""
    inputs = [tensor.detach().requires_grad_() for tensor in _tensors(before)]
    with ExactWeightNorm():
        outputs = _tensors(step(_with_tensors(before, inputs)))
    pulled: list[Sweep] = []
    for number, sweep in enumerate(sweeps):
        pairs = [(o, c) for o, c in zip(outputs, sweep, strict=False) if c is not None]  # missing ones are zero
        grads = torch.autograd.grad(
            [output for output, _ in pairs],
            inputs,
            [cotangent for _, cotangent in pairs],
            retain_graph=number + 1 < len(sweeps),
            allow_unused=True,
        )
        pulled.append(list(grads))
    return pulled


def _add(total: Sweep, gradients: Sweep, weight: float) -> Sweep:
    """Return total + weight * gradients, where either may be shorter than the other."""
    result = list(total) + [None] * (len(gradients) - len(total))
    for index, gradient in enumerate(gradients):
        if gradient is not None:
            before = result[index]
            result[index] = weight * gradient if before is None else before + weight * gradient
    return result
