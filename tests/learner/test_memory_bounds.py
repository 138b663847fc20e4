"""Memory of a meta-step: micro-batches and fewer kept states give the same result; the plan, and its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import metagan_fast as mgf
from metagan_fast import functional
from metagan_fast._utils import coerce
from metagan_fast._utils.pair import Pair
from metagan_fast.executors import InnerLoopResult, MetaGradient, NativeExecutor, TaskSum, TorchExecutor
from metagan_fast.noise import NoiseShape, draw_noise
from networks import tiny_batch, tiny_gan
from support import assert_close

EXECUTORS = {"native": NativeExecutor, "torch": TorchExecutor}
ALGORITHMS = {
    "reptile": ("wgan-gp", mgf.Reptile()),
    "fomaml": ("wgan-gp", mgf.FOMAML(step_weights="uniform")),
    "maml": ("non-saturating", mgf.MAML()),
}


def learner(executor: str, loss: str = "non-saturating", **settings: Any) -> mgf.MetaGAN:
    """Return a learner on tiny networks, the same for the same settings."""
    torch.manual_seed(3)
    settings = {"inner": mgf.InnerLoop(lr=0.02, steps=5)} | settings
    return mgf.MetaGAN(*tiny_gan(), latent_dim=6, loss=loss, executor=executor, **settings)


def assert_equal(
    actual: MetaGradient | InnerLoopResult, expected: MetaGradient | InnerLoopResult, *, exact: bool
) -> None:
    """Compare the networks' values, and the metrics of every task."""
    for a, e in ((actual.generator, expected.generator), (actual.discriminator, expected.discriminator)):
        if exact:
            assert torch.equal(a, e)
        else:
            assert_close(a, e, "float32-derivative")
    assert actual.metrics.keys() == expected.metrics.keys()
    for name, values in expected.metrics.items():
        assert_close(actual.metrics[name], values, "float32-derivative")


@pytest.fixture
def megabyte_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make both executors say that each task of a call takes a megabyte."""
    for kind in EXECUTORS.values():
        monkeypatch.setattr(kind, "memory_use", lambda self, initial, shape, objective, rows: {"a": shape.tasks << 20})


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.usefixtures("megabyte_tasks")
def test_micro_batches_give_the_same_result(executor: str, algorithm: str) -> None:
    loss, meta = ALGORITHMS[algorithm]
    batch = tiny_batch(tasks=5)
    whole = learner(executor, loss, meta=meta)
    parts = learner(executor, loss, meta=meta, max_memory="2.5MB")
    assert parts.plan_memory(batch).tasks_at_once == 2
    exact = executor == "native"
    assert_equal(parts.meta_gradient(batch), whole.meta_gradient(batch), exact=exact)
    assert_equal(parts.inner_loop(batch), whole.inner_loop(batch), exact=exact)
    assert_close(parts.inner_loop(batch).history["loss_generator"], whole.inner_loop(batch).history["loss_generator"],
                 "float32-derivative")  # fmt: skip
    assert whole.meta_step(batch).keys() == parts.meta_step(batch).keys()
    assert not exact or torch.equal(whole.generator_parameters, parts.generator_parameters)


@pytest.mark.usefixtures("megabyte_tasks")
def test_a_joint_step_in_micro_batches_is_the_same() -> None:
    batch, inner = tiny_batch(tasks=5), mgf.InnerLoop(lr=0.01, steps=2)
    whole, parts = learner("native"), learner("native", max_memory=5 << 19)
    for each in (whole, parts):
        each.joint_step(batch, inner=inner)
    assert torch.equal(whole.discriminator_parameters, parts.discriminator_parameters)


SECOND_ORDER: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"inner": mgf.InnerLoop("momentum", lr=0.02, steps=7)},
    "several updates a step": {"inner": mgf.InnerLoop(lr=0.02, steps=5, critic_steps=2, generator_steps=3)},
    "a single step": {"inner": mgf.InnerLoop(lr=0.02, steps=1)},
    "clipped": {"loss": "wgan"},
    "losses of every step": {"step_weights": "uniform"},
    "opponent of the query images": {"generator_objective": "query", "inner": mgf.InnerLoop("momentum", steps=5)},
}


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", SECOND_ORDER)
def test_states_that_run_again_give_the_same_bytes(executor: str, case: str) -> None:
    settings = dict(SECOND_ORDER[case])
    algorithm = {name: settings.pop(name) for name in ("step_weights", "generator_objective") if name in settings}
    batch = tiny_batch(tasks=3)
    kept, again = (
        learner(executor, meta=mgf.MAML(checkpointing=way, **algorithm), **settings) for way in ("every step", "sqrt")
    )
    expected = kept.meta_gradient(batch)
    assert_equal(again.meta_gradient(batch), expected, exact=True)
    first_order = learner(executor, meta=mgf.FOMAML(**algorithm), **settings).meta_gradient(batch)
    assert not torch.equal(first_order.generator, expected.generator)  # the sweep changes something


@pytest.mark.parametrize("executor", EXECUTORS)
def test_fewer_states_take_less_memory(executor: str) -> None:
    inner = mgf.InnerLoop(lr=0.02, steps=25)
    plans = {
        way: learner(executor, inner=inner, meta=mgf.MAML(checkpointing=way)).plan_memory(tasks=2, shots=3)
        for way in ("every step", "sqrt")
    }
    name = "derivative through the inner loop"
    assert plans["sqrt"].parts[name] < 0.5 * plans["every step"].parts[name]
    assert plans["sqrt"].checkpointing == "sqrt"


def test_states_are_run_again_where_one_task_would_not_fit() -> None:
    settings: dict[str, Any] = {"inner": mgf.InnerLoop(lr=0.02, steps=25), "meta": mgf.MAML()}
    every = learner("native", **settings).plan_memory(tasks=1, shots=3)
    limited = learner("native", max_memory=every.peak - 1, **settings)
    assert every.checkpointing == "every step"
    assert limited.plan_memory(tasks=1, shots=3).checkpointing == "sqrt"
    batch = tiny_batch(tasks=1)
    assert_equal(limited.meta_gradient(batch), learner("native", **settings).meta_gradient(batch), exact=True)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_task_that_does_not_fit_says_what_it_needs(executor: str) -> None:
    limited = learner(executor, max_memory="1KB")
    with pytest.raises(
        ValueError, match=r"expected max_memory to hold one task, which takes .* [KM]B, got 1 KB; the la"
    ):
        limited.meta_step(tiny_batch())
    assert limited.step == 0
    limited.max_memory = None
    limited.meta_step(tiny_batch())


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_plan_of_sizes_is_that_of_a_batch(executor: str, algorithm: str) -> None:
    loss, meta = ALGORITHMS[algorithm]
    each = learner(executor, loss, meta=meta)
    query = 2 if meta.needs_query else 0
    plan = each.plan_memory(tiny_batch(tasks=3, shots=4, query=query))
    assert plan == each.plan_memory(tasks=3, shots=4, query=query)
    assert plan.peak == sum(plan.parts.values()) > 0
    assert plan.executor == executor
    assert str(plan).splitlines()[-1].split()[0] == "peak"
    assert each.plan_memory(tasks=6, shots=8, query=query).peak > plan.peak


def test_wrong_amounts_and_sizes_are_refused() -> None:
    assert [coerce.memory("m", text) for text in ("2GB", "1.5 GiB", "12", "3kb", 7)] == [
        2 * 10**9,
        3 << 29,
        12,
        3000,
        7,
    ]
    for wrong in ("2 gigabytes", "", "-1GB", 0, 1.5):
        with pytest.raises(ValueError, match="max_memory"):
            learner("native", max_memory=wrong)
    with pytest.raises(ValueError, match="checkpointing"):
        mgf.MAML(checkpointing="never")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="query"):
        learner("native", meta=mgf.MAML()).plan_memory(tasks=2, shots=3, query=0)
    with pytest.raises(ValueError, match="tasks"):
        learner("native").plan_memory(tasks=0)


def test_the_bound_is_the_machines_and_not_saved() -> None:
    config = learner("native", max_memory="1GB").state()[1]
    assert "max_memory" not in config
    assert "checkpointing" not in mgf.MAML().to_config()
    assert mgf.MAML(checkpointing="sqrt").to_config()["checkpointing"] == "sqrt"


@pytest.mark.parametrize("parts", [(5,), (1, 4), (2, 2, 1), (1, 1, 1, 1, 1)])
def test_a_sum_over_tasks_has_the_bytes_of_the_mean(parts: tuple[int, ...]) -> None:
    start, rows = torch.randn(65), torch.randn(5, 65)
    rows[:, 0] = start[0]  # differences of zero keep their sign
    total = TaskSum(5)
    for chunk in rows.split(parts):
        assert not total.is_complete
        total.add(Pair(start - chunk, chunk - start))
    assert total.is_complete
    mean = total.value.generator
    expected = functional.reptile_gradient(start, rows)
    assert torch.equal(mean.view(torch.int32), expected.view(torch.int32))
    with pytest.raises(ValueError, match="5 tasks"):
        total.add(Pair(rows[:1], rows[:1]))


def test_noise_of_many_tasks_is_that_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = NoiseShape(tasks=7, shots=3, latent_dim=5, steps=2, batch_size=2, query=2, query_adaptation=True)
    at_once = draw_noise(shape, seed=4, meta_step=9, first_task=2).drawn()
    monkeypatch.setattr("metagan_fast.noise._WORDS_AT_ONCE", 200)
    in_parts = draw_noise(shape, seed=4, meta_step=9, first_task=2).drawn()
    assert at_once.keys() == in_parts.keys()
    for name, values in at_once.items():
        assert torch.equal(values, in_parts[name])
