"""The benchmark harness: what it counts, times, writes and compares."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
from metagan_fast.benchmarks import command, compare, machine, operations, ops, records, timing, workloads
from metagan_fast.benchmarks.contenders import CONTENDERS, Contender, Prepared
from metagan_fast.benchmarks.problem import Problem
from torch import Tensor, nn
from torch.nn import functional as F

from metagan_fast import benchmarks, functional, models


def test_every_public_op_has_a_case() -> None:
    twins = {name[:-1] for name in functional.__all__ if name.endswith("_")}
    assert twins == {case.name.partition("-")[0] for case in ops.CASES}
    assert {case.workload for case in workloads.CASES} == set(models.WORKLOADS)


@pytest.mark.parametrize("case", ops.CASES, ids=lambda case: case.name)
def test_op_case_agrees_with_plain_pytorch(case: ops.OpCase) -> None:
    found = list(ops.run(case, thread_counts=[1], quick=True, rounds=2, numel=64))
    assert [record.contender for record in found] == list(case.contenders)
    for record in found:
        if record.skipped is None:
            assert record.ratio is not None
            assert record.ratio > 0


def test_wrong_op_is_not_timed() -> None:
    case = next(case for case in ops.CASES if case.name == "ema_update")

    def off_by_a_little(buffers: ops.Buffers) -> timing.Run:
        return lambda: buffers["average"].mul_(0.999).add_(buffers["params"], alpha=0.0011)

    wrong = dataclasses.replace(case, contenders={**case.contenders, ops.OURS: off_by_a_little})
    with pytest.raises(AssertionError, match="ours differs from plain on ema_update"):
        list(ops.run(wrong, thread_counts=[1], quick=True, rounds=1, numel=64))


def test_traffic_counts_each_array_once_a_pass() -> None:
    bytes_of = {case.name: case.bytes(numel=10) for case in ops.CASES}
    assert bytes_of["adam_step"] == 7 * 16 * 10 * 4  # reads 4 arrays, writes 3
    assert bytes_of["meta_adam_step-4"] == (4 + 3 + 3) * 10 * 4  # reads the tasks and 3 rows, writes 3


def _counted_convolution(layer: nn.Conv2d, size: int) -> int:
    """Count the multiply-adds of a convolution of one image by running it on ones: a tap inside counts 1."""
    weight = torch.ones_like(layer.weight)
    return int(F.conv2d(torch.ones(1, layer.in_channels, size, size), weight, stride=layer.stride, padding=2).sum())


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (4, 1), (7, 2)])
def test_cost_counts_taps_inside_the_image(size: int, stride: int) -> None:
    layer = nn.Conv2d(2, 3, 5, padding=2, stride=stride)
    network = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(1))
    images = torch.zeros(2, 2, size, size)
    network(images)
    linear = network[2].in_features
    assert operations.cost(network, images).forward == _counted_convolution(layer, size) + linear
    assert operations.cost(network, images).first == _counted_convolution(layer, size)


def test_inner_step_cost_of_equal_layers() -> None:
    """With one layer a network the passes can be counted on the fingers."""
    generator, discriminator = operations.Cost(10.0, 10.0), operations.Cost(1.0, 1.0)
    # fake images 10; forward 2, weight gradients 2; then 10 + 10 for the generator and 1 + 1 for its score
    assert operations.inner_step(generator, discriminator, 1, penalty=False) == 10 + 4 + 20 + 2
    # interpolates: forward, data gradient, tangent, two weight gradients
    assert operations.inner_step(generator, discriminator, 3, penalty=True) == 3 * (10 + 4 + 20 + 2 + 5)


def test_alternate_times_in_turn_and_stops_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    timings = timing.alternate(runs, rounds=5, seconds=8.0, warm_up=1)
    assert "".join(calls) == "ab" + "ab" * 2
    assert timings["a"].seconds == (1.0, 1.0)
    assert timing.Timing((1.0, 2.0, 3.0, 4.0)).best == 1.0
    assert timing.Timing((1.0, 2.0, 3.0)).spread == pytest.approx(0.5)


def test_probes_measure_something_possible() -> None:
    with machine.threads(2):
        assert torch.get_num_threads() == 2
        assert 1e7 < machine.copy_bandwidth(megabytes=1, rounds=2) < 1e13
    assert torch.get_num_threads() == 1
    assert 1e7 < machine.multiply_add_rate(size=64, rounds=2) < 1e15


@pytest.mark.parametrize("count", [1, 2, 3])
def test_copy_probe_copies_everything(count: int) -> None:
    source = torch.randn(7, 11)
    with machine.threads(count):
        destinations = [torch.zeros_like(source) for _ in range(2)]
        for name, destination in zip(("copy: torch", "copy: memmove"), destinations, strict=True):
            machine.copy_runs(source, destination)[name]()
            assert torch.equal(destination, source), name


def _tiny(case: str) -> workloads.WorkloadCase:
    found = next(c for c in workloads.CASES if c.name == case)
    return dataclasses.replace(found, workload="mlp-8", tasks=2, steps=2, rounds=1, checked_tasks=2)


@pytest.mark.parametrize("name", ["mlp-8", "maml-32"])
def test_workload_case_runs_and_writes_json(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(command.CASES, name, _tiny(name))
    out = tmp_path / "records.jsonl"
    assert benchmarks.main(["--cases", name, "--quick", "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["contender"] for line in lines} == set(_tiny(name).contenders)
    ours = next(line for line in lines if line["contender"] == "torch executor")
    assert ours["ratio"] == pytest.approx(ours["baseline_seconds"] / ours["seconds"])
    assert ours["error"] <= ours["error_allowed"]
    assert ours["versions"]["torch"] == torch.__version__
    assert ours["floor_fraction"] == pytest.approx(ours["floor_seconds"] / ours["seconds"])


def test_wrong_workload_result_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lazy(problem: Problem) -> Prepared:
        """A contender that stops a step early."""
        return CONTENDERS["plain"].prepare(problem.first(tasks=problem.batch.tasks, steps=problem.steps - 1))

    monkeypatch.setitem(CONTENDERS, "torch executor", Contender("lazy", lazy))
    monkeypatch.setitem(command.CASES, "mlp-8", _tiny("mlp-8"))
    assert benchmarks.main(["--cases", "mlp-8", "--quick"]) == 1
    output = capsys.readouterr()
    assert "lazy on mlp-8" in output.err
    assert "torch executor" not in output.out


def test_unknown_case_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmarks.main(["--cases", "sdg_step"])
    assert "expected one of ops, workloads, sgd_step" in capsys.readouterr().err


def _record(case: str, ratio: float, spread: float = 0.01) -> records.Record:
    return records.Record(case, "ours", 1, seconds=1.0, baseline="plain", ratio=ratio, spread=spread)


@pytest.mark.parametrize(("new", "status"), [([2.0, 3.0], 0), ([1.9, 3.0], 0), ([2.0, 2.5], 1), ([4.0, 2.5], 1)])
def test_compare_finds_what_became_slower(
    new: list[float], status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(tmp_path / name) for name in ("old.jsonl", "new.jsonl")]
    for path, ratios in zip(paths, ([2.0, 3.0], new), strict=True):
        rows = [_record(case, ratio) for case, ratio in zip(("sgd_step", "adam_step"), ratios, strict=True)]
        records.append(path, [*rows, records.Record("mlp-8", "jax", 1, skipped="jax is not installed")], {})
    assert compare.main(paths) == status
    assert ("slower" in capsys.readouterr().out) == bool(status)


def test_compare_forgives_noise_and_names_a_bad_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = _record("sgd_step", 2.0, spread=0.5), _record("sgd_step", 1.5, spread=0.5)
    (change,) = compare.changes([old], [new])
    assert change.factor == pytest.approx(0.75)
    assert change.noise == 0.5
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"case": "sgd_step"\n')
    assert compare.main([str(bad), str(bad)]) == 2
    assert "line 1 of" in capsys.readouterr().err


def test_record_survives_json() -> None:
    record = _record("sgd_step", 2.0)
    assert records.Record.from_json(record.to_json({"versions": {}, "machine": {}})) == record


def test_problem_takes_the_first_tasks_and_steps() -> None:
    case = _tiny("maml-32")
    problem = case.draw()
    part = problem.first(tasks=1, steps=1)
    assert part.batch.tasks == 1
    assert part.noise.generator_latents.shape[:2] == (1, 1)
    first: Tensor = problem.noise.generator_latents[0, 0]
    assert torch.equal(part.noise.generator_latents[0, 0], first)
