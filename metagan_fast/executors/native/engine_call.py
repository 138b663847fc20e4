"""Arguments of the engine: loss and inner-loop settings at construction, tensors and sizes of each call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import _native
from ..._utils.pair import Pair
from ...inner import InnerLoop
from ...losses import Loss, Penalty, Term
from ...noise import Noise
from ...tasks import TaskBatch
from ..base import one_image_error
from .lowering import Plan

_OPTIONAL_OUTPUTS = (
    *("generator", "discriminator", "generator_difference", "discriminator_difference"),
    "step_losses",
)
"""Outputs of an inner loop that are not computed unless the call passes memory for them."""


@dataclass(frozen=True)
class CallBuilder:
    """Builds the engine's calls for two networks, and checks that images and noise fit them.

    Attributes:
        generator, discriminator: the plans of the networks.
        loss: the GAN loss of the inner loop.
        inner: the inner loop's settings.
        latent_dim: elements of a latent vector.
    """

    generator: Plan
    discriminator: Plan
    loss: Loss
    inner: InnerLoop
    latent_dim: int

    def inner_call(self, initial: Pair[Tensor], batch: TaskBatch, noise: Noise) -> _native.EngineCall:
        """Return a call with the inputs of an inner loop and no outputs.

        Raises:
            ValueError: the images or the noise do not fit the networks.
        """
        self._check_images(batch)
        tasks, steps, critic_steps = batch.tasks, noise.steps, self.inner.critic_steps
        each_step = range(noise.first_step, noise.first_step + steps)
        rows = batch.shots if noise.support_index is None else noise.support_index.shape[-1]
        generated = rows if self.inner.generated is None else self.inner.generated
        self._check_rows(rows, generated)
        call = _native.EngineCall(
            threads=_native.threads(),
            tasks=tasks,
            shots=batch.shots,
            batch=rows,
            generated=generated,
            steps=steps,
            generator_lrs=tuple(map(self.inner.generator_rate, each_step)),
            discriminator_lrs=tuple(map(self.inner.discriminator_rate, each_step)),
            updates_done=(0, 0),
            added=0,
            summed=tasks,
            generator_buffers=(),
            discriminator_buffers=(),
        )
        for name in _OPTIONAL_OUTPUTS:
            call.arguments[name] = 0
        call.read("initial_generator", initial.generator, self.generator.numel)
        call.read("initial_discriminator", initial.discriminator, self.discriminator.numel)
        call.read("support", batch.support, tasks, batch.shots, *self.generator.output_shape)
        if noise.support_index is not None:
            low, high = noise.support_index.aminmax()
            if low < 0 or high >= batch.shots:
                raise ValueError(
                    f"expected noise.support_index in 0 to {batch.shots - 1}, got {low} to {high}; draw the noise "
                    "for this batch"
                )
        call.read("support_index", noise.support_index, steps, critic_steps, tasks, rows, dtype=torch.int64)
        updates = steps, critic_steps, tasks
        call.read("discriminator_latents", noise.discriminator_latents, *updates, generated, self.latent_dim)
        updates_of_generator = steps * self.inner.generator_steps
        call.read("generator_latents", noise.generator_latents, updates_of_generator, tasks, generated, self.latent_dim)
        call.read("interpolation", noise.interpolation, *updates, rows)
        return call

    def read_query(self, call: _native.EngineCall, batch: TaskBatch, noise: Noise, chosen: slice) -> None:
        """Add the query images, and the noise of the chosen evaluations, to a call."""
        assert batch.query is not None
        assert noise.query_discriminator_latents is not None and noise.query_generator_latents is not None
        assert noise.query_interpolation is not None
        self._check_images(batch)
        self._check_rows(batch.query_shots, batch.query_shots)
        interpolation = noise.query_interpolation[chosen]
        sizes = (interpolation.shape[0], batch.tasks, batch.query_shots)
        call.arguments |= {"query_count": batch.query_shots, "evaluations": sizes[0]}
        call.arguments |= {"query_adaptation_latents": 0, "query_adaptation_interpolation": 0}
        call.read("query", batch.query, batch.tasks, batch.query_shots, *self.generator.output_shape)
        for name in ("query_discriminator_latents", "query_generator_latents"):
            call.read(name, getattr(noise, name)[chosen], *sizes, self.latent_dim)
        call.read("query_interpolation", interpolation, *sizes)

    def _check_images(self, batch: TaskBatch) -> None:
        if batch.image_shape != self.generator.output_shape:
            raise ValueError(
                f"the generator makes images of shape {list(self.generator.output_shape)}, the batch holds "
                f"{list(batch.image_shape)}; build the networks for the data's size and channels"
            )

    def _check_rows(self, real: int, generated: int) -> None:
        """Raise ValueError if a pass over real or generated images leaves a batch norm one value a channel."""
        check_image_count("generator", self.generator, generated)
        loss = self.loss
        if loss.separate_batches or (loss.penalty is not None and loss.penalty.location != "fake"):
            check_image_count("discriminator", self.discriminator, real)
        if loss.separate_batches or loss.penalty is not None or not loss.generator_needs_real:
            check_image_count("discriminator", self.discriminator, generated)


def check_image_count(name: str, plan: Plan, count: int) -> None:
    """Raise ValueError if `count` images leave a batch norm of the network with a single value a channel."""
    if count == 1 and not plan.takes_one_image:
        raise ValueError(one_image_error(name))


def loss_settings(loss: Loss) -> dict[str, Any]:
    """Return the engine's settings of a loss and its penalty.

    Raises:
        ValueError: the loss, a term or the penalty overrides a function, so its data may not describe it.
    """
    _check_not_overridden(loss, Loss, "discriminator_loss", "generator_loss")
    if loss.generator_needs_real != loss.relativistic:
        raise ValueError(
            f"it passes real scores to the generator's loss exactly if the loss is relativistic, got "
            f"{type(loss).__name__} with generator_needs_real={loss.generator_needs_real}"
        )
    if loss.clip is not None and not loss.clip > 0:
        raise ValueError(f"it takes a positive clip or None, got {loss.clip}")
    return {
        **{name: _term_settings(term) for name, term in loss.terms._asdict().items()},
        "relative": ("pairs" if loss.paired else "means") if loss.relativistic else "none",
        "separate_batches": int(loss.separate_batches),
        "clip": float(loss.clip or 0),
        "penalty": None if loss.penalty is None else _penalty_settings(loss.penalty),
    }


def _term_settings(term: Term) -> tuple[str, float, float]:
    _check_not_overridden(term, Term, "value")
    return term.kind, term.factor, term.label


def _penalty_settings(penalty: Penalty) -> tuple[str, float, str]:
    _check_not_overridden(penalty, Penalty, "value")
    return penalty.kind, float(penalty.weight), penalty.location


def _check_not_overridden(stated: object, base: type, *functions: str) -> None:
    """Raise ValueError if an object computes by functions of its own, and not by its base class's from its data."""
    for name in functions:
        if getattr(getattr(stated, name), "__func__", None) is not getattr(base, name):
            raise ValueError(
                f"it reads the data that a {base.__name__.lower()} states, got {type(stated).__name__}, which "
                f"overrides {name}"
            )


def inner_settings(inner: InnerLoop) -> dict[str, Any]:
    """Return the engine's settings of the inner optimizer."""
    return {
        "optimizer": inner.optimizer,
        "momentum": float(inner.momentum_factor),
        "beta1": float(inner.betas[0]),
        "beta2": float(inner.betas[1]),
        "eps": float(inner.eps),
        "alpha": float(inner.alpha),
        "weight_decay": float(inner.weight_decay),
        "critic_steps": inner.critic_steps,
        "generator_steps": inner.generator_steps,
    }
