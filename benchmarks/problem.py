"""One instance of a workload: the networks, images and noise given to every contender."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import torch
from metagan_fast.benchmarks import workload_networks
from torch import Tensor, nn

import metagan_fast as mgf

KINKED = (nn.ReLU, nn.LeakyReLU, nn.PReLU)


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
    lr: float
    steps: int

    @classmethod
    def draw(
        cls,
        workload: str,
        *,
        algorithm: str,
        loss: str,
        lr: float,
        tasks: int,
        shots: int,
        query: int,
        steps: int,
    ) -> Problem:
        """Initialise a workload's networks and draw random images, whose content does not affect speed."""
        torch.manual_seed(0)
        generator, discriminator, latent_dim, image_shape = workload_networks.workload(workload)
        images = torch.rand(tasks, shots + query, *image_shape) * 2 - 1
        batch = mgf.TaskBatch(images[:, :shots], images[:, shots:] if query else None)
        inner = mgf.InnerLoop(optimizer="sgd", lr=lr, steps=steps)
        networks = copy.deepcopy(generator), copy.deepcopy(discriminator)
        noise = mgf.MetaGAN(*networks, latent_dim=latent_dim, loss=loss, inner=inner).draw_noise(batch)
        return cls(generator, discriminator, latent_dim, batch, noise, algorithm, loss, lr, steps)

    def learner(self, executor: str = "torch", precision: str = "float32") -> mgf.MetaGAN:
        """Return the package's learner on copies of the networks."""
        return mgf.MetaGAN(
            copy.deepcopy(self.generator),
            copy.deepcopy(self.discriminator),
            latent_dim=self.latent_dim,
            loss=self.loss,
            inner=mgf.InnerLoop(optimizer="sgd", lr=self.lr, steps=self.steps),
            meta=mgf.MAML() if self.algorithm == "maml" else mgf.Reptile(),
            executor=executor,
            precision=precision,
        )

    def first(self, *, tasks: int, steps: int) -> Problem:
        """Return the same problem for its first tasks and inner steps."""
        tasks, steps = min(tasks, self.batch.tasks), min(steps, self.steps)
        noise = self.noise.slice(0, tasks)
        cut = ("discriminator_latents", "generator_latents", "interpolation")
        noise = dataclasses.replace(noise, **{name: getattr(noise, name)[:steps] for name in cut})
        return dataclasses.replace(self, batch=self.batch.slice(0, tasks), noise=noise, steps=steps)

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
        """Return the same problem on smooth copies of its networks."""
        networks = (smooth_copy(self.generator), smooth_copy(self.discriminator))
        return dataclasses.replace(self, generator=networks[0], discriminator=networks[1])

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
