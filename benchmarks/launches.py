"""Count the kernel launches and bytes of PyTorch code on a GPU by tracing its operators.

A trace needs only shapes, so it runs on tensors without memory: large networks are counted on any machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from metagan_fast.benchmarks import workload_networks
from metagan_fast.benchmarks.baselines import meta_gradients, plain
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import metagan_fast as mgf
from metagan_fast._utils.pair import Pair
from metagan_fast.executors.torch.layers import dispatch as layers
from metagan_fast.noise import Noise, NoiseShape
from metagan_fast.ops._op import OPS
from metagan_fast.ops.clip_grad_norm import SHORT_ROW

# Operators that launch no kernel: views, bookkeeping, allocation.
SILENT = {
    *("alias", "as_strided", "chunk", "detach", "diagonal", "expand", "narrow", "permute", "select", "slice", "split"),
    *("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view", "_unsafe_view"),
    *("_reshape_alias", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
}
MOVING = {"clone", "copy_", "_to_copy", "cat", "stack", "fill_", "zeros", "ones", "full", "zeros_like", "ones_like"}


@dataclass(frozen=True)
class Work:
    """Launches, memory traffic and element-wise work of a computation.

    Attributes:
        launches: kernels, one an operator; libraries may use more for one convolution.
        bytes: inputs read plus outputs written, each tensor once an operator.
        operations: the larger of the elements that arithmetic operators read and write; the multiply-adds of matrix
            products and convolutions are counted by `operations.cost` instead.
    """

    launches: int = 0
    bytes: int = 0
    operations: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.launches + other.launches, self.bytes + other.bytes, self.operations + other.operations)

    def __sub__(self, other: Work) -> Work:
        return self + -1 * other

    def __rmul__(self, times: int) -> Work:
        return Work(times * self.launches, times * self.bytes, times * self.operations)


class Trace(TorchDispatchMode):
    """Sum the work of all operators that run inside the context.

    Args:
        fused: count an op of `metagan_fast.functional` or a pass of a per-task layer as one kernel launch that
            touches each tensor once; False: count the operators of its plain PyTorch form.
    """

    def __init__(self, *, fused: bool = True) -> None:
        super().__init__()
        self.work = Work()
        self._fused = fused
        self._patches = ExitStack()

    def __enter__(self) -> Trace:
        if self._fused:
            for name, op in OPS.items():
                self._patches.enter_context(patch.object(op, "plain", self._as_one(name, op.plain)))
            passes = {key: self._as_one(key, run) for key, run in layers.PLAIN.items()}
            self._patches.enter_context(patch.dict(layers.PLAIN, passes))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def _as_one(self, op: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*operands: Any, out: tuple[Tensor, ...] | None = None, **options: Any) -> Any:
            before = self.work
            results = function(*operands, **options) if out is None else function(*operands, out=out, **options)
            arithmetic = self.work.operations - before.operations
            written = (results, operands[1]) if options.get("zero_grads") else results
            launches = _launches(op, operands, options)
            self.work = before + Work(launches, _bytes((operands, options)) + _bytes(written), arithmetic)
            return results

        return run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "aten" and name not in SILENT:
            given = (args, kwargs)
            elements = 0 if name in MOVING else max(_elements(given), _elements(result))
            self.work += Work(1, _bytes(given) + _bytes(result), elements)
        return result


def _launches(op: Any, operands: Any, options: Any) -> int:
    """Return a fused op's launches on a GPU: one, or two where a reduction must finish first.

    Clipping sums the squares of long rows in a separate launch, and of all rows if the step also zeroes gradients.
    """
    if op == "clip_grad_norm" or options.get("max_norm") is not None:
        return 2 if operands[0].shape[-1] > SHORT_ROW or options.get("zero_grads") else 1
    return 2 if op == ("task_layer_norm", "backward_twice") else 1


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _bytes(tree: Any) -> int:
    """Return the bytes of all tensors; an expanded dimension counts once."""
    return sum(x.element_size() * _stored(x) for x in _tensors(tree))


def _stored(x: Tensor) -> int:
    return prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride != 0)


def _elements(tree: Any) -> int:
    return max((x.numel() for x in _tensors(tree)), default=0)


@dataclass(frozen=True)
class Shapes:
    """Networks on the meta device, and the sizes of their inner loop.

    With query images the traced loop is MAML's meta-gradient: inner steps, query losses and the backward pass.
    """

    generator: nn.Module
    discriminator: nn.Module
    latent_dim: int
    image_shape: tuple[int, ...]
    shots: int = 4
    loss: str = "wgan-gp"
    query: int = 0

    @classmethod
    def of(cls, workload: str, **sizes: Any) -> Shapes:
        """Build a workload's networks without memory."""
        with torch.device("meta"):
            generator, discriminator, latent_dim, image_shape = workload_networks.workload(workload)
        return cls(generator, discriminator, latent_dim, image_shape, **sizes)

    def noise(self, tasks: int, steps: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the noise."""
        return NoiseShape(tasks, self.shots, self.latent_dim, steps, query=self.query).tensors()

    def images(self, tasks: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of support images and, for MAML, query images."""
        counts = (self.shots, self.query) if self.query else (self.shots,)
        return tuple((tasks, count, *self.image_shape) for count in counts)


def plain_loop(shapes: Shapes, tasks: int, steps: int) -> Work:
    """Return the work of the plain loop's inner loops, extrapolated from traces of one task and step, and two of each.

    Beside the setup, every task costs the same and every step costs the same, so the extrapolation is exact.
    """
    one, longer, wider = (trace_plain_loop(shapes, *sizes) for sizes in ((1, 1), (1, 2), (2, 1)))
    return one + (tasks - 1) * (wider - one) + tasks * (steps - 1) * (longer - one)


def trace_plain_loop(shapes: Shapes, tasks: int, steps: int) -> Work:
    """Trace the whole plain loop, with `foreach` optimizers, PyTorch's default on a GPU."""
    noise = SimpleNamespace(
        **{name: torch.empty(size, device="meta") for name, size in shapes.noise(tasks, steps).items()}
    )
    networks = shapes.generator, shapes.discriminator
    support, *query = (torch.empty(size, device="meta") for size in shapes.images(tasks))
    with Trace() as trace:
        if query:
            meta_gradients.maml_gradient(*networks, support, query[0], noise, loss=shapes.loss, steps=steps, lr=1e-3)
        else:
            plain.inner_loop(*networks, support, noise, loss=shapes.loss, steps=steps, foreach=True)
    return trace.work


def executor_loop(shapes: Shapes, tasks: int, steps: int, *, fused: bool = True, layers: bool = False) -> Work:
    """Return the work of the torch executor's inner loops, extrapolated from traces of one step and of two."""
    one, two = (trace_executor_loop(shapes, tasks, count, fused=fused, layers=layers) for count in (1, 2))
    step = two - one
    return one - step + steps * step


def trace_executor_loop(shapes: Shapes, tasks: int, steps: int, *, fused: bool = True, layers: bool = False) -> Work:
    """Trace the torch executor's whole inner loops.

    `layers`: run linear layers, convolutions and layer norms as per-task layers, as on a GPU. Networks that vmap does
    not support raise vmap's error.
    """
    inner = mgf.InnerLoop(steps=steps)
    networks = shapes.generator, shapes.discriminator
    settings: dict[str, Any] = {
        "latent_dim": shapes.latent_dim,
        "loss": shapes.loss,
        "inner": inner,
        "executor": "torch",
    }
    # The check for random draws compares the generator's state, which fake tensors do not have.
    learner = mgf.MetaGAN(*networks, **settings, allow_random=True)
    executor: Any = learner._executor
    modules = executor._generator, executor._discriminator
    for module in modules:
        module.vectorized = True  # skip the probe of vmap support
    with FakeTensorMode():
        layouts = Pair(learner.generator_layout, learner.discriminator_layout)
        initial = layouts.map(lambda layout: torch.empty(layout.numel))
        support, *query = (torch.empty(size) for size in shapes.images(tasks))
        batch = mgf.TaskBatch.trusted(support, query[0] if query else None)
        noise = Noise(**{name: torch.empty(size) for name, size in shapes.noise(tasks, steps).items()})
        inputs = noise.discriminator_latents[0, 0], support
        with patch.dict(os.environ, {"METAGAN_FAST_TASK_LAYERS": "on" if layers else "off"}):
            for module, x, params in zip(modules, inputs, initial, strict=True):
                module(params.expand(tasks, -1), x)  # the first pass finds the layers to fuse
            with Trace(fused=fused) as trace:
                if query:
                    mgf.MAML().meta_gradient(executor, initial, batch, noise, meta_step=0)
                else:
                    executor.inner_loop(initial, batch, noise)
    return trace.work
