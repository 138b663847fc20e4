"""`metagan-fast bench --gpu-model`: launches, bytes and GPU rooflines, modelled from data sheets, not measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from metagan_fast.benchmarks import launches, operations, ops, workload_networks, workloads
from metagan_fast.benchmarks.launches import Shapes, Work
from torch._subclasses.fake_tensor import FakeTensorMode

from metagan_fast import InnerLoop
from metagan_fast.ops.clip_grad_norm import SHORT_ROW

TITLE = "model, not a measurement"


@dataclass(frozen=True)
class Device:
    """Peak rates of a GPU: bytes and dense operations a second (a multiply-add is two operations)."""

    name: str
    multiprocessors: int
    bandwidth: float
    fp32: float
    tf32: float
    bf16: float
    source: str

    def seconds(self, bytes: float, operations: float, precision: str) -> float:
        """Return the roofline: the longer of bytes over bandwidth and operations over peak."""
        return max(bytes / self.bandwidth, operations / getattr(self, precision))

    def clipping_seconds(self, elements: int) -> float:
        """Return the time of one multiprocessor to read and write a float32 row at its share of the bandwidth.

        Clipping reads the row twice; the second read hits a cache and is not counted.
        """
        return 2 * 4 * elements / (self.bandwidth / self.multiprocessors)


LAUNCH_SECONDS = 2e-6, 4e-6
"""Lowest and highest cost of a launch, assumed: data sheets do not give it."""
PRECISIONS = ("fp32", "tf32", "bf16")
# Half of the data sheet's tensor figures where those are with sparsity.
DEVICES = (
    Device("A100", 108, 2.039e12, 19.5e12, 156e12, 312e12, "NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM"),
    Device("H100", 132, 3.35e12, 67e12, 494.5e12, 989.5e12, "NVIDIA H100 Tensor Core GPU data sheet, SXM"),
    Device("H200", 132, 4.8e12, 67e12, 494.5e12, 989.5e12, "NVIDIA H200 Tensor Core GPU data sheet, SXM"),
)


@dataclass(frozen=True)
class Row:
    """One line of the sheet.

    Attributes:
        case: name of an op or a workload.
        form: the way it runs.
        launches, bytes: of one call, or of one meta-step's inner loops.
        operations: arithmetic operations, a multiply-add counted as two.
    """

    case: str
    form: str
    launches: int
    bytes: int
    operations: float

    def seconds(self, device: Device, precision: str) -> float:
        """Return the roofline time on a device."""
        return device.seconds(self.bytes, self.operations, precision)


def op_rows(case: ops.OpCase, numel: int = 1_000_000) -> list[Row]:
    """Return an op's rows as plain PyTorch and as fused kernel, on float32 rows of `numel` elements."""
    found = {}
    for contender in (ops.PLAIN, ops.OURS):
        with FakeTensorMode():
            run = case.contenders[contender](case.draw(numel))
            with launches.Trace() as trace:
                run()
        found[contender] = trace.work
    arithmetic = found[ops.OURS].operations
    return [
        Row(case.name, "plain", found[ops.PLAIN].launches, found[ops.PLAIN].bytes, arithmetic),
        Row(case.name, "fused", found[ops.OURS].launches, case.bytes(numel), arithmetic),
    ]


def workload_rows(case: workloads.WorkloadCase) -> list[Row]:
    """Return a workload's rows, one for each way to run one meta-step's inner loops.

    MAML's rows cover the meta-gradient: inner loops, query losses and the backward pass.
    """
    shapes = Shapes.of(case.workload, shots=case.shots, loss=case.loss, query=case.query)
    tasks, steps = case.tasks, case.steps
    arithmetic = 2 * multiply_adds(case)
    loop = launches.plain_loop(shapes, tasks, steps)
    vmapped = launches.executor_loop(shapes, tasks, steps, fused=False)
    fused = launches.executor_loop(shapes, tasks, steps)
    layers = launches.executor_loop(shapes, tasks, steps, layers=True)
    forms = {
        "plain loop": loop,
        "vmapped": vmapped,
        "vmapped, fused ops": fused,
        "and task layers": layers,
        "the same as a graph": Work(1, layers.bytes, layers.operations),
    }
    return [Row(case.name, form, work.launches, work.bytes, arithmetic) for form, work in forms.items()]


def multiply_adds(case: workloads.WorkloadCase) -> float:
    """Return the multiply-adds of one meta-step's inner loops."""
    with torch.device("meta"):
        generator, discriminator, latent_dim, image_shape = workload_networks.workload(case.workload)
        latents, images = torch.zeros(1, latent_dim), torch.zeros(1, *image_shape)
    costs = operations.cost(generator, latents), operations.cost(discriminator, images)
    if case.algorithm == "maml":
        return case.tasks * case.steps * operations.maml_step(*costs, case.shots)
    penalty = case.loss in workloads.PENALISED
    return case.tasks * case.steps * operations.inner_step(*costs, case.shots, penalty=penalty)


def sheet(names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the sheet for the named ops and workloads."""
    yield f"GPU model: {TITLE}"
    yield "Roofline: the longer of bytes / bandwidth and operations / peak; launches are not in it. Peaks:"
    for device in DEVICES:
        rates = ", ".join(f"{name} {getattr(device, name) / 1e12:g}" for name in PRECISIONS)
        yield f"  {device.name}: {device.bandwidth / 1e12:g} TB/s; TFLOP/s dense: {rates} ({device.source})"
    one = ", ".join(f"{1e6 * device.clipping_seconds(SHORT_ROW):.1f} us ({device.name})" for device in DEVICES)
    least, most = (1e6 * seconds for seconds in LAUNCH_SECONDS)
    yield f"Rows of at most {SHORT_ROW} elements (short rows) are clipped in one launch, each by one multiprocessor:"
    yield f"reading and writing one takes {one}; a launch is assumed to cost {least:g} to {most:g} us."
    columns = [f"{device.name} {precision}" for device in DEVICES for precision in PRECISIONS]
    yield f"{'case':22}{'form':22}{'launches':>9}{'MB':>10}{'GFLOP':>10}" + "".join(f"{c:>12}" for c in columns)
    for name in names:
        for row in rows(name):
            times = [row.seconds(device, precision) for device in DEVICES for precision in PRECISIONS]
            yield (
                f"{row.case:22}{row.form:22}{row.launches:9}{row.bytes / 1e6:10.1f}{row.operations / 1e9:10.3g}"
                + "".join(f"{1e3 * seconds:9.3g} ms" for seconds in times)
            )
    yield f"All times: {TITLE}. Workloads: the inner loops of one meta-step, their tensors in float32."


def rows(name: str) -> list[Row]:
    """Return the rows of one case, none for cases without a model.

    These are inner optimizers other than SGD, mini-batches, the busy machine, memory and drop-ins.
    """
    for op in ops.CASES:
        if op.name == name:
            short = [dataclasses.replace(row, form=f"{row.form}, short rows") for row in op_rows(op, SHORT_ROW)]
            long = op_rows(op)
            return long if [row.launches for row in short] == [row.launches for row in long] else [*short, *long]
    for workload in workloads.CASES:
        if workload.name == name and workload.inner == InnerLoop(steps=workload.steps):
            return workload_rows(workload)
    return []
