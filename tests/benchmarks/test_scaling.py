"""The scaling benchmark: gangs of processes, and the model of many ranks."""

from __future__ import annotations

import dataclasses

import pytest
from metagan_fast.benchmarks import scaling, scaling_model
from metagan_fast.benchmarks.scaling_model import Machine

from metagan_fast.training import config

RING = Machine(task=0.5, whole=0.25, spread=0.0, reduced=8e6, latency=1e-3, bandwidth=1e8, tree=False)


def test_one_rank_neither_waits_nor_talks() -> None:
    assert RING.meta_step(3, 1) == 0.25 + 3 * 0.5
    assert dataclasses.replace(RING, spread=0.1).waiting(3, 1) == 0


def test_the_slowest_rank_has_the_most_tasks() -> None:
    assert [RING.busy(5, ranks) for ranks in (1, 2, 4, 5, 8)] == [2.5, 1.5, 1.0, 0.5, 0.5]


def test_an_all_reduce_passes_the_vector_nearly_twice() -> None:
    assert RING.reducing(4) == pytest.approx(6e-3 + 2 * 3 / 4 * 0.08)
    assert dataclasses.replace(RING, tree=True).reducing(4) == pytest.approx(4e-3 + 2 * 3 / 4 * 0.08)


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling_model.main(["--task", "0.5", "--spread", "0", "--latency", "0", "--bandwidth", "1e30"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[2] == "| 1 | 1 | 2 | 2 | 100% | 0.0% |"
    assert rows[-1] == "| 1,024 | 1,024 | 2 | 2.05e+03 | 100% | 0.0% |"


def test_the_default_case_is_the_default_preset() -> None:
    settings = config.resolve(config.from_preset("default"))
    learner, batch = scaling.draw("default")
    assert (batch.tasks, batch.shots) == (settings["training"]["tasks"], settings["training"]["shots"])
    assert learner.inner.to_config() == settings["inner"]


@pytest.mark.scale
def test_gangs_are_checked_and_timed() -> None:
    case = scaling.ScalingCase("scaling-mlp-8", "mlp-8")
    found = list(case.measure(thread_counts=[2], quick=True))
    assert [record.contender for record in found] == ["1 process", "2 ranks", "2 in order"]
    for record in found:
        assert record.ratio is not None and record.ratio > 0
        assert record.error is not None and record.error_allowed is not None and record.error <= record.error_allowed
