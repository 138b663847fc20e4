"""Tasks that diverge: meta-steps leave them out and count them, and a run that ends can be replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import TASKS, make_learner
from torch import Tensor

import metagan_fast as mgf
from metagan_fast.learner.finite import Trial
from metagan_fast.noise import Noise
from metagan_fast.tasks import TaskBatch
from metagan_fast.training import replay
from metagan_fast.training.dropped_tasks import DROPPED, DroppedTasks
from metagan_fast.training.outer_loop import Training
from metagan_fast.training.run_folder import RunFolder
from metagan_fast.training.trainer import Trainer

ALGORITHMS: dict[str, dict[str, Any]] = {
    "reptile": {"meta": mgf.Reptile(optimizer="sgd", lr=0.5)},
    "serial reptile": {"meta": mgf.Reptile(optimizer="sgd", lr=0.5, serial=True)},
    "serial adam": {"meta": mgf.Reptile(lr=0.1, serial=True)},
    "adam": {"meta": mgf.Reptile(lr=0.1)},
    "fomaml": {"loss": "non-saturating", "meta": mgf.FOMAML(lr=1e-2)},
    "maml": {"loss": "non-saturating", "meta": mgf.MAML(lr=1e-2)},
}
TRAINING = Training(6, tasks=4, shots=2, query=2, validation_tasks=2, max_dropped=4)


class Poisoned(mgf.MetaGAN):
    """Learner whose noise of some tasks is infinite: (meta-step, task) pairs."""

    poison: tuple[tuple[int, int], ...] = ()
    field = "generator_latents"

    def _noise(self, batch: TaskBatch, noise: Noise | None, *others: Any) -> Noise:
        drawn = super()._noise(batch, noise, *others)
        if noise is None:
            values: Tensor = getattr(drawn, self.field)
            for step, task in self.poison:
                if step == self.step and batch.first_task <= task < batch.first_task + batch.tasks:
                    values[..., task - batch.first_task, :, :] = float("inf")
        return drawn


def make_poisoned(*poison: tuple[int, int], field: str = "generator_latents", **settings: Any) -> Poisoned:
    learner = make_learner(**settings)
    learner.__class__ = Poisoned
    learner.poison, learner.field = poison, field
    return learner


def make_batch(step: int = 0) -> TaskBatch:
    return TASKS.train.sample(tasks=4, shots=2, query=2, step=step)


def state(learner: mgf.MetaGAN) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.state()[0].items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("executor", ["native", "torch"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_task_is_left_out(tmp_path: Path, name: str, executor: str) -> None:
    """The result is that of the other tasks, each with the noise of its index."""
    learner = make_poisoned((0, 1), executor=executor, **ALGORITHMS[name])
    expected = make_learner(executor=executor, **ALGORITHMS[name])
    batch, kept = make_batch(), [0, 2, 3]
    noise = expected.draw_noise(batch)
    with pytest.raises(FloatingPointError, match="meta-step 0 is not finite"):
        learner.meta_step(batch)
    metrics = DroppedTasks(tmp_path / "replay").train_on(TRAINING, learner, batch, {})
    others = TaskBatch(batch.support[kept], batch.query[kept] if batch.query is not None else None)
    wanted = expected.meta_step(others, Noise(**{key: of_tasks(key, x, kept) for key, x in noise.drawn().items()}))
    assert metrics == {**wanted, DROPPED: 1}
    assert (learner.step, learner._state.updates) == (1, expected._state.updates)
    assert_equal(state(learner), state(expected))


def of_tasks(name: str, values: Tensor, tasks: list[int]) -> Tensor:
    """Return the draws of some tasks, whose dimension the documentation of `Noise` tells."""
    has_critic_steps = name in ("discriminator_latents", "interpolation", "support_index")
    return values[:, :, tasks] if has_critic_steps else values[:, tasks]


def test_a_joint_step_leaves_a_task_out(tmp_path: Path) -> None:
    training = Training(6, tasks=4, shots=2, warm_up=6)
    learner, expected = make_poisoned((0, 2)), make_learner()
    batch = training.batch(learner, TASKS.train, 0)
    kept, inner = [0, 1, 3], training.warm_up_inner(learner.inner)
    noise = Trial(expected, batch, inner=inner).noise
    DroppedTasks(tmp_path / "replay").train_on(training, learner, batch, {})
    expected.joint_step(batch.take(kept), noise.take(kept), inner=inner)
    assert_equal(state(learner), state(expected))


def test_a_trial_changes_nothing() -> None:
    learner = make_poisoned((0, 1), meta=mgf.Reptile(lr=0.1, serial=True))
    before, counters = state(learner), learner.state()[1]
    trial = Trial(learner, make_batch())
    assert trial.diverging() == [1]
    assert [place.task for place in trial.divergences([1])] == [1]
    assert_equal(state(learner), before)
    assert learner.state()[1] == counters


def test_a_meta_step_without_tasks_changes_nothing_and_counts(tmp_path: Path) -> None:
    learner = make_poisoned(*((0, task) for task in range(4)))
    before = state(learner)
    dropped = DroppedTasks(tmp_path / "replay")
    assert dropped.train_on(TRAINING, learner, make_batch(), {}) == {DROPPED: 4}
    assert (learner.step, dropped.total, dropped.in_a_row) == (1, 4, 4)
    assert_equal(state(learner), before)
    dropped.train_on(TRAINING, learner, make_batch(1), {})
    assert (dropped.total, dropped.in_a_row) == (4, 0)


@pytest.mark.parametrize(
    ("name", "field", "network", "inner_step"),
    [
        ("reptile", "generator_latents", "generator", 1),
        ("serial adam", "discriminator_latents", "discriminator", 1),
        ("fomaml", "query_generator_latents", "generator", None),
        ("maml", "query_discriminator_latents", "discriminator", None),
    ],
)
def test_a_replay_tells_where_a_task_diverged(
    tmp_path: Path, name: str, field: str, network: str, inner_step: int | None
) -> None:
    learner = make_poisoned((0, 1), (0, 3), field=field, **ALGORITHMS[name])
    file = tmp_path / "replay.safetensors"
    with pytest.raises(FloatingPointError, match="2 of 4 tasks diverged, 2 in meta-steps in a row, where max_dropped"):
        DroppedTasks(file).train_on(Training(6, max_dropped=1), learner, make_batch(), {})
    again = make_learner(**ALGORITHMS[name])
    torch.nn.init.normal_(again.generator_parameters)  # the file has the initialisation
    repeated = replay.load(file, again)
    assert_equal(state(again), state(learner))
    found = repeated.divergences(again)
    assert [(place.task, place.network, place.inner_step) for place in found] == [
        (1, network, inner_step),
        (3, network, inner_step),
    ]


def test_a_step_within_the_inner_loop_is_found(tmp_path: Path) -> None:
    learner = make_learner(inner=mgf.InnerLoop(steps=5, lr=0.05))
    batch = make_batch()
    noise = learner.draw_noise(batch)
    noise.discriminator_latents[3, :, 2] = float("nan")
    (place,) = Trial(learner, batch, noise).divergences(range(4))
    assert (place.task, place.inner_step, place.network) == (2, 4, "discriminator")


# Runs


def make_trainer(path: Path, learner: mgf.MetaGAN, *, new: bool = True, **options: Any) -> Trainer:
    folder = RunFolder.create(path) if new else RunFolder(path)
    training = Training(6, **({"tasks": 4, "shots": 2, "validation_tasks": 2, "checkpoint_every": 1} | options))
    return Trainer(learner, TASKS, folder, training)


def test_a_run_counts_what_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    poison = (1, 0), (1, 2), (4, 3)
    outcome = make_trainer(tmp_path / "straight", make_poisoned(*poison)).run()
    assert (outcome.step, outcome.dropped) == (6, 3)
    lines = RunFolder(tmp_path / "straight").read_metrics()
    assert {line["step"]: line[DROPPED] for line in lines if DROPPED in line} == {2: 2, 5: 1}
    assert "meta-step 2 leaves out tasks [0, 2], whose meta-gradient is not finite" in caplog.text
    # Stopped in between and resumed: the counts go on.
    make_trainer(tmp_path / "halves", make_poisoned(*poison)).folder.path.joinpath("x").write_text("")
    half = make_trainer(tmp_path / "half", make_poisoned(*poison), keep=9)
    half.run()
    for step in (4, 5, 6):
        (half.folder.checkpoints / f"step-{step:08d}.safetensors").unlink()
    again = make_trainer(tmp_path / "half", make_poisoned(*poison), new=False)
    again.resume()
    assert again.learner.step == 3
    assert again.run().dropped == 3
    ends = [tmp_path / name / "checkpoints" / "step-00000006.safetensors" for name in ("straight", "half")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_too_many_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Counts are of meta-steps in a row: one without a diverging task begins anew."""
    poison = (0, 0), (1, 1), (3, 0), (4, 1), (5, 2)
    trainer = make_trainer(tmp_path / "run", make_poisoned(*poison), max_dropped=2)
    with pytest.raises(FloatingPointError, match="metagan-fast replay"):
        trainer.run()
    assert trainer.learner.step == 5
    assert "meta-step 5, the last complete one, is saved; go on with: metagan-fast train --resume" in caplog.text
    assert trainer.folder.newest() == 5
    assert json.loads(json.dumps(replay.load(trainer.folder.replay, make_learner()).tasks)) == [2]
    # More may be left out on resuming.
    again = make_trainer(tmp_path / "run", make_poisoned(*poison), new=False, max_dropped=3)
    again.resume()
    assert again.run().step == 6
    RunFolder.create(tmp_path / "other")
    trainer.folder._clear()
    assert not trainer.folder.replay.exists()


def test_no_replay_to_read(tmp_path: Path) -> None:
    with pytest.raises(mgf.CheckpointError, match="has no meta-step to replay"):
        replay.load(tmp_path / "replay.safetensors", make_learner())


@pytest.mark.parametrize("counts", [[1], ["x", 0], None])
def test_damaged_counts(tmp_path: Path, counts: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        DroppedTasks(tmp_path).load({DROPPED: counts})
