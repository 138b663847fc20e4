"""Tests that need a CUDA device; `python -m metagan_fast.benchmarks.gpu` runs them and records the outcome."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metagan_fast as mgf
from metagan_fast._utils import log
from metagan_fast.learner.graphs import SWITCH
from metagan_fast.noise import NoiseShape, draw_noise, draw_noise_at, noise_counters
from networks import Gan, tiny_batch, tiny_gan
from support import assert_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
INNER = mgf.InnerLoop(lr=0.02, steps=2)
SHAPE = NoiseShape(3, 4, 33, 5, critic_steps=2, batch_size=2, query=3, query_adaptation=True)
ON_CUDA: dict[str, Any] = {"seed": 2**40 + 7, "meta_step": 2**35 + 1, "first_task": 3}


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Compute convolutions in float32, not in TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def gan() -> Gan:
    torch.manual_seed(1)
    return tiny_gan()


def make_learner(gan: Gan, device: str = "cuda", **settings: Any) -> mgf.MetaGAN:
    settings = {"latent_dim": 6, "inner": INNER, "executor": "torch"} | settings
    settings.setdefault("meta", mgf.Reptile(optimizer="sgd", lr=mgf.schedules.Linear(0.5, 0.1, 8)))
    return mgf.MetaGAN(*(copy.deepcopy(network).to(device) for network in gan), **settings)


def without_graphs(patch: pytest.MonkeyPatch, gan: Gan, **settings: Any) -> mgf.MetaGAN:
    with patch.context() as inside:
        inside.setenv(SWITCH, "0")
        return make_learner(gan, **settings)


def parameters(learner: mgf.MetaGAN) -> Tensor:
    return torch.cat([learner.generator_parameters, learner.discriminator_parameters]).cpu()


def ulps(a: Tensor, b: Tensor) -> int:
    """Return the largest distance of two float32 tensors in units in the last place."""
    order = [torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits) for bits in (x.view(torch.int32).long() for x in (a, b))]
    return int((order[0] - order[1]).abs().max())


def test_noise_is_that_of_a_cpu() -> None:
    expected = draw_noise(SHAPE, **ON_CUDA).drawn()
    for name, drawn in draw_noise(SHAPE, **ON_CUDA, device="cuda").drawn().items():
        assert drawn.is_cuda
        if name.endswith("latents"):
            assert ulps(drawn.cpu(), expected[name]) <= 2
        else:
            assert torch.equal(drawn.cpu(), expected[name])


def test_noise_from_counters_on_the_device_is_the_same() -> None:
    expected = draw_noise(SHAPE, **ON_CUDA, device="cuda").drawn()
    drawn = draw_noise_at(SHAPE, torch.tensor(noise_counters(**ON_CUDA)).cuda()).drawn()
    assert all(torch.equal(drawn[name], expected[name]) for name in expected)


def test_inner_loops_equal_those_on_a_cpu(gan: Gan) -> None:
    on_cpu, on_cuda = make_learner(gan, "cpu"), make_learner(gan)
    batch = tiny_batch(query=0)
    noise = on_cpu.draw_noise(batch)
    expected, actual = on_cpu.inner_loop(batch, noise), on_cuda.inner_loop(batch, noise)
    for name in ("generator", "discriminator"):
        start = getattr(on_cpu, f"{name}_parameters")
        assert_close(getattr(actual, name).cpu() - start, getattr(expected, name) - start, "gpu-loop")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    "meta",
    [
        mgf.Reptile(optimizer="sgd", lr=mgf.schedules.Linear(0.5, 0.1, 8)),
        mgf.Reptile(optimizer="sgd", lr=0.3, momentum=0.9, clip_norm=0.1),
        mgf.Reptile(optimizer="sgd", lr=0.3, serial=True),
        mgf.FOMAML(optimizer="sgd", lr=0.01),
    ],
    ids=["reptile", "momentum", "serial", "fomaml"],
)
def test_graphs_equal_meta_steps_one_by_one(
    gan: Gan, monkeypatch: pytest.MonkeyPatch, meta: Any, precision: str
) -> None:
    eager = without_graphs(monkeypatch, gan, meta=meta, precision=precision)
    graph = make_learner(gan, meta=meta, precision=precision)
    start = parameters(graph)
    for step in range(5):
        batch = tiny_batch(query=2 if meta.needs_query else 0, first_task=step)
        metrics = eager.meta_step(batch), graph.meta_step(batch)
        assert metrics[0].keys() == metrics[1].keys()
    name = "gpu-loop" if precision == "float32" else "bf16-inner-loop"
    assert_close(parameters(graph) - start, parameters(eager) - start, name)
    assert "1 recorded" in graph.explain()
    assert SWITCH in eager.explain()


def test_adam_and_maml_are_recorded(gan: Gan) -> None:
    for meta in (mgf.Reptile(), mgf.MAML()):
        learner = make_learner(gan, meta=meta, loss="non-saturating")
        for _ in range(3):
            before = parameters(learner)
            assert all(value == value for value in learner.meta_step(tiny_batch()).values())
            assert not torch.equal(parameters(learner), before)
        assert "1 recorded" in learner.explain()


def test_a_replay_draws_new_noise(gan: Gan) -> None:
    learner = make_learner(gan, meta=mgf.Reptile(optimizer="sgd", lr=0.0))
    batch = tiny_batch(query=0)
    norms = {learner.meta_step(batch)["gradient_norm"] for _ in range(5)}
    assert len(norms) == 5


def test_a_meta_gradient_that_is_not_finite_changes_nothing(gan: Gan) -> None:
    learner = make_learner(gan)
    batch = tiny_batch(query=0)
    noise = learner.draw_noise(batch)
    for _ in range(3):
        learner.meta_step(batch, noise)
    before = parameters(learner)
    noise.generator_latents[0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="is not finite"):
        learner.meta_step(batch, noise)
    assert torch.equal(parameters(learner), before)


def test_another_stream_gives_the_same(gan: Gan) -> None:
    batches = [tiny_batch(query=0) for _ in range(4)]
    found = []
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        learner = make_learner(gan)
        start = parameters(learner)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for batch in batches:
                learner.meta_step(batch)
        found.append(parameters(learner) - start)
    assert_close(found[1], found[0], "gpu-loop")


def test_another_device_than_the_current_one(gan: Gan) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    batches = [tiny_batch(query=0) for _ in range(4)]
    learners = [make_learner(gan, f"cuda:{index}") for index in (0, 1)]
    for batch in batches:
        for learner in learners:
            learner.meta_step(batch)
    assert "1 recorded" in learners[1].explain()
    assert_close(*(parameters(learner) for learner in learners), "gpu-loop")


def test_memory_is_bounded(gan: Gan) -> None:
    learner = make_learner(gan)
    batch = tiny_batch(query=0)

    def allocated_after(steps: int) -> int:
        for _ in range(steps):
            learner.meta_step(batch)
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    before = allocated_after(5)
    assert allocated_after(100) == before


class Branching(nn.Module):
    """A discriminator with data-dependent control flow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 1)

    def forward(self, images: Tensor) -> Tensor:
        scores = self.linear(images.flatten(1))
        return scores * 2 if scores.sum() > 0 else scores


def test_what_cannot_be_recorded_runs_one_by_one(
    gan: Gan, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log._said.clear()
    networks = gan[0], Branching()
    eager, learner = without_graphs(monkeypatch, networks), make_learner(networks)
    start = parameters(learner)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            batch = tiny_batch(query=0)
            eager.meta_step(batch)
            learner.meta_step(batch)
    assert sum("not replayed as a graph" in record.message for record in caplog.records) == 1
    assert_close(parameters(learner) - start, parameters(eager) - start, "gpu-loop")
