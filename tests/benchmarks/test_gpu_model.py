"""The model of launches, bytes and rooflines: counts against closed forms, multiples against whole traces."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from metagan_fast.benchmarks import command, gpu_model, launches, ops, workloads
from metagan_fast.benchmarks.launches import Shapes, Trace, Work

import metagan_fast as mgf
from metagan_fast import functional
from metagan_fast.ops.clip_grad_norm import SHORT_ROW
from networks import tiny_gan


def tiny_shapes() -> Shapes:
    with torch.device("meta"):
        generator, discriminator = tiny_gan()
    return Shapes(generator, discriminator, 6, (1, 8, 8), shots=3)


def test_a_trace_counts_launches_bytes_and_operations() -> None:
    x, row = torch.ones(4, 5), torch.ones(5)
    with Trace() as trace:
        y = x * row.expand(4, 5).view(4, 5)  # reads 20 + 5 elements, writes 20
        y.t()[1:].add_(1)  # reads and writes 16
        y.clone()  # moves 20 to 20
    assert trace.work == Work(launches=3, bytes=4 * (45 + 32 + 40), operations=20 + 16)


def test_a_fused_op_is_one_launch_that_touches_each_tensor_once() -> None:
    params, grads = torch.ones(2, 64), torch.ones(2, 64)
    with Trace() as one:
        functional.sgd_step_(params, grads, 0.1)
    assert one.work == Work(launches=1, bytes=4 * 3 * 128, operations=2 * 128)
    with Trace(fused=False) as several:
        functional.sgd_step_(params, grads, 0.1)
    assert several.work.launches == 4  # the rate, product, difference, and the copy to where it belongs
    assert several.work.operations == one.work.operations


@pytest.mark.parametrize("case", ops.CASES, ids=lambda case: case.name)
def test_traffic_of_the_op_cases_is_what_a_trace_finds(case: ops.OpCase) -> None:
    run = case.contenders[ops.OURS](case.draw(64))
    with Trace() as trace:
        run()
    found, launched = trace.work.bytes, trace.work.launches
    clips = case.name in ("clip_grad_norm", "adam_step-clipped")
    if clips:  # reads the gradients twice
        found += 4 * 16 * 64
    if case.name == "clip_grad_norm":  # writes a norm a task
        found -= 4 * 16
    assert (launched, found) == (1, case.bytes(64))
    for numel in (SHORT_ROW, SHORT_ROW + 1):
        plain, fused = gpu_model.op_rows(case, numel)
        assert fused.bytes == case.bytes(numel) < plain.bytes
        assert fused.launches == (2 if clips and numel > SHORT_ROW else 1) < plain.launches
    forms = [row.form for row in gpu_model.rows(case.name)]
    assert forms == ["plain, short rows", "fused, short rows"] * clips + ["plain", "fused"]


@pytest.mark.parametrize("numel, clipping", [(SHORT_ROW, 1), (SHORT_ROW + 1, 2)])
def test_clipping_and_reset_in_a_step_save_their_launches(numel: int, clipping: int) -> None:
    params, grads, m, v = (torch.ones(2, numel) for _ in range(4))
    with Trace() as clipped:
        functional.adam_step_(params, grads, m, v, 0.1, step=1, max_norm=1.0)
    with Trace() as together:
        functional.adam_step_(params, grads, m, v, 0.1, step=1, max_norm=1.0, zero_grads=True)
    with Trace() as apart:
        functional.clip_grad_norm_(grads, 1.0)
        functional.adam_step_(params, grads, m, v, 0.1, step=1)
        grads.zero_()
    found = [trace.work.launches for trace in (clipped, together, apart)]
    assert found == [clipping, 2, clipping + 2]
    assert together.work.bytes == 4 * 8 * 2 * numel  # reads 4 arrays, writes 4


@pytest.mark.parametrize("numel, clipping", [(SHORT_ROW, 1), (SHORT_ROW + 1, 2)])
def test_a_clipped_meta_update_has_a_launch_less(numel: int, clipping: int) -> None:
    meta = mgf.Reptile(clip_norm=0.5)
    params, gradient = torch.ones(numel), torch.ones(numel)
    numbers, state = torch.tensor(meta.numbers(0, 1), dtype=torch.float64), meta.initial_state(params)
    lr, corrections = numbers[0], numbers[1:]
    with Trace() as together:
        meta.step(params, gradient, state, lr, corrections, in_place=False)
    with Trace() as apart:
        clipped = functional.clip_grad_norm(gradient, 0.5)[0]
        mgf.Reptile().step(params, clipped, state, lr, corrections, in_place=False)
    assert (together.work.launches, apart.work.launches) == (clipping, clipping + 1)


def test_what_one_launch_clips_costs_a_multiprocessor_no_more_than_a_launch() -> None:
    """The row length is the largest power of two for which that holds on every modelled device."""
    least, most = gpu_model.LAUNCH_SECONDS
    assert all(device.clipping_seconds(SHORT_ROW) <= most for device in gpu_model.DEVICES)
    assert any(device.clipping_seconds(2 * SHORT_ROW) > most for device in gpu_model.DEVICES)
    assert any(device.clipping_seconds(SHORT_ROW) > least for device in gpu_model.DEVICES)
    a100 = gpu_model.DEVICES[0]
    assert a100.clipping_seconds(1000) == pytest.approx(8000 * 108 / 2.039e12)


@pytest.mark.parametrize("query", [0, 2], ids=["reptile", "maml"])
def test_multiples_of_a_step_equal_a_whole_trace(query: int) -> None:
    tasks, steps = 3, 3
    shapes = dataclasses.replace(tiny_shapes(), query=query, loss="non-saturating" if query else "wgan-gp")
    assert launches.plain_loop(shapes, tasks, steps) == launches.trace_plain_loop(shapes, tasks, steps)
    for how in ({"fused": False}, {"fused": True}, {"fused": True, "layers": True}):
        whole = launches.trace_executor_loop(shapes, tasks, steps, **how)
        assert launches.executor_loop(shapes, tasks, steps, **how) == whole


@pytest.mark.slow
def test_figr_with_8_tasks_launches_less() -> None:
    """Launches are counted: a fifteenth under vmap, and one as a graph."""
    case = next(case for case in workloads.CASES if case.name == "figr-8")
    assert (case.tasks, case.steps) == (8, 10)
    launched = {row.form: row.launches for row in gpu_model.rows("figr-8")}
    assert launched["plain loop"] > 15 * launched["and task layers"]
    assert launched["the same as a graph"] == 1


def test_rooflines() -> None:
    device = gpu_model.Device("d", multiprocessors=1, bandwidth=10.0, fp32=100.0, tf32=200.0, bf16=400.0, source="")
    assert device.seconds(50, 100, "fp32") == 5.0  # memory
    assert device.seconds(10, 800, "fp32") == 8.0  # arithmetic
    assert device.seconds(10, 800, "bf16") == 2.0
    for known in gpu_model.DEVICES:
        assert known.fp32 < known.tf32 < known.bf16
        assert "NVIDIA" in known.source


def test_multiply_adds_are_those_of_the_floor() -> None:
    """FIGR's DCGAN takes 37.2 G multiply-adds a task and step."""
    case = next(case for case in workloads.CASES if case.name == "figr")
    assert gpu_model.multiply_adds(dataclasses.replace(case, steps=1)) == pytest.approx(37.2e9, rel=0.01)


def test_the_sheet_says_that_it_is_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--gpu-model", "--cases", "sgd_step", "mlp-8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "model, not a measurement" in lines[0] and "model, not a measurement" in lines[-1]
    table = [line for line in lines if line.startswith(("sgd_step", "mlp-8"))]
    assert len(table) == 7
    assert all(line.count(" ms") == 9 for line in table)


@pytest.mark.parametrize("name", ["glyphs-32", "rgb-64", "memory-maml-32"])
def test_cases_without_a_model_have_no_rows(name: str) -> None:
    assert gpu_model.rows(name) == []
