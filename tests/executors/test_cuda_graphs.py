"""Recorded meta-steps: equal to eager ones, free of the host, refused where they cannot be recorded."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metagan_fast as mgf
from metagan_fast._utils import log
from metagan_fast.executors.torch.cuda_graphs import Recordings
from metagan_fast.learner.graphs import SWITCH, MetaStepGraphs, why_not
from metagan_fast.noise import NoiseShape, Stream, draw_noise, draw_noise_at, noise_counters
from networks import tiny_batch, tiny_gan
from recorder import HostAccess, StandInRecorder

INNER = mgf.InnerLoop(lr=mgf.schedules.Linear(0.05, 0.01, 3), steps=3)
LINEAR = mgf.schedules.Linear(0.1, 0.0, 7)


def make_learner(**settings: Any) -> mgf.MetaGAN:
    torch.manual_seed(1)
    settings = {"latent_dim": 6, "inner": INNER, "executor": "torch", "seed": 2**40 + 3} | settings
    return mgf.MetaGAN(*tiny_gan(), **settings)


def tensors_of(learner: mgf.MetaGAN) -> list[Tensor]:
    return [*learner._state.initial, *(x for buffers in learner._state.buffers for x in buffers)]


def recorded(learner: mgf.MetaGAN) -> StandInRecorder:
    """Let a learner on the CPU record its meta-steps."""
    state = learner._state
    recorder = StandInRecorder(tensors_of(learner))
    learner._graphs = MetaStepGraphs(learner._executor, state.initial, state.buffers, recorder)
    return recorder


def everything(learner: mgf.MetaGAN) -> Tensor:
    return torch.cat(tensors_of(learner))


CASES: dict[str, dict[str, Any]] = {
    "adam": {"meta": mgf.Reptile(lr=LINEAR)},
    "adamw, clipped": {"meta": mgf.Reptile(optimizer="adamw", lr=LINEAR, weight_decay=0.1, clip_norm=0.1)},
    "momentum": {"meta": mgf.Reptile(optimizer="sgd", lr=LINEAR, momentum=0.9, clip_value=0.01)},
    "inner adam": {"inner": mgf.InnerLoop(optimizer="adam", lr=0.01, steps=2, critic_steps=2, batch_size=2)},
    "inner rmsprop, clamped": {"loss": "wgan", "inner": mgf.InnerLoop(optimizer="rmsprop", lr=0.01, steps=2)},
    "fomaml, multi-step": {"meta": mgf.FOMAML(step_weights="uniform")},
    "maml": {"meta": mgf.MAML(lr=LINEAR, first_order_steps=2), "loss": "non-saturating"},
    "maml, query": {"meta": mgf.MAML(generator_objective="query"), "loss": "non-saturating"},
    "bf16": {"precision": "bf16"},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_replays_equal_meta_steps_one_by_one(settings: dict[str, Any]) -> None:
    eager, replayed = make_learner(**settings), make_learner(**settings)
    recorder = recorded(replayed)
    query = 2 if eager.meta.needs_query else 0
    for step in range(5):
        batch = tiny_batch(query=query, first_task=4 * step)
        assert eager.meta_step(batch) == replayed.meta_step(batch)
        assert torch.equal(everything(eager), everything(replayed)), f"meta-step {step}"
    kinds = 2 if isinstance(eager.meta, mgf.MAML) and eager.meta.first_order_steps else 1
    assert (recorder.warmed, recorder.recorded) == (kinds, kinds)
    assert recorder.replayed == 5 - kinds


def test_serial_reptile_replays_one_recording_for_every_task() -> None:
    by_hand, replayed = (
        make_learner(meta=mgf.Reptile(lr=LINEAR)),
        make_learner(meta=mgf.Reptile(lr=LINEAR, serial=True)),
    )
    recorder = recorded(replayed)
    for step in range(3):
        batch = tiny_batch(query=0, first_task=2)
        replayed.meta_step(batch)
        for task in range(batch.tasks):
            by_hand.step = step  # a serial meta-step counts one, whatever its tasks
            by_hand.meta_step(batch.slice(task, task + 1))
    assert torch.equal(everything(by_hand), everything(replayed))
    assert (recorder.recorded, recorder.replayed) == (1, 8)


@pytest.mark.parametrize("loss", mgf.losses.NAMES)
def test_every_loss_can_be_recorded(loss: str) -> None:
    eager, replayed = make_learner(loss=loss), make_learner(loss=loss)
    recorder = recorded(replayed)
    for _ in range(3):
        batch = tiny_batch(query=2)
        assert eager.meta_step(batch) == replayed.meta_step(batch)
    assert recorder.replayed == 2


def test_another_algorithm_is_recorded_anew() -> None:
    eager, replayed = make_learner(), make_learner()
    recorder = recorded(replayed)
    for meta in (mgf.Reptile(), mgf.FOMAML(step_weights=[0.5, 0.0, 0.5])):
        eager.meta = replayed.meta = meta
        for _ in range(3):
            batch = tiny_batch()
            assert eager.meta_step(batch) == replayed.meta_step(batch)
    assert (recorder.warmed, recorder.recorded) == (2, 2)


def test_noise_that_is_given_is_an_input() -> None:
    eager, replayed = make_learner(), make_learner()
    recorder = recorded(replayed)
    for step in range(4):
        batch = tiny_batch(query=1)
        noise = draw_noise(eager._settings.noise_shape(batch, 3), seed=step, meta_step=7)
        assert eager.meta_step(batch, noise) == replayed.meta_step(batch, noise)
    assert recorder.replayed == 3
    assert torch.equal(everything(eager), everything(replayed))


def test_each_shape_is_recorded_and_the_last_ones_are_kept() -> None:
    learner = make_learner()
    recorder = recorded(learner)
    for tasks in (1, 1, 2, 2, 1, 2):
        learner.meta_step(tiny_batch(tasks=tasks, query=0))
    assert (recorder.warmed, recorder.recorded, recorder.replayed) == (2, 2, 4)
    for tasks in (3, 4, 5, 6, 1):  # as many other shapes as the cache holds evict the first
        learner.meta_step(tiny_batch(tasks=tasks, query=0))
    assert (recorder.warmed, recorder.recorded) == (7, 2)


def test_weights_that_change_every_step_are_never_recorded() -> None:
    settings = {"meta": mgf.FOMAML(step_weights=mgf.AnnealedStepWeights(3, 100))}
    eager, learner = make_learner(**settings), make_learner(**settings)
    recorder = recorded(learner)
    for _ in range(3):
        batch = tiny_batch()
        assert eager.meta_step(batch) == learner.meta_step(batch)
    assert recorder.recorded == 0


def test_a_meta_gradient_that_is_not_finite_changes_nothing() -> None:
    learner = make_learner()
    recorded(learner)
    batch = tiny_batch(query=0)
    noise = learner.draw_noise(batch)
    for _ in range(3):
        learner.meta_step(batch, noise)
    before = everything(learner).clone()
    noise.generator_latents[0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="meta-step 3 is not finite"):
        learner.meta_step(batch, noise)
    assert torch.equal(everything(learner), before)
    assert learner._state.updates == 3


class Branching(nn.Module):
    """A discriminator with data-dependent control flow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 1)

    def forward(self, images: Tensor) -> Tensor:
        scores = self.linear(images.flatten(1))
        return scores * 2 if scores.sum() > 0 else scores


def test_what_cannot_be_recorded_runs_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    log._said.clear()
    learners = []
    for _ in range(2):
        torch.manual_seed(1)
        networks = tiny_gan()[0], Branching()
        learners.append(mgf.MetaGAN(*networks, latent_dim=6, inner=INNER, executor="torch"))
    eager, learner = learners
    recorder = recorded(learner)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            batch = tiny_batch(query=0)
            assert eager.meta_step(batch) == learner.meta_step(batch)
    assert recorder.recorded == 0
    assert sum("not replayed as a graph" in record.message for record in caplog.records) == 1
    assert "cannot be recorded" in learner.explain()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x.sum().item(),
        lambda x: x * float(x.sum()),
        lambda x: x * x.tolist()[0],
        lambda x: x[x > 0],
        lambda x: x * torch.tensor(2.0),
        lambda x: x + torch.as_tensor(x.detach().numpy()),
        lambda x: x if x.sum() > 0 else -x,
    ],
)
def test_the_stand_in_sees_the_host(function: Any) -> None:
    x = torch.arange(3.0)
    with pytest.raises(HostAccess):
        StandInRecorder([]).record(lambda: {"y": function(x)})


def test_a_stale_number_is_seen() -> None:
    """A replay repeats Python numbers of the recording: the stand-in behaves as a graph does."""
    recordings = Recordings(StandInRecorder([]))
    found = [
        recordings(lambda given, n=n: {"y": given["x"] * n}, {"x": torch.ones(1)}, None)["y"].item() for n in range(4)
    ]
    assert found == [0, 1, 1, 1]


@pytest.mark.parametrize(("first_task", "batch_size"), [(0, 2), (5, 2), (0, 7)])
def test_noise_drawn_from_counters_is_the_same(first_task: int, batch_size: int) -> None:
    shape = NoiseShape(2, 3, 5, 2, critic_steps=2, batch_size=batch_size, query=2, query_adaptation=True)
    where = {"seed": 2**63 + 5, "meta_step": 2**33 + 1, "first_task": first_task, "stream": Stream.ADAPTATION}
    expected = draw_noise(shape, **where).drawn()
    drawn = draw_noise_at(shape, torch.tensor(noise_counters(**where))).drawn()
    assert drawn.keys() == expected.keys()
    assert all(torch.equal(drawn[name], expected[name]) for name in expected)


def test_where_graphs_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    cuda = torch.device("cuda")
    assert why_not(cuda, mgf.InnerLoop()) is None
    assert "persist" in (why_not(cuda, mgf.InnerLoop(inner_state="persist")) or "")
    monkeypatch.setenv(SWITCH, "0")
    assert SWITCH in (why_not(cuda, mgf.InnerLoop()) or "")
    learner = make_learner()
    assert learner._graphs is None
    assert "meta-steps run one by one: CUDA graphs need a CUDA device" in learner.explain()
