"""Predicted memory of meta-steps against the growth of a process of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from metagan_fast.benchmarks import memory_plan
from metagan_fast.benchmarks.memory_plan import Case, Result

pytestmark = [
    pytest.mark.scale,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is reset through /proc"),
]


@pytest.mark.parametrize("executor", ["native", "torch"])
@pytest.mark.parametrize("algorithm", ["reptile", "reptile-adam", "fomaml", "maml", "maml-sqrt"])
def test_predictions_are_within_a_tenth(executor: str, algorithm: str) -> None:
    result = memory_plan.measure(
        Case("dcgan-32", algorithm, executor, tasks=4, steps=9 if algorithm.startswith("maml") else 2)
    )
    assert result.is_close, f"{result.ratio:.2f} of what is measured: {result.parts}"


@pytest.mark.parametrize("executor", ["native", "torch"])
def test_fewer_states_are_measured_lower(executor: str) -> None:
    every, fewer = (
        memory_plan.measure(Case("dcgan-32", algorithm, executor, tasks=2, steps=25))
        for algorithm in ("maml", "maml-sqrt")
    )
    assert fewer.measured < 0.75 * every.measured


def test_a_bound_holds() -> None:
    case = Case("dcgan-32", "reptile", "torch", tasks=8, steps=2, max_memory=200_000_000)
    assert memory_plan.measure(case).measured <= 220_000_000


def test_a_result_tells_whether_it_is_close() -> None:
    case = Case("mlp-8", "reptile", "native")
    assert Result(case, 1_080_000_000, 1_000_000_000, {}).is_close
    assert not Result(case, 1_120_000_000, 1_000_000_000, {}).is_close
    assert Result(case, 5_000_000, 1_000_000, {}).is_close  # small networks: within a few megabytes
