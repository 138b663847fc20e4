"""MAML as learn2learn's users write it; plain PyTorch is the original, as learn2learn does not build on Python 3.11."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from metagan_fast.benchmarks.contenders import Prepared
from metagan_fast.benchmarks.dropin_cases import DropInCase
from metagan_fast.benchmarks.dropin_cases.conv4 import Episodes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from metagan_fast.dropin import learn2learn as l2l

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """A network, a meta-batch of tasks and the inner loop's settings.

    Attributes:
        network: the network; a meta-step leaves gradients in it.
        support: inputs and targets `[tasks, n, ...]`.
        query: like `support`.
        loss: function of outputs and targets.
        lr: learning rate of the inner SGD steps.
        steps: number of inner SGD steps.
    """

    network: nn.Module
    support: Pair
    query: Pair
    loss: Callable[[Tensor, Tensor], Tensor]
    lr: float
    steps: int

    def loss_of(self, learner: nn.Module, data: Pair) -> Tensor:
        """Return the loss of a network on the data of one task."""
        inputs, targets = data
        return self.loss(learner(inputs), targets)

    def meta_step(self, adapted: Sequence[nn.Module]) -> None:
        """Accumulate the gradients of the query loss, summed over the adapted networks, in the network."""
        self.network.zero_grad(set_to_none=True)
        queries = zip(*self.query, strict=True)
        losses = [self.loss_of(clone, data) for clone, data in zip(adapted, queries, strict=True)]
        torch.stack(losses).sum().backward()

    def meta_gradient(self) -> Tensor:
        """Return the network's gradients as one vector."""
        return torch.cat([p.grad.reshape(-1) for p in self.network.parameters() if p.grad is not None])


def _plain_loop(problem: Problem) -> None:
    def adapted(support: Pair) -> nn.Module:
        clone = _plain_clone(problem.network)
        for _ in range(problem.steps):
            loss = problem.loss_of(clone, support)
            grads = torch.autograd.grad(loss, list(clone.parameters()), create_graph=True)
            _plain_update(clone, iter([-problem.lr * g for g in grads]))
        return clone

    problem.meta_step([adapted(support) for support in zip(*problem.support, strict=True)])


def _plain_clone(module: nn.Module) -> nn.Module:
    clone = copy.copy(module)
    clone._parameters = {name: None if p is None else p.clone() for name, p in module._parameters.items()}  # type: ignore[misc]
    clone._modules = {name: None if m is None else _plain_clone(m) for name, m in module._modules.items()}
    return clone


def _plain_update(module: nn.Module, updates: Iterator[Tensor]) -> None:
    for name, p in module._parameters.items():
        if p is not None:
            module._parameters[name] = p + next(updates)  # type: ignore[assignment]
    for child in module.children():
        _plain_update(child, updates)


def _clone_loop(problem: Problem) -> None:
    maml = l2l.algorithms.MAML(problem.network, lr=problem.lr)

    def adapted(support: Pair) -> nn.Module:
        clone = maml.clone()
        for _ in range(problem.steps):
            clone.adapt(problem.loss_of(clone, support))
        return clone

    problem.meta_step([adapted(support) for support in zip(*problem.support, strict=True)])


def _adapt_batch(problem: Problem) -> None:
    maml = l2l.algorithms.MAML(problem.network, lr=problem.lr)
    problem.meta_step(maml.adapt_batch(problem.loss_of, problem.support, problem.steps))


def _prepared(draw: Callable[[], Problem]) -> dict[str, Prepared[Tensor]]:
    def contender(meta_step: Callable[[Problem], None]) -> Prepared[Tensor]:
        problem = draw()
        return Prepared(lambda: meta_step(problem), lambda _: problem.meta_gradient())

    loops = {"plain loop": _plain_loop, "clone loop": _clone_loop, "adapt_batch": _adapt_batch}
    return {name: contender(meta_step) for name, meta_step in loops.items()}


def _conv4(quick: bool) -> dict[str, Prepared[Tensor]]:
    def draw() -> Problem:
        episodes = Episodes.draw(quick)
        tasks = len(episodes.support)
        support, query = (
            (images, labels.expand(tasks, -1))
            for images, labels in (
                (episodes.support, episodes.support_labels),
                (episodes.query, episodes.query_labels),
            )
        )
        return Problem(episodes.network, support, query, cross_entropy, episodes.lr, episodes.steps)

    return _prepared(draw)


def _sinusoid(quick: bool) -> dict[str, Prepared[Tensor]]:
    """Set up the sinusoid regression of Finn et al. 2017: 25 tasks of 10 points; here 5 inner steps."""

    def draw() -> Problem:
        torch.manual_seed(0)
        tasks = 2 if quick else 25
        network = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
        amplitude, phase = 0.1 + 4.9 * torch.rand(tasks, 1, 1), torch.pi * torch.rand(tasks, 1, 1)
        support, query = (
            (x, amplitude * torch.sin(x - phase)) for x in (10 * torch.rand(2, tasks, 10, 1) - 5).unbind(0)
        )
        return Problem(network, support, query, mse_loss, lr=0.01, steps=5)

    return _prepared(draw)


# Conv4 has kinks (ReLU, max pooling): the float32 plain loop itself is 1e-3 or more away from its float64 result.
CASES = (DropInCase("learn2learn-conv4", _conv4, allowed=1e-2), DropInCase("learn2learn-sinusoid", _sinusoid))
