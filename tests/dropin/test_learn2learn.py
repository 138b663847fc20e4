"""The learners of the stand-in for learn2learn against unrolls written by hand: autograd in float64."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from metagan_fast.benchmarks.dropin_cases import DropInCase
from metagan_fast.benchmarks.dropin_cases import learn2learn as cases
from torch import nn
from torch.func import functional_call

import metagan_fast.dropin.learn2learn as l2l
from learn2learn_cases import LR, NETWORKS, every_network, images, loss_of, meta_gradient, mlp, unrolled
from support import ROOT, assert_close, join

pytestmark = pytest.mark.usefixtures("float64_default")


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


def test_the_migration_page() -> None:
    page = ROOT.joinpath("docs", "migrate", "learn2learn.md").read_text()
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
    records = list(case.measure(thread_counts=[1], quick=True))
    assert [record.contender for record in records] == ["plain loop", "clone loop", "adapt_batch"]


def test_names() -> None:
    assert l2l.algorithms.MAML is l2l.MAML
    assert l2l.algorithms.maml.maml_update is l2l.maml_update
    assert l2l.optim.transforms.ModuleTransform is l2l.optim.ModuleTransform
    assert l2l.optim.transforms.module_transform.ModuleTransform is l2l.optim.ModuleTransform
    assert l2l.optim.update_rules.differentiable_sgd.DifferentiableSGD is l2l.optim.DifferentiableSGD
    assert l2l.nn.misc.Scale is l2l.nn.Scale
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
