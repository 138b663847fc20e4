"""One instance of a workload: the networks, images and noise given to every contender."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from metagan_fast.benchmarks import workload_networks
from torch import Tensor, nn

import metagan_fast as mgf

KINKED = (nn.ReLU, nn.LeakyReLU, nn.PReLU)
SMOOTH_EPS = 1e-2
"""Adam's eps, about the size of a gradient's elements, with which a step does not jump where one changes sign."""


@dataclass(frozen=True)
class Problem:
    """Networks, a batch of tasks and the noise of one meta-step."""

    generator: nn.Module
    discriminator: nn.Module
    latent_dim: int
    batch: mgf.TaskBatch
    noise: mgf.Noise
    algorithm: str
    loss: str
    inner: mgf.InnerLoop

    @property
    def lr(self) -> float:
        """Learning rate of the inner loop."""
        return self.inner.generator_rate(0)

    @property
    def steps(self) -> int:
        """Number of inner steps."""
        return self.inner.steps

    @property
    def is_plain(self) -> bool:
        """Whether the inner loop is SGD on all support images."""
        return self.inner.optimizer == "sgd" and self.inner.batch_size is None

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """Options of the inner optimizer beside its rate, as `torch.optim` names them."""
        return {"betas": self.inner.betas, "eps": self.inner.eps} if self.inner.optimizer == "adam" else {}

    @classmethod
    def draw(
        cls,
        workload: str,
        *,
        algorithm: str,
        loss: str,
        inner: mgf.InnerLoop,
        tasks: int,
        shots: int,
        query: int,
    ) -> Problem:
        """Initialise a workload's networks and draw random images, whose content does not affect speed."""
        torch.manual_seed(0)
        generator, discriminator, latent_dim, image_shape = workload_networks.workload(workload)
        images = torch.rand(tasks, shots + query, *image_shape) * 2 - 1
        batch = mgf.TaskBatch(images[:, :shots], images[:, shots:] if query else None)
        networks = copy.deepcopy(generator), copy.deepcopy(discriminator)
        noise = mgf.MetaGAN(*networks, latent_dim=latent_dim, loss=loss, inner=inner).draw_noise(batch)
        return cls(generator, discriminator, latent_dim, batch, noise, algorithm, loss, inner)

    def learner(self, executor: str = "torch", precision: str = "float32", **ranks: Any) -> mgf.MetaGAN:
        """Return the package's learner on copies of the networks; `ranks` are `MetaGAN`'s arguments of those."""
        return mgf.MetaGAN(
            copy.deepcopy(self.generator),
            copy.deepcopy(self.discriminator),
            latent_dim=self.latent_dim,
            loss=self.loss,
            inner=self.inner,
            meta=mgf.MAML() if self.algorithm == "maml" else mgf.Reptile(),
            executor=executor,
            precision=precision,
            **ranks,
        )

    def first(self, *, tasks: int, steps: int) -> Problem:
        """Return the same problem for its first tasks and inner steps."""
        tasks, steps = min(tasks, self.batch.tasks), min(steps, self.steps)
        noise = self.noise.slice(0, tasks)
        cut = noise.drawn().keys() & {"discriminator_latents", "generator_latents", "interpolation", "support_index"}
        noise = dataclasses.replace(noise, **{name: getattr(noise, name)[:steps] for name in cut})
        inner = dataclasses.replace(self.inner, steps=steps)
        return dataclasses.replace(self, batch=self.batch.slice(0, tasks), noise=noise, inner=inner)

    def double(self) -> Problem:
        """Return the same problem in float64."""
        return dataclasses.replace(
            self,
            generator=copy.deepcopy(self.generator).double(),
            discriminator=copy.deepcopy(self.discriminator).double(),
            batch=self.batch.to(dtype=torch.float64),
            noise=self.noise.to(dtype=torch.float64),
        )

    def smooth(self) -> Problem:
        """Return the same problem on smooth copies of its networks, with a smooth step if its optimizer is Adam."""
        networks = (smooth_copy(self.generator), smooth_copy(self.discriminator))
        inner = dataclasses.replace(self.inner, eps=SMOOTH_EPS) if self.inner.optimizer == "adam" else self.inner
        return dataclasses.replace(self, generator=networks[0], discriminator=networks[1], inner=inner)

    def initial(self) -> tuple[Tensor, Tensor]:
        """Return each network's parameters as one vector, in the order of their names."""
        return join(dict(self.generator.named_parameters())), join(dict(self.discriminator.named_parameters()))


def smooth_copy(network: nn.Module) -> nn.Module:
    """Return a copy of a network with SiLU for every ReLU, LeakyReLU and PReLU."""
    network = copy.deepcopy(network)
    for parent in [*network.modules()]:
        for name, child in [*parent._modules.items()]:  # `named_children` omits a module's second name
            if isinstance(child, KINKED):
                setattr(parent, name, nn.SiLU())
    return network


def join(named: dict[str, Tensor], dims: int = 0) -> Tensor:
    """Concatenate tensors sorted by name, flattened except for their first `dims` dimensions."""
    return torch.cat([named[name].detach().flatten(dims) for name in sorted(named)], dim=dims)
