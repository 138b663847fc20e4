"""`adapt_batch` of the stand-in for learn2learn against the loop over tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

import metagan_fast.dropin.learn2learn as l2l
from learn2learn_cases import LR, NETWORKS, convolutional, images, loss_of, meta_gradient, mlp, unrolled
from metagan_fast.dropin.learn2learn.algorithms import base_learner
from support import assert_close, join

pytestmark = pytest.mark.usefixtures("float64_default")


@pytest.fixture(autouse=True)
def fallbacks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect the warnings of `adapt_batch` about falling back to the loop; expected ones are removed by the test."""
    said: list[str] = []
    monkeypatch.setattr(base_learner, "log_once", lambda logger, level, message: said.append(message))
    yield said
    assert not said


def looped(learner: Any, data: Any, steps: int, loss_fn: Callable[..., Tensor] = loss_of, **options: Any) -> list[Any]:
    clones = []
    for task in range(len(data[0])):
        clone = learner.clone(**options)
        for _ in range(steps):
            clone.adapt(loss_fn(clone, tuple(x[task] for x in data)))
        clones.append(clone)
    return clones


def assert_same_clones(actual: list[Any], expected: list[Any], learner: Any, query: Any) -> None:
    """Assert equal parameters, outputs and derivatives by every learned tensor, on each task's query set."""
    assert len(actual) == len(expected)
    wanted = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    gradients = []
    for clones in (actual, expected):
        losses = [loss_of(clone, tuple(x[task] for x in query)) for task, clone in enumerate(clones)]
        grads = torch.autograd.grad(torch.stack(losses).square().sum(), list(wanted.values()), materialize_grads=True)
        gradients.append(join(dict(zip(wanted, grads, strict=True))))
    assert_close(gradients[0], gradients[1], "float64-rounding")
    for one, other in zip(actual, expected, strict=True):
        assert type(one) is type(other)
        assert_close(
            join(dict(one.module.named_parameters())), join(dict(other.module.named_parameters())), "float64-rounding"
        )


@given(
    tasks=st.integers(1, 4),
    shots=st.integers(1, 5),
    steps=st.integers(0, 3),
    kind=st.sampled_from([l2l.MAML, l2l.MetaSGD]),
    first_order=st.booleans(),
    network=st.sampled_from(["mlp", "convolutional", "tied"]),
)
@settings(max_examples=20)
def test_adapt_batch_is_the_loop(
    tasks: int, shots: int, steps: int, kind: Any, first_order: bool, network: str
) -> None:
    torch.set_default_dtype(torch.float64)
    learner = kind(NETWORKS[network](), lr=LR, first_order=first_order)
    support, query = images(tasks, shots), images(tasks, 3)
    actual = learner.adapt_batch(loss_of, support, steps)
    assert_same_clones(actual, looped(learner, support, steps), learner, query)


@pytest.mark.parametrize("network", ["rnn", "lstm", "gru"])
def test_adapt_batch_of_recurrent_networks_is_the_loop(network: str, fallbacks: list[str]) -> None:
    learner = l2l.MAML(NETWORKS[network](), lr=LR)
    support, query = images(2, 5), images(2, 3)
    assert_same_clones(learner.adapt_batch(loss_of, support, 2), looped(learner, support, 2), learner, query)
    fallbacks.clear()  # vmap knows no recurrent layers


@pytest.mark.parametrize("network", ["mlp", "convolutional"])
def test_adapt_batch_on_layers_of_its_own(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAGAN_FAST_TASK_LAYERS", "on")
    learner = l2l.MetaSGD(NETWORKS[network](), lr=LR)
    support, query = images(3, 5), images(3, 3)
    assert_same_clones(learner.adapt_batch(loss_of, support, 2), looped(learner, support, 2), learner, query)


def test_adapt_batch_runs_all_tasks_at_once() -> None:
    calls = []

    def loss_fn(learner: Any, data: dict[str, Any]) -> Tensor:
        calls.append(data["shots"])
        penalty = sum(p.square().sum() for p in learner.parameters())
        return loss_of(learner, data["images"]) + data["weight"] * penalty + learner.module[0].bias.sum()

    learner = l2l.MAML(mlp(), lr=LR)
    support, query = images(3, 5), images(3, 5)
    weights = torch.tensor([0.0, 0.1, 0.2])
    actual = learner.adapt_batch(loss_fn, {"images": support, "weight": weights, "shots": 5}, 2)
    assert calls == [5, 5]
    flat = lambda clone, data: loss_fn(clone, {"images": data[:2], "weight": data[2], "shots": 5})  # noqa: E731
    assert_same_clones(actual, looped(learner, (*support, weights), 2, flat), learner, query)


def test_adapt_batch_by_hand() -> None:
    module = mlp()
    support, query = images(3, 5), images(3, 5)
    clones = l2l.MAML(module, lr=LR).adapt_batch(loss_of, support, 2)
    wanted = dict(module.named_parameters())
    expected = torch.zeros(())
    for task in range(3):
        params = unrolled(module, (support[0][task], support[1][task]), 2)
        expected = expected + loss_of(
            lambda x, params=params: functional_call(module, params, (x,)), (query[0][task], query[1][task])
        )
    actual = sum(loss_of(clone, (query[0][i], query[1][i])) for i, clone in enumerate(clones))
    assert_close(meta_gradient(actual, wanted), meta_gradient(expected, wanted), "float64-rounding")


def test_adapt_batch_takes_features_with_a_graph() -> None:
    features, head = nn.Linear(4, 4), nn.Linear(4, 3)
    support = images(2, 5)
    learner = l2l.MAML(head, lr=LR)
    loss_fn = lambda clone, data: loss_of(clone, (features(data[0]), data[1]))  # noqa: E731
    wanted = dict(features.named_parameters())
    results = [
        meta_gradient(sum(c.weight.square().sum() for c in clones), wanted)
        for clones in (learner.adapt_batch(loss_fn, support, 2), looped(learner, support, 2, loss_fn))
    ]
    assert_close(*results, "float64-rounding")


def test_adapt_batch_leaves_frozen_and_unused_parameters() -> None:
    module = nn.ModuleDict({"used": mlp(), "unused": nn.Linear(2, 2)})
    module["used"][0].weight.requires_grad_(False)
    learner = l2l.MAML(module, lr=LR)
    loss_fn = lambda clone, data: loss_of(clone.module["used"], data)  # noqa: E731
    support = images(2, 5)
    with pytest.raises(RuntimeError, match=r"requires_grad=False for used\.0\.weight"):
        learner.adapt_batch(loss_fn, support)
    with pytest.raises(RuntimeError, match=r"does not on unused\.weight, unused\.bias"):
        learner.adapt_batch(loss_fn, support, allow_nograd=True, allow_unused=False)
    options = {"allow_nograd": True, "allow_unused": True}
    actual = learner.adapt_batch(loss_fn, support, 2, **options)
    expected = looped(learner, support, 2, loss_fn, **options)
    for one, other in zip(actual, expected, strict=True):
        assert_close(
            join(dict(one.module.named_parameters())), join(dict(other.module.named_parameters())), "float64-rounding"
        )


def test_adapt_batch_and_batch_norm() -> None:
    learner = l2l.MAML(convolutional(), lr=LR)
    norm, support, query = learner.module[2], images(2, 5), images(2, 4)
    clones = learner.adapt_batch(loss_of, support, 2)
    assert norm.num_batches_tracked == 0
    assert clones[0].module[2].running_mean is norm.running_mean
    for clone in looped(learner, support, 2):
        clone(query[0][0])
    learner.eval()  # evaluation mode reads the running statistics, which the loop has moved
    assert not torch.equal(norm.running_mean, torch.zeros(3))
    assert_same_clones(learner.adapt_batch(loss_of, support, 2), looped(learner, support, 2), learner, query)


class Branching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Counting(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.total += x.sum().detach()
        return super().forward(x)


@pytest.mark.parametrize("layer", [Branching, Counting, nn.Dropout])
def test_adapt_batch_loops_where_vmap_cannot(layer: type[nn.Module], fallbacks: list[str]) -> None:
    module = nn.Sequential(nn.Dropout(0.5) if layer is nn.Dropout else layer(4, 4), nn.Linear(4, 3))
    learner = l2l.MAML(module, lr=LR)
    support = images(2, 5)
    results, totals = [], []
    for adapt in (lambda: learner.adapt_batch(loss_of, support, 2), lambda: looped(learner, support, 2)):
        torch.manual_seed(3)
        results.append(torch.stack([join(dict(c.module.named_parameters())) for c in adapt()]))
        totals.append(dict(module.named_buffers()).get("0.total", torch.zeros(())).clone())
    assert torch.equal(*results)
    assert torch.equal(2 * totals[0], totals[1])  # buffers are written by the loop only
    assert "adapt_batch ran task by task, since vmap cannot carry it" in fallbacks.pop()


def test_adapt_batch_says_what_is_wrong() -> None:
    learner = l2l.MAML(mlp(), lr=LR)
    x, y = images(3, 5)
    with pytest.raises(ValueError, match=r"one number of tasks, at least 1, got shapes \[\[3, 5, 4\], \[2, 5, 1\]\]"):
        learner.adapt_batch(loss_of, (x, y[:2]))
    with pytest.raises(ValueError, match="at least 1"):
        learner.adapt_batch(loss_of, (x[:0], y[:0]))
    with pytest.raises(ValueError, match="expected steps >= 0, got -1"):
        learner.adapt_batch(loss_of, (x, y), -1)
    with pytest.raises(RuntimeError, match=r"one element a task, got shape \[5\]"):
        learner.adapt_batch(lambda clone, data: clone(data[0]).sum(1), (x, y))
    with pytest.raises(RuntimeError, match="without a graph"):
        learner.adapt_batch(lambda clone, data: clone(data[0]).sum().detach(), (x, y))
    with pytest.raises(KeyError, match="mistake"):
        learner.adapt_batch(lambda clone, data: data["mistake"], {"x": x})
