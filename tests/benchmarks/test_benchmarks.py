"""The benchmark harness: what it counts, times, writes and compares."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from metagan_fast.benchmarks import (
    busy,
    command,
    compare,
    gpu,
    machine,
    memory,
    operations,
    ops,
    profile,
    records,
    timing,
    workloads,
)
from metagan_fast.benchmarks.contenders import CONTENDERS, Contender, Prepared
from metagan_fast.benchmarks.problem import KINKED, Problem
from torch import Tensor, nn
from torch.nn import functional as F

from metagan_fast import _native, benchmarks, functional, models
from metagan_fast.training import config


def test_every_public_op_has_a_case() -> None:
    twins = {name[:-1] for name in functional.__all__ if name.endswith("_")}
    assert twins == {case.name.partition("-")[0] for case in ops.CASES}
    assert {case.workload for case in workloads.CASES} == set(models.WORKLOADS)


@pytest.mark.parametrize("case", ops.CASES, ids=lambda case: case.name)
def test_op_case_agrees_with_plain_pytorch(case: ops.OpCase) -> None:
    found = list(case.measure(thread_counts=[1], quick=True, rounds=2, numel=64))
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
        list(wrong.measure(thread_counts=[1], quick=True, rounds=1, numel=64))


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
    """Networks of one layer have few enough passes to count by hand."""
    generator, discriminator = operations.Cost(10.0, 10.0), operations.Cost(1.0, 1.0)
    # fake images 10; forward 2, weight gradients 2; then 10 + 10 for the generator and 1 + 1 for its score
    assert operations.inner_step(generator, discriminator, 1, penalty=False) == 10 + 4 + 20 + 2
    # interpolates: forward, data gradient, tangent, two weight gradients
    assert operations.inner_step(generator, discriminator, 3, penalty=True) == 3 * (10 + 4 + 20 + 2 + 5)
    # real images, forward and data gradient shared: gradient by the image, tangent, one more weight gradient
    assert operations.inner_step(generator, discriminator, 1, penalty=True, at_real=True) == 10 + 4 + 20 + 2 + 3


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


def test_alternate_rests_before_each_timed_call(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: events.append(f"rest {seconds}"))
    timing.alternate({"a": lambda: events.append("a")}, rounds=2, warm_up=1, settle=0.25)
    assert events == ["a", "rest 0.25", "a", "rest 0.25", "a"]


def test_probes_measure_something_possible() -> None:
    with machine.threads(2):
        assert torch.get_num_threads() == 2
        assert 1e7 < machine.copy_bandwidth(megabytes=1, rounds=2) < 1e13
    assert torch.get_num_threads() == 1
    assert 1e7 < machine.multiply_add_rate(rounds=2, seconds=0.01) < 1e15


def test_peak_of_every_instruction_set_is_positive() -> None:
    core = pytest.importorskip("metagan_fast._core", reason="the extension is not built")
    before = core.isa()
    try:
        for isa in core.available_isas():
            core.set_isa(isa)
            assert core.multiply_add_rate(2, 0.01) > 0
    finally:
        core.set_isa(before)
    for threads, seconds in ((0, 0.1), (1, 0.0), (1, float("nan")), (1, 61.0)):
        with pytest.raises(ValueError, match="at least 1 thread"):
            core.multiply_add_rate(threads, seconds)


def test_without_the_extension_a_matrix_product_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "is_available", lambda: (False, "a test"))
    monkeypatch.setattr(machine, "alternate", lambda runs, rounds: {"matmul": timing.Timing((2.0, 4.0))})
    assert machine.multiply_add_rate(size=8) == 8**3 / 2


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


@pytest.mark.parametrize("name", ["mlp-8", "maml-32", "glyphs-32", "rgb-64"])
def test_workload_case_runs_and_writes_json(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(command.CASES, name, _tiny(name))
    out = tmp_path / "records.jsonl"
    assert benchmarks.main(["--cases", name, "--quick", "--out", str(out)]) == 0
    assert records.output(records.parse)(str(out)) == out  # a second run may append
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["contender"] for line in lines} == set(_tiny(name).contenders)
    ours = next(line for line in lines if line["contender"] == "torch executor")
    assert ours["ratio"] == pytest.approx(ours["baseline_seconds"] / ours["seconds"])
    assert ours["error"] <= ours["error_allowed"]
    assert ours["versions"]["torch"] == torch.__version__
    assert ours["floor_fraction"] == pytest.approx(ours["floor_seconds"] / ours["seconds"])


COMMANDS = {"bench": (command.main, ["--list"]), "profile": (profile.main, ["mlp-8"]), "gpu": (gpu.main, [])}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("content", [b"notes of mine\n", b'{"mine": 1}\n', b"\x89PNG\xff"])
def test_a_file_of_something_else_is_not_written_to(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    out.write_bytes(content)
    main, arguments = COMMANDS[name]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--out", str(out)])
    assert stop.value.code == 2
    assert f"{out} holds something else, which stays: choose another file" in capsys.readouterr().err
    assert out.read_bytes() == content


def test_wrong_workload_result_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lazy(problem: Problem) -> Prepared:
        """Prepare a contender that stops a step early, but not before the first."""
        steps = max(problem.steps - 1, 1)
        return CONTENDERS["plain"].prepare(problem.first(tasks=problem.batch.tasks, steps=steps))

    monkeypatch.setitem(CONTENDERS, "torch executor", Contender("lazy", lazy))
    monkeypatch.setitem(command.CASES, "mlp-8", _tiny("mlp-8"))
    assert benchmarks.main(["--cases", "mlp-8", "--quick"]) == 1
    output = capsys.readouterr()
    assert "lazy on mlp-8" in output.err
    assert "torch executor" not in output.out


def test_unknown_case_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmarks.main(["--cases", "sdg_step"])
    assert (
        "expected one of ops, workloads, busy, memory, dropins, quality, scaling, sgd_step" in capsys.readouterr().err
    )


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


def test_record_of_an_older_version_is_read() -> None:
    old = records.Record.from_json('{"case": "sgd_step", "contender": "ours", "threads": 1, "seconds": 1.0}')
    assert old.speed_kept is None
    assert len(records.row(old)) < len(records.row(dataclasses.replace(old, speed_kept=0.5)))


class _Shared(nn.Module):
    """An activation registered under two names, in a nested module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.ReLU()
        self.inner = nn.Sequential(nn.PReLU(3), nn.LeakyReLU(0.2), nn.Tanh())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.inner(self.first(inputs)))


def _activations(network: nn.Module) -> list[nn.Module]:
    return [child for parent in network.modules() for child in parent._modules.values() if not child._modules]


@pytest.mark.parametrize("name", ["maml-32", "figr-resnet"])
def test_smooth_problem_has_no_kinks_and_leaves_the_original(name: str) -> None:
    found = next(c for c in workloads.CASES if c.name == name)
    problem = dataclasses.replace(found, tasks=1, steps=1).draw()
    problem = dataclasses.replace(problem, generator=nn.Sequential(problem.generator, _Shared()))
    before = {name: tensor.clone() for name, tensor in problem.generator.state_dict().items()}
    kinks = [sum(isinstance(m, KINKED) for m in _activations(n)) for n in (problem.generator, problem.discriminator)]
    assert min(kinks) > 1
    smooth = problem.smooth()
    for network, original, count in zip(
        (smooth.generator, smooth.discriminator), (problem.generator, problem.discriminator), kinks, strict=True
    ):
        assert not any(isinstance(module, KINKED) for module in _activations(network))
        assert sum(isinstance(module, nn.SiLU) for module in _activations(network)) == count
        assert sum(isinstance(module, KINKED) for module in _activations(original)) == count
        for parameter in network.parameters():
            parameter.data.fill_(0.0)
    after = problem.generator.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_judge_looks_at_smooth_networks_for_maml_and_adam_alone() -> None:
    seen: list[int] = []

    def watch(problem: Problem) -> Prepared:
        seen.append(sum(isinstance(module, KINKED) for module in problem.generator.modules()))
        return CONTENDERS["plain"].prepare(problem)

    for name, kinked in (("mlp-8", True), ("maml-32", False), ("glyphs-32", False)):
        case = _tiny(name)
        workloads.Judge(case, case.draw()).check(Contender("watched", watch))
        assert [count > 0 for count in seen] == [kinked] * 2
        seen.clear()


def test_default_run_is_a_workload() -> None:
    """`glyphs-32` has the default's networks, optimizer and images, but R1, a rate, steps and fakes of its own."""
    settings = config.resolve(config.from_preset("default"))
    case = workloads.find("glyphs-32")
    problem = case.draw()
    ours = problem.learner("torch")
    theirs = config.build_learner(settings, problem.batch.image_shape)
    own = {"lr": ours.inner.lr, "discriminator_lr": None, "steps": ours.inner.steps, "generated": None}
    inner = dataclasses.replace(theirs.inner, **own)
    assert ours.inner == inner and ours.latent_dim == theirs.latent_dim
    for mine, other in ((ours.generator, theirs.generator), (ours.discriminator, theirs.discriminator)):
        assert str(mine) == str(other)
    training = settings["training"]
    assert (case.shots, settings["data"]["image_size"]) == (training["shots"], 32)


def test_adam_and_mini_batches_are_part_of_the_problem() -> None:
    problem = dataclasses.replace(_tiny("glyphs-32"), shots=5, batch_size=3).draw()
    assert problem.noise.support_index.shape == (2, 1, 2, 3)
    part = problem.first(tasks=1, steps=1)
    assert part.noise.support_index.shape == (1, 1, 1, 3) and part.inner == dataclasses.replace(problem.inner, steps=1)
    smooth = problem.smooth()
    assert smooth.inner == dataclasses.replace(problem.inner, eps=1e-2) and problem.inner.eps == 1e-8
    for name, reason in (("jax", "has neither other inner optimizers than SGD nor mini-batches"), ("vmap", None)):
        found = CONTENDERS[name].left_out(problem, quick=False)
        assert found is None if reason is None else reason in found


def test_floor_counts_adams_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "multiply_add_rate", lambda: 1e30)
    monkeypatch.setattr(machine, "copy_bandwidth", lambda: 1.0)
    case = _tiny("glyphs-32")
    problem = case.draw()
    elements = sum(p.numel() for n in (problem.generator, problem.discriminator) for p in n.parameters())
    for betas, passes in (((0.0, 0.9), 4), ((0.5, 0.9), 6)):  # parameters, squares and, with momentum, means
        seconds, _ = workloads.floor(dataclasses.replace(case, betas=betas), problem)
        assert seconds == case.tasks * case.steps * passes * 4 * elements


def test_busy_cores_spin_until_they_are_left() -> None:
    with machine.busy_cores(2) as children:
        assert [child.poll() for child in children] == [None, None]
    assert None not in [child.returncode for child in children]
    with pytest.raises(KeyError), machine.busy_cores(1) as children:
        raise KeyError
    assert children[0].returncode is not None


def _tiny_busy() -> busy.BusyCase:
    work = dataclasses.replace(_tiny("mlp-8"), name="busy-tiny", contenders=("plain", "native executor"))
    return busy.BusyCase("busy-tiny", work, seconds=5.0)


def test_busy_case_says_what_speed_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert command.GROUPS["busy"] == ["busy-dcgan-32", "busy-dcgan-16"]
    pytest.importorskip("metagan_fast._core", reason="the extension is not built")
    monkeypatch.setitem(command.CASES, "busy-tiny", _tiny_busy())
    out = tmp_path / "records.jsonl"
    assert benchmarks.main(["--cases", "busy-tiny", "--quick", "--out", str(out)]) == 0
    plain, ours = records.read(out)
    assert (plain.contender, ours.contender) == ("plain", "native executor")
    assert ours.baseline_speed_kept == plain.speed_kept
    assert ours.speed_kept_required == 0.4
    for record in (plain, ours):
        assert record.speed_kept == pytest.approx(record.undisturbed_seconds / record.median)
        assert record.ratio == pytest.approx(plain.seconds / record.seconds)


@pytest.mark.slow
def test_engine_takes_a_quarter_of_the_plain_loops_memory_for_maml() -> None:
    """Two tasks at a time, on two threads, take at most a quarter of the plain loop's memory; one takes an eighth."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not say how much memory a process takes")
    pytest.importorskip("metagan_fast._core", reason="the extension is not built")
    (case,) = memory.CASES
    plain, ours = case.measure(thread_counts=[2], quick=True)
    assert plain.memory_bytes > 256 * 2**20  # the graph of five steps
    assert ours.memory_ratio == ours.memory_bytes / plain.memory_bytes
    assert ours.memory_ratio <= ours.memory_ratio_allowed == 0.25
    assert "MiB" in records.row(ours)


def test_busy_case_times_beside_the_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    disturbed = [False]

    @contextmanager
    def fake() -> Iterator[None]:
        disturbed[0] = True
        yield
        disturbed[0] = False

    def sleepy(problem: Problem) -> Prepared:
        """Prepare a contender that takes four times as long when disturbed."""
        prepared = CONTENDERS["plain"].prepare(problem)
        result = prepared.run()

        def run() -> object:
            time.sleep(0.2 if disturbed[0] else 0.05)
            return result

        return Prepared(run, prepared.collect)

    monkeypatch.setattr(machine, "busy_cores", fake)
    monkeypatch.setitem(CONTENDERS, "native executor", Contender("native executor", sleepy))
    case = _tiny_busy()
    plain, ours = case.measure(thread_counts=[1], rounds=2)
    assert 0.15 < ours.speed_kept < 0.5
    assert plain.speed_kept is not None
    assert disturbed == [False]


def test_baseline_of_a_busy_case_is_multiplied() -> None:
    work = dataclasses.replace(_tiny("mlp-8"), tasks=3, steps=2)
    scaled = busy._scaled({"plain": timing.Timing((1.0, 2.0)), "other": timing.Timing((5.0,))}, work)
    assert scaled == {"plain": timing.Timing((6.0, 12.0)), "other": timing.Timing((5.0,))}


def test_problem_takes_the_first_tasks_and_steps() -> None:
    case = _tiny("maml-32")
    problem = case.draw()
    part = problem.first(tasks=1, steps=1)
    assert part.batch.tasks == 1
    assert part.noise.generator_latents.shape[:2] == (1, 1)
    first: Tensor = problem.noise.generator_latents[0, 0]
    assert torch.equal(part.noise.generator_latents[0, 0], first)
