"""`metagan-fast bench --gpu-model`: launches, bytes and rooflines on GPUs. A model from data sheets, no measurement."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from metagan_fast.benchmarks import launches, operations, ops, workloads
from metagan_fast.benchmarks.launches import Shapes, Work
from torch._subclasses.fake_tensor import FakeTensorMode

from metagan_fast import models
from metagan_fast.ops._native import SHORT_ROW

TITLE = "model, not a measurement"


@dataclass(frozen=True)
class Device:
    """Peak figures of a GPU: bytes and operations a second, dense (a multiply-add is two operations)."""

    name: str
    multiprocessors: int
    bandwidth: float
    fp32: float
    tf32: float
    bf16: float
    source: str

    def seconds(self, bytes: float, operations: float, precision: str) -> float:
        """Return the roofline: the longer of moving the bytes and of computing at the peak."""
        return max(bytes / self.bandwidth, operations / getattr(self, precision))

    def clipping_seconds(self, elements: int) -> float:
        """Return how long one multiprocessor takes to read and write a float32 row at its share of the bandwidth.

        That it reads the row twice to clip it is not in it: the second time a cache has it.
        """
        return 2 * 4 * elements / (self.bandwidth / self.multiprocessors)


LAUNCH_SECONDS = 2e-6, 4e-6
"""What a launch costs at least and at most: assumed, as no data sheet has it."""
PRECISIONS = ("fp32", "tf32", "bf16")
# Where a data sheet gives tensor figures with sparsity, half of them is the dense peak.
DEVICES = (
    Device("A100", 108, 2.039e12, 19.5e12, 156e12, 312e12, "NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM"),
    Device("H100", 132, 3.35e12, 67e12, 494.5e12, 989.5e12, "NVIDIA H100 Tensor Core GPU data sheet, SXM"),
    Device("H200", 132, 4.8e12, 67e12, 494.5e12, 989.5e12, "NVIDIA H200 Tensor Core GPU data sheet, SXM"),
)


@dataclass(frozen=True)
class Row:
    """One line of the sheet.

    Attributes:
        case: an op or a workload.
        form: how it is run.
        launches, bytes: of one call, or of the inner loops of one meta-step.
        operations: arithmetic, a multiply-add counted as two.
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
    """Return an op on rows of a length as plain PyTorch and as our kernels, in float32."""
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
    """Return the forms in which the inner loops of one meta-step of a workload run, and their floor.

    Of MAML that is the meta-gradient: the inner loops, the query losses and the way back.
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
    """Return the multiply-adds that the inner loops of one meta-step need."""
    with torch.device("meta"):
        generator, discriminator, latent_dim, image_shape = models.workload(case.workload)
        latents, images = torch.zeros(1, latent_dim), torch.zeros(1, *image_shape)
    costs = operations.cost(generator, latents), operations.cost(discriminator, images)
    if case.algorithm == "maml":
        return case.tasks * case.steps * operations.maml_step(*costs, case.shots)
    penalty = case.loss in workloads.PENALISED
    return case.tasks * case.steps * operations.inner_step(*costs, case.shots, penalty=penalty)


def sheet(names: Sequence[str]) -> Iterator[str]:
    """Return the lines of the sheet for ops and workloads by name."""
    yield f"GPU model: {TITLE}"
    yield "Roofline: the longer of bytes / bandwidth and operations / peak; launches are not in it. Peaks:"
    for device in DEVICES:
        rates = ", ".join(f"{name} {getattr(device, name) / 1e12:g}" for name in PRECISIONS)
        yield f"  {device.name}: {device.bandwidth / 1e12:g} TB/s; TFLOP/s dense: {rates} ({device.source})"
    one = ", ".join(f"{1e6 * device.clipping_seconds(SHORT_ROW):.1f} us ({device.name})" for device in DEVICES)
    least, most = (1e6 * seconds for seconds in LAUNCH_SECONDS)
    yield f"Short rows, of at most {SHORT_ROW} elements, are clipped in one launch, by one multiprocessor each."
    yield f"Its share of the bandwidth moves as many in {one}; a launch is taken to cost {least:g} to {most:g} us."
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
    """Return the rows of one case; none where there is no model of it (a busy machine, drop-ins)."""
    for op in ops.CASES:
        if op.name == name:
            short = [dataclasses.replace(row, form=f"{row.form}, short rows") for row in op_rows(op, SHORT_ROW)]
            long = op_rows(op)
            return long if [row.launches for row in short] == [row.launches for row in long] else [*short, *long]
    for workload in workloads.CASES:
        if workload.name == name:
            return workload_rows(workload)
    return []
