"""The stand-in for learn2learn against unrolls written by hand: `functional_call` and autograd in float64."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from metagan_fast.benchmarks import dropins
from metagan_fast.benchmarks.dropin_cases import DropInCase
from metagan_fast.benchmarks.dropin_cases import learn2learn as cases
from torch import Tensor, nn
from torch.func import functional_call

import metagan_fast.dropin.learn2learn as l2l
from metagan_fast.dropin.learn2learn.algorithms import base_learner
from support import assert_close, join

LR = 0.1


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def fallbacks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect what adapt_batch says when it falls back to the loop; a test that expects it takes it out."""
    said: list[str] = []
    monkeypatch.setattr(base_learner, "log_once", lambda logger, level, message: said.append(message))
    yield said
    assert not said


class Tied(nn.Module):
    """A weight that two submodules share."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 4)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.encode(x)))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x.unsqueeze(1).expand(-1, 3, -1))[0][:, -1]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 3)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "convolutional": convolutional,
    "tied": Tied,
    "rnn": lambda: Recurrent(nn.RNN),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
}
every_network = pytest.mark.parametrize("network", NETWORKS)


def images(*sizes: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*sizes, 4), torch.randn(*sizes, 1)


def loss_of(learner: Callable[[Tensor], Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
    inputs, targets = data
    return (learner(inputs) - targets).pow(2).mean()


def unrolled(
    module: nn.Module,
    data: tuple[Tensor, Tensor],
    steps: int,
    *,
    rates: Mapping[str, Any] | None = None,
    first_order: bool = False,
) -> dict[str, Tensor]:
    """Return the parameters after gradient descent, as functions of the module's own."""
    params = dict(module.named_parameters())
    rates = rates or dict.fromkeys(params, LR)
    for _ in range(steps):
        loss = loss_of(lambda x, params=params: functional_call(module, params, (x,)), data)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=not first_order)
        params = {name: p - rates[name] * g for (name, p), g in zip(params.items(), grads, strict=True)}
    return params


def meta_gradient(loss: Tensor, wanted: Mapping[str, Tensor]) -> Tensor:
    grads = torch.autograd.grad(loss, list(wanted.values()))
    return join(dict(zip(wanted, grads, strict=True)))


@every_network
@pytest.mark.parametrize("first_order", [False, True])
def test_maml_is_the_unroll(network: str, first_order: bool) -> None:
    module = NETWORKS[network]()
    support, query = images(5), images(6)
    maml = l2l.algorithms.MAML(module, lr=LR, first_order=first_order)
    clone = maml.clone()
    for _ in range(3):
        clone.adapt(loss_of(clone, support))

    params = unrolled(module, support, 3, first_order=first_order)
    assert_close(join(dict(clone.module.named_parameters())), join(params), "float64-rounding")
    wanted = dict(module.named_parameters())
    expected = meta_gradient(loss_of(lambda x: functional_call(module, params, (x,)), query), wanted)
    assert_close(meta_gradient(loss_of(clone, query), wanted), expected, "float64-rounding")


@every_network
@pytest.mark.parametrize("first_order", [False, True])
def test_meta_sgd_is_the_unroll_with_its_rates(network: str, first_order: bool) -> None:
    module = NETWORKS[network]()
    support, query = images(5), images(6)
    learner = l2l.MetaSGD(module, lr=LR, first_order=first_order)
    assert sum(p.numel() for p in learner.parameters()) == 2 * sum(p.numel() for p in module.parameters())
    names = [name for name, _ in module.named_parameters()]
    with torch.no_grad():
        for rate in learner.lrs:
            rate.mul_(torch.rand_like(rate))
    clone = learner.clone()
    for _ in range(3):
        clone.adapt(loss_of(clone, support))

    rates = dict(zip(names, learner.lrs, strict=True))
    params = unrolled(module, support, 3, rates=rates, first_order=first_order)
    wanted = {**dict(module.named_parameters()), **{f"rate of {name}": rate for name, rate in rates.items()}}
    expected = meta_gradient(loss_of(lambda x: functional_call(module, params, (x,)), query), wanted)
    assert_close(meta_gradient(loss_of(clone, query), wanted), expected, "float64-rounding")


def test_maml_has_the_closed_form_of_a_quadratic() -> None:
    module = nn.Linear(1, 1, bias=False)
    maml = l2l.MAML(module, lr=LR)
    clone = maml.clone()
    for _ in range(3):
        clone.adapt(clone.weight.pow(2).sum())  # w <- (1 - 2 lr) w; attributes of the module are the learner's
    clone.weight.pow(2).sum().backward()
    factor = (1 - 2 * LR) ** 3
    assert_close(clone.weight, factor * module.weight, "float64-rounding")
    assert_close(module.weight.grad, 2 * factor**2 * module.weight, "float64-rounding")

    learned = l2l.MAML(module, lr=nn.Parameter(torch.tensor(LR)))
    clone = learned.clone()
    clone.adapt(clone.weight.pow(2).sum())
    (d_lr,) = torch.autograd.grad(clone.weight.sum(), learned.lr)
    assert_close(d_lr, -2 * module.weight.sum(), "float64-rounding")


def test_arguments_of_adapt_and_clone_overrule_the_learner() -> None:
    module, data = mlp(), images(5)
    maml = l2l.MAML(module, lr=LR)
    for clone, arguments in ((maml.clone(first_order=True), {}), (maml.clone(), {"first_order": True})):
        clone.adapt(loss_of(clone, data), **arguments)
        wanted = dict(module.named_parameters())
        params = unrolled(module, data, 1, first_order=True)
        expected = meta_gradient(loss_of(lambda x, p=params: functional_call(module, p, (x,)), data), wanted)
        assert_close(meta_gradient(loss_of(clone, data), wanted), expected, "float64-rounding")
    clone = maml.clone(allow_nograd=True, allow_unused=True).clone()
    assert (clone.first_order, clone.allow_nograd, clone.allow_unused) == (False, True, True)
    assert l2l.MAML(module, lr=LR, allow_nograd=True).allow_unused


def test_a_head_adapts_on_features_that_do_not() -> None:
    features, head = nn.Linear(4, 4), nn.Linear(4, 3)
    support, query = images(5), images(6)
    clone = l2l.MAML(head, lr=LR).clone()
    for _ in range(2):
        clone.adapt(loss_of(clone, (features(support[0]), support[1])))
    loss = loss_of(clone, (features(query[0]), query[1]))
    wanted = {f"features.{name}": p for name, p in features.named_parameters()}

    params = unrolled(head, (features(support[0]), support[1]), 2)
    expected = loss_of(lambda x: functional_call(head, params, (features(x),)), query)
    assert_close(meta_gradient(loss, wanted), meta_gradient(expected, wanted), "float64-rounding")


def test_parameters_outside_of_the_loss() -> None:
    module = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    maml = l2l.MAML(module, lr=LR)
    clone = maml.clone()
    loss = clone.module[0].weight.pow(2).sum()
    with pytest.raises(RuntimeError, match=r"does not on 0\.bias, 1\.weight, 1\.bias; pass allow_unused=True"):
        clone.adapt(loss)
    clone = maml.clone()
    clone.adapt(clone.module[0].weight.pow(2).sum(), allow_unused=True)
    assert_close(clone.module[0].weight, (1 - 2 * LR) * module[0].weight, "float64-rounding")
    assert torch.equal(clone.module[1].weight, module[1].weight)


def test_frozen_parameters() -> None:
    module, data = mlp(), images(5)
    module[0].weight.requires_grad_(False)
    clone = l2l.MAML(module, lr=LR).clone()
    with pytest.raises(RuntimeError, match=r"requires_grad=False for 0\.weight; pass allow_nograd=True"):
        clone.adapt(loss_of(clone, data))
    clone.adapt(loss_of(clone, data), allow_nograd=True)
    assert torch.equal(clone.module[0].weight, module[0].weight)
    assert not torch.equal(clone.module[0].bias, module[0].bias)


def test_losses_without_a_graph_or_of_another_module() -> None:
    data = images(5)
    for learner in (l2l.MAML(mlp(), lr=LR), l2l.MetaSGD(mlp()), l2l.GBML(mlp(), lambda _: None)):
        clone = learner.clone()
        with pytest.raises(RuntimeError, match="got one without a graph"):
            clone.adapt(loss_of(clone, data).detach())
        loss = loss_of(clone, data)
        clone.module[2] = nn.Linear(5, 3)
        with pytest.raises(RuntimeError, match="any change to its module"):
            clone.adapt(loss)


def test_a_clone_is_a_copy() -> None:
    module = Tied()
    module.again = module.decode  # a submodule in two places
    module.register_buffer("running", torch.ones(2))
    module.register_buffer("learned", torch.ones(2).requires_grad_())
    clone = l2l.clone_module(module)
    assert type(clone) is Tied
    assert list(clone.state_dict()) == list(module.state_dict())
    assert clone.encode.weight is clone.decode.weight
    assert clone.decode is clone.again
    assert clone.running is module.running
    assert clone.learned is not module.learned
    for name, p in clone.named_parameters():
        assert p.grad_fn is not None
        assert p.data_ptr() != module.get_parameter(name).data_ptr()
    before = copy.deepcopy(module.state_dict())
    l2l.update_module(clone, [torch.ones_like(p) for p in clone.parameters()])
    assert clone.encode.weight is clone.decode.weight
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    assert l2l.clone_module(None) is None


def test_a_memo_ties_modules_that_share_parameters() -> None:
    first, second, memo = nn.Linear(2, 2), nn.Linear(2, 2), {}
    second.weight = first.weight
    clones = [l2l.clone_module(x, memo) for x in (first, second)]
    assert clones[0].weight is clones[1].weight
    assert clones[0].bias is not clones[1].bias


def test_a_clone_shares_the_running_statistics() -> None:
    module = nn.BatchNorm1d(4)
    l2l.MAML(module, lr=LR).clone()(images(8)[0])
    assert module.num_batches_tracked == 1
    assert not torch.equal(module.running_mean, torch.zeros(4))


def test_updates_are_added_with_their_graph() -> None:
    module = mlp()
    clone = l2l.clone_module(module)
    scale = torch.tensor(2.0, requires_grad=True)
    updates = [None, *(scale * torch.randn_like(p) for p in list(clone.parameters())[1:])]
    assert l2l.update_module(clone, updates) is clone
    for p, q, update in zip(module.parameters(), clone.parameters(), updates, strict=True):
        assert torch.equal(q, p if update is None else p + update)
    (d_scale,) = torch.autograd.grad(sum(q.sum() for q in clone.parameters()), scale)
    assert_close(d_scale, sum(u.sum() for u in updates[1:]).detach() / 2, "float64-rounding")


def test_updates_may_be_attributes() -> None:
    module = l2l.clone_module(nn.BatchNorm1d(3))
    weight, mean = module.weight, module.running_mean
    weight.update, mean.update = torch.ones(3), torch.full((3,), 2.0)
    l2l.maml_update(module, lr=LR)
    assert torch.equal(module.weight, weight + 1)
    assert torch.equal(module.running_mean, mean + 2)
    assert weight.update is None
    l2l.update_module(module)
    assert torch.equal(module.weight, weight + 1)


def test_a_wrong_number_of_updates_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    module = l2l.clone_module(nn.Linear(2, 2))
    weight = module.weight
    l2l.update_module(module, [torch.ones(2, 2)])
    assert torch.equal(module.weight, weight + 1)
    assert "expected one update a parameter, 2, got 1" in caplog.text


def test_meta_sgd_update_reads_attributes() -> None:
    module = nn.Linear(2, 1)
    module(torch.ones(1, 2)).sum().backward()
    weight, bias = module.weight, module.bias
    weight._lr, bias._lr = torch.full((1, 2), 2.0), torch.full((1,), 3.0)
    module = l2l.meta_sgd_update(l2l.utils.copy_structure(module))
    assert torch.equal(module.weight, weight - 2)
    assert torch.equal(module.bias, bias - 3)
    assert weight.grad is None


@pytest.mark.parametrize("keep", [False, True])
def test_detaching(keep: bool) -> None:
    module, data = mlp(), images(2, 5)
    clones = [l2l.clone_module(module), *(c.module for c in l2l.MAML(module, lr=LR).adapt_batch(loss_of, data))]
    for clone in clones:
        before = join(dict(clone.named_parameters())).detach()
        l2l.detach_module(clone, keep_requires_grad=keep)
        assert torch.equal(join(dict(clone.named_parameters())), before)
        assert all(p.is_leaf and p.requires_grad is keep for p in clone.parameters())
    l2l.detach_module(None)


def test_magic_box() -> None:
    x = torch.randn(3, requires_grad=True)
    assert torch.equal(l2l.magic_box(x), torch.ones(3))
    (first,) = torch.autograd.grad((l2l.magic_box(x.sin())).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert_close(first, x.cos(), "float64-rounding")
    assert_close(second, x.cos() ** 2 - x.sin(), "float64-rounding")
    assert l2l.magic_box(2.5) == 2.5


def test_accuracy() -> None:
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 1.0], [0.0, 1.0]])
    assert l2l.utils.accuracy(scores, torch.tensor([1, 0, 0, 1])) == 0.75


def looped(learner: Any, data: Any, steps: int, loss_fn: Callable[..., Tensor] = loss_of, **options: Any) -> list[Any]:
    clones = []
    for task in range(len(data[0])):
        clone = learner.clone(**options)
        for _ in range(steps):
            clone.adapt(loss_fn(clone, tuple(x[task] for x in data)))
        clones.append(clone)
    return clones


def assert_same_clones(actual: list[Any], expected: list[Any], learner: Any, query: Any) -> None:
    """Assert equal parameters, outputs and derivatives by all that the learner learns, on each task's query set."""
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
    module.forward = lambda x: module["used"](x)
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
    learner.eval()  # now the running statistics, which the loop has moved, are read
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
    assert torch.equal(2 * totals[0], totals[1])  # a module that writes its buffers has done so in the loop only
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


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("adapt_transform", [False, True])
def test_gbml_with_a_scale_is_the_unroll(adapt_transform: bool, first_order: bool) -> None:
    module = nn.Linear(4, 3)
    support, query = images(5), images(6)
    learner = l2l.algorithms.GBML(
        module,
        lambda p: l2l.nn.Scale(tuple(p.shape), alpha=0.5) if p.ndim == 2 else None,
        lr=LR,
        adapt_transform=adapt_transform,
        first_order=first_order,
    )
    (scale,) = learner.compute_update.parameters()
    clone = learner.clone()
    for _ in range(3):
        clone.adapt(loss_of(clone, support))

    weight, bias, alpha = module.weight, module.bias, scale
    for step in range(3):
        loss = (F.linear(support[0], weight, bias) - support[1]).pow(2).mean()
        graph = not first_order
        if adapt_transform and step:
            (d_alpha,) = torch.autograd.grad(loss, alpha, create_graph=graph, retain_graph=True)
            alpha = alpha - LR * d_alpha
        d_weight, d_bias = torch.autograd.grad(loss, (weight, bias), create_graph=graph or adapt_transform)
        weight, bias = weight - LR * alpha * d_weight, bias - LR * d_bias
    expected = (F.linear(query[0], weight, bias) - query[1]).pow(2).mean()
    wanted = dict(learner.named_parameters())
    assert_close(meta_gradient(loss_of(clone, query), wanted), meta_gradient(expected, wanted), "float64-rounding")


def test_gbml_leaves_unused_and_frozen_parameters() -> None:
    module = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    module[0].bias.requires_grad_(False)
    clone = l2l.GBML(module, l2l.optim.ModuleTransform(nn.Linear), lr=LR, allow_unused=True, allow_nograd=True).clone()
    clone.adapt(clone.module[0].weight.square().sum())
    assert not torch.equal(clone.module[0].weight, module[0].weight)
    assert all(torch.equal(x, y) for x, y in zip(clone.module[1].parameters(), module[1].parameters(), strict=True))


def test_transforms() -> None:
    vector, matrix, kernel = torch.randn(3), torch.randn(3, 4), torch.randn(3, 4, 2, 5)
    gradient = torch.randn(3, 4, 2, 5)
    for x in (vector, matrix, kernel):  # identity at first
        assert torch.equal(l2l.optim.MetaCurvatureTransform(x, lr=2.0)(x), 2 * x)
    transform = l2l.optim.MetaCurvatureTransform(kernel)
    with torch.no_grad():
        for p in transform.parameters():
            p.copy_(torch.randn_like(p))
    rows = torch.kron(torch.kron(transform.mc_in, transform.mc_out.T.contiguous()), transform.mc_f)
    assert_close(transform(gradient).flatten(), rows @ gradient.flatten(), "float64-rounding")
    matrices = l2l.optim.MetaCurvatureTransform(matrix)
    with torch.no_grad():
        for p in matrices.parameters():
            p.copy_(torch.randn_like(p))
    assert_close(matrices(matrix), matrices.mc_in @ matrix @ matrices.mc_out, "float64-rounding")
    with pytest.raises(NotImplementedError, match=r"1, 2 or 4 dimensions, got shape \[2, 2, 2\]"):
        l2l.optim.MetaCurvatureTransform(torch.zeros(2, 2, 2))

    linear = nn.Linear(2, 2)
    choice = l2l.optim.TransformDictionary({linear: l2l.optim.ModuleTransform(nn.Linear)})
    assert choice(nn.Parameter(torch.zeros(1))) is None
    made = choice(linear.weight)
    assert_close(made(linear.weight), made.transform(linear.weight.flatten()).view(2, 2), "float64-rounding")
    with pytest.raises(ValueError, match="expected modules or parameters as keys, got str"):
        l2l.optim.TransformDictionary({"linear": lambda p: None})
    with pytest.raises(ValueError, match="to be a module or None, got int"):
        l2l.ParameterUpdate(linear.parameters(), lambda p: 1)


def test_learnable_optimizer_has_hypergradients() -> None:
    """One step by a learned rate: the loss after it has the derivative -lr <gradient after, gradient before>."""
    module, data = nn.Linear(4, 3), images(5)
    optimizer = l2l.optim.LearnableOptimizer(module, lambda p: l2l.nn.Scale(alpha=2.0), lr=LR)
    loss_of(module, data).backward()
    before = [p.grad.clone() for p in module.parameters()]
    start = [p.detach().clone() for p in module.parameters()]
    optimizer.step()
    for p, q, g in zip(module.parameters(), start, before, strict=True):
        assert_close(p, q - 2 * LR * g, "float64-rounding")
    optimizer.zero_grad()
    loss_of(module, data).backward()
    for scale, p, g in zip(optimizer.parameters(), module.parameters(), before, strict=True):
        assert_close(scale.grad, -LR * (p.grad * g).sum().reshape(1), "float64-rounding")


def test_small_modules() -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(l2l.nn.Flatten()(x), x.view(2, 12))
    assert torch.equal(l2l.nn.Lambda(lambda x: x + 1)(x), x + 1)
    assert torch.equal(l2l.nn.Scale(4, alpha=3.0)(x), 3 * x)
    module = l2l.nn.freeze(mlp())
    assert not any(p.requires_grad for p in module.parameters())
    assert all(p.requires_grad for p in l2l.nn.unfreeze(module).parameters())


def test_the_migration_page() -> None:
    page = Path(__file__).parents[1].joinpath("docs", "migrate", "learn2learn.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "adapt_batch" in block]
    before, after = code.split("# after\n")
    run: dict[str, Any] = {}
    exec(before, run)
    expected = run["loss"]
    exec(after, run)
    assert_close(run["loss"], expected, "float64-rounding")


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_benchmark_cases(case: DropInCase) -> None:
    torch.set_default_dtype(torch.float32)
    records = list(dropins.run(case, thread_counts=[1], quick=True))
    assert [record.contender for record in records] == ["plain loop", "clone loop", "adapt_batch"]


def test_names() -> None:
    assert l2l.algorithms.MAML is l2l.MAML
    assert l2l.algorithms.maml.maml_update is l2l.maml_update
    assert l2l.optim.transforms.ModuleTransform is l2l.optim.ModuleTransform
    with pytest.raises(AttributeError, match="no 'vision'"):
        _ = l2l.vision
    with pytest.raises(AttributeError, match="nothing"):
        _ = l2l.MAML(mlp(), lr=LR).nothing


def test_a_learner_can_be_copied_and_saved() -> None:
    learner, data = l2l.MetaSGD(mlp(), lr=LR), images(5)
    twin = l2l.MetaSGD(mlp(), lr=1.0)
    twin.load_state_dict(learner.state_dict())
    for other in (copy.deepcopy(learner), twin):
        clones = [other.clone(), learner.clone()]
        for clone in clones:
            clone.adapt(loss_of(clone, data))
        assert torch.equal(clones[0](data[0]), clones[1](data[0]))
