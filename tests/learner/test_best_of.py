"""The best of several samples: chosen by the discriminator's score, in order, on every executor and for every loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import metagan_fast as mgf
from metagan_fast import losses
from networks import tiny_batch, tiny_gan
from support import assert_close

COUNT, BEST_OF = 3, 5
LOSSES: dict[str, losses.Loss] = {name: losses.get(name) for name in losses.NAMES}


def make_learner(**settings: Any) -> mgf.MetaGAN:
    torch.manual_seed(1)
    settings = {"loss": "r1", "inner": mgf.InnerLoop(lr=0.05, steps=2)} | settings
    return mgf.MetaGAN(*tiny_gan(), latent_dim=6, **settings)


def expected_choice(candidates: Tensor, scores: Tensor, *, descending: bool) -> Tensor:
    """Return the chosen candidates `[n, C, H, W]` in their order, by sorting."""
    chosen = sorted(sorted(range(len(scores)), key=scores.tolist().__getitem__, reverse=descending)[:COUNT])
    return candidates[chosen]


@pytest.mark.parametrize("executor", ["native", "torch"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_images_with_the_best_scores_are_kept(loss: str, executor: str) -> None:
    learner = make_learner(loss=loss, executor=executor)
    adapted = learner.adapt(tiny_batch(query=0).support[0])
    candidates = adapted.sample(COUNT * BEST_OF, seed=4)
    with torch.no_grad():
        scores = adapted.discriminator(candidates).flatten()
    expected = expected_choice(candidates, scores, descending=loss != "figr")  # FIGR's signs are reversed
    assert torch.equal(adapted.sample(COUNT, seed=4, best_of=BEST_OF), expected)
    assert not torch.equal(adapted.sample(COUNT, seed=4), expected)


@pytest.mark.parametrize("executor", ["native", "torch"])
def test_tasks_choose_on_their_own(executor: str) -> None:
    learner = make_learner(executor=executor)
    adapted = learner.inner_loop(tiny_batch(tasks=3, query=0))
    candidates = learner.sample_tasks(adapted, COUNT * BEST_OF)
    found = learner.sample_tasks(adapted, COUNT, best_of=BEST_OF)
    discriminator = tiny_gan()[1]
    for task in range(3):
        learner.discriminator_layout.bind(discriminator, adapted.discriminator[task].clone())
        with torch.no_grad():
            scores = discriminator(candidates[task]).flatten()
        assert torch.equal(found[task], expected_choice(candidates[task], scores, descending=True))


@pytest.mark.parametrize("executor", ["native", "torch"])
@pytest.mark.parametrize("max_memory", [None, 2**40])
def test_scores_are_the_modules(executor: str, max_memory: int | None) -> None:
    learner = make_learner(executor=executor, max_memory=max_memory)
    adapted = learner.inner_loop(tiny_batch(tasks=2, query=0))
    images = learner.sample_tasks(adapted, 4)
    scores = learner._executor.score(adapted.discriminator, images)
    assert scores.shape == (2, 4)
    discriminator = tiny_gan()[1]
    for task in range(2):
        learner.discriminator_layout.bind(discriminator, adapted.discriminator[task].clone())
        assert_close(scores[task], discriminator(images[task]).flatten().detach(), "float32-rounding")


@pytest.mark.parametrize("loss", LOSSES)
def test_realness_keeps_the_order_in_which_the_generator_improves(loss: str) -> None:
    scores = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64)  # within the least-squares loss's labels
    realness = LOSSES[loss].realness(scores.expand(2, 7))
    assert realness.shape == (2, 7)
    direction = -1 if loss == "figr" else 1
    assert (direction * realness.diff(dim=-1) > 0).all()


def test_changed_networks_are_followed() -> None:
    adapted = make_learner().adapt(tiny_batch(query=0).support[0])
    candidates = adapted.sample(COUNT * BEST_OF)
    with torch.no_grad():
        scores = adapted.discriminator(candidates).flatten()
        last = [module for module in adapted.discriminator.modules() if isinstance(module, torch.nn.Linear)][-1]
        last.weight.neg_()
    assert torch.equal(adapted.sample(COUNT, best_of=BEST_OF), expected_choice(candidates, scores, descending=False))


@pytest.mark.parametrize(("given", "name"), [({"count": 0}, "count"), ({"best_of": 0}, "best_of")])
def test_counts_are_positive(given: dict[str, int], name: str) -> None:
    adapted = make_learner().adapt(tiny_batch(query=0).support[0], steps=0)
    with pytest.raises(ValueError, match=name):
        adapted.sample(**{"count": 2} | given)
