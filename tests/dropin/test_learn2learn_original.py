"""The stand-in for learn2learn against learn2learn itself."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import metagan_fast.dropin.learn2learn as ours
from learn2learn_cases import LR, NETWORKS, images, loss_of, meta_gradient
from metagan_fast._utils import log
from originals import coverage, public_names
from support import ROOT, assert_close, join

theirs: Any = pytest.importorskip("learn2learn", reason="the original, learn2learn, is not installed: build it")
pytestmark = pytest.mark.usefixtures("float64_default")

MODULES = ("algorithms", "optim", "optim.transforms", "optim.update_rules", "nn", "utils")
LEARNERS: dict[str, Callable[[Any, nn.Module], Any]] = {
    "maml": lambda l2l, module: l2l.algorithms.MAML(module, lr=LR),
    "maml first order": lambda l2l, module: l2l.algorithms.MAML(module, lr=LR, first_order=True),
    "meta-sgd": lambda l2l, module: l2l.algorithms.MetaSGD(module, lr=LR),
    "scale": lambda l2l, module: l2l.algorithms.GBML(module, lambda p: l2l.nn.Scale(alpha=0.5), lr=LR),
    "linear": lambda l2l, module: l2l.algorithms.GBML(
        module, l2l.optim.ModuleTransform(nn.Linear), lr=LR, adapt_transform=True
    ),
    "meta-curvature": lambda l2l, module: l2l.algorithms.GBML(module, l2l.optim.MetaCurvatureTransform, lr=LR),
    "kronecker": lambda l2l, module: l2l.algorithms.GBML(
        module, l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear), lr=LR, adapt_transform=True
    ),
}


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("network", ["mlp", "convolutional", "lstm"])
def test_learners_equal_the_originals(learner: str, network: str) -> None:
    """Adapted parameters agree, and the query loss's gradients by every learned tensor."""
    support, query = images(5), images(6)
    results = []
    for library in (theirs, ours):
        torch.manual_seed(4)
        made = LEARNERS[learner](library, NETWORKS[network]())
        clone = made.clone()
        for _ in range(3):
            clone.adapt(loss_of(clone, support))
        wanted = dict(made.named_parameters())
        results.append((join(dict(clone.module.named_parameters())), meta_gradient(loss_of(clone, query), wanted)))
    for actual, expected in zip(*reversed(results), strict=True):
        assert expected.norm() > 0
        assert_close(actual, expected, "float64-rounding")


@pytest.mark.parametrize("psd", [False, True])
@pytest.mark.parametrize("sizes", [(6,), (2, 3), (4, 2, 3)])
def test_kronecker_maps_equal_the_originals(sizes: tuple[int, ...], psd: bool) -> None:
    x, results = torch.randn(sizes), []
    for library in (theirs, ours):
        torch.manual_seed(5)
        layer = library.nn.KroneckerLinear(2, 3, psd=psd)
        with torch.no_grad():
            for p in layer.parameters():
                p.copy_(torch.randn_like(p))
        results.append(layer(x))
    assert_close(*results, "float64-rounding")


def test_learnable_optimizer_equals_the_originals() -> None:
    data, results = images(5), []
    for library in (theirs, ours):
        torch.manual_seed(6)
        module = nn.Linear(4, 3)
        optimizer = library.optim.LearnableOptimizer(module, library.optim.ModuleTransform(nn.Linear), lr=LR)
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(module, data).backward()
            optimizer.step()
        loss_of(module, data).backward()
        found = [*module.parameters(), *(p.grad for p in optimizer.parameters())]
        results.append(torch.cat([x.detach().reshape(-1) for x in found]))
    assert_close(*results, "float64-rounding")


def modules() -> list[tuple[Any, Any]]:
    pairs = [(ours, theirs)]
    for path in MODULES:
        pair = (ours, theirs)
        for name in path.split("."):
            pair = (getattr(pair[0], name), getattr(pair[1], name))
        pairs.append(pair)
    return pairs


def test_signatures_are_the_originals() -> None:
    """Arguments have the original's names, kinds, order and defaults; where it takes any keywords, more may follow."""

    def arguments(function: Any) -> list[tuple[str, Any, Any]]:
        of = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in of if p.kind is not p.VAR_KEYWORD]

    compared = set()
    for stand_in, original in modules():
        for name in set(public_names(original)).intersection(vars(stand_in)):
            if callable(theirs_of := getattr(original, name)):
                expected = arguments(theirs_of)
                assert arguments(getattr(stand_in, name))[: len(expected)] == expected, name
                compared.add(name)
    assert {"MAML", "KroneckerTransform", "update_module"} < compared


def test_names_that_are_not_covered(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(log, "_said", set())
    with caplog.at_level(logging.WARNING):
        assert ours.vision is theirs.vision
        assert ours.nn.kroneckers.KroneckerLSTM is ours.nn.KroneckerLSTM is theirs.nn.KroneckerLSTM
        assert ours.utils.clone_distribution is theirs.clone_distribution
    assert len(caplog.records) == 4


def test_the_migration_page_counts_what_is_covered() -> None:
    page = ROOT.joinpath("docs", "migrate", "learn2learn.md").read_text()
    rows = [coverage(*pair) for pair in modules()]
    assert [row for row in rows if row not in page] == []
    assert ours.__version__ == theirs.__version__
