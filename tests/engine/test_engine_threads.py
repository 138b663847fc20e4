"""The engine's threads: the same bytes for any number of them, in a forked child too, and no memory for idle ones."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metagan_fast as mgf
from engine_passes import draw_passes, engine_passes, plan_of
from layer_cases import Case
from metagan_fast import _native
from support import THREAD_COUNTS

if not _native.is_available()[0]:
    pytest.skip("the extension is not installed", allow_module_level=True)

MODELS = mgf.models
Gan = tuple[nn.Module, nn.Module]
GANS: dict[str, tuple[Callable[[], Gan], int]] = {  # image size
    "mlp": (lambda: MODELS.mlp((1, 8, 8), 16, (32, 32)), 8),
    "dcgan-4": (lambda: MODELS.dcgan(16, width=4, blocks=2, latent_dim=16), 16),
    "dcgan-16": (lambda: MODELS.dcgan(16, width=16, blocks=1, latent_dim=16), 16),
    "dcgan-32": (lambda: MODELS.dcgan(8, width=32, blocks=1, latent_dim=16), 8),
    "resnet-4": (lambda: MODELS.resnet(16, width=4, blocks=2, latent_dim=16), 16),
    "batch-norm": (lambda: MODELS.classic_dcgan(16, width=8, latent_dim=16), 16),
}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("gan", GANS)
def test_four_passes_give_the_same_bytes_for_any_number_of_threads(gan: str, precision: str) -> None:
    build, size = GANS[gan]
    for module, shape in zip(build(), ((16,), (1, size, size)), strict=True):
        case = Case(module, shape, 4)
        given = draw_passes(case)
        plan = plan_of(case)
        expected = engine_passes(case, given, precision=precision, plan=plan)
        for threads in THREAD_COUNTS[1:]:
            found = engine_passes(case, given, threads=threads, precision=precision, plan=plan)
            for name, value in expected.items():
                assert torch.equal(found[name], value), f"{name} with {threads} threads"


def learner_and_batch(gan: str, tasks: int, steps: int = 1, **settings: Any) -> tuple[mgf.MetaGAN, mgf.TaskBatch]:
    torch.manual_seed(0)
    build, size = GANS[gan]
    inner = mgf.InnerLoop(steps=steps)
    learner = mgf.MetaGAN(*build(), latent_dim=16, inner=inner, executor="native", **settings)
    images = torch.rand(2, tasks, 4, 1, size, size) * 2 - 1
    return learner, mgf.TaskBatch(images[0], images[1])


SETTINGS: dict[str, dict[str, Any]] = {
    "wgan-gp": {},
    "maml": {"loss": "non-saturating", "meta": mgf.MAML()},
    "maml, query": {"loss": "non-saturating", "meta": mgf.MAML(generator_objective="query")},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("gan", "tasks"), [("dcgan-4", 1), ("dcgan-4", 5), ("dcgan-32", 1), ("mlp", 65)])
def test_meta_gradients_are_the_same_bytes_for_any_number_of_threads(
    gan: str, tasks: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, batch = learner_and_batch(gan, tasks, **settings)
    noise = learner.draw_noise(batch)

    def gradient(threads: int) -> Tensor:
        monkeypatch.setenv("METAGAN_FAST_THREADS", str(threads))
        found = learner.meta_gradient(batch, noise=noise)
        return torch.cat((found.generator, found.discriminator))

    expected = gradient(1)
    for threads in (*THREAD_COUNTS[1:], 10**30):
        assert torch.equal(gradient(threads), expected), f"{threads} threads"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and the processors of a process")
def test_threads_beyond_the_processors_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAGAN_FAST_THREADS", "1024")
    tasks, hidden = 48, 512
    networks = MODELS.mlp((1, 8, 8), 16, (hidden, hidden))
    learner = mgf.MetaGAN(
        *networks,
        latent_dim=16,
        loss="non-saturating",
        inner=mgf.InnerLoop(steps=2),
        meta=mgf.MAML(),
        executor="native",
    )
    batch = mgf.TaskBatch(torch.zeros(tasks, 1, 1, 8, 8), torch.zeros(tasks, 1, 1, 8, 8))
    noise = learner.draw_noise(batch)
    state = 4 * (learner.generator_layout.numel + learner.discriminator_layout.numel)
    before = resident_bytes()
    learner.meta_gradient(batch, noise=noise)
    # A worker holds about 5 states, a sum one more: 48 workers hold 290 states of 4.4 MB.
    workers = min(tasks, len(os.sched_getaffinity(0)))
    assert resident_bytes() - before < (8 * workers + 16) * state


def inner_loop_in_child(learner: mgf.MetaGAN, batch: mgf.TaskBatch, noise: mgf.Noise, expected: Tensor) -> None:
    for _ in range(2):
        assert torch.equal(learner.inner_loop(batch, noise=noise).generator, expected)


@contextmanager
def kept_busy(call: Callable[[], object]) -> Iterator[None]:
    """Repeat a call in another thread."""
    ends = threading.Event()
    began = threading.Event()

    def work() -> None:
        while not ends.is_set():
            began.set()
            call()

    thread = threading.Thread(target=work)
    thread.start()
    began.wait()
    try:
        yield
    finally:
        ends.set()
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("tasks", [1, 3])
def test_a_child_forked_while_another_thread_is_in_the_engine(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child has no thread that could release a lock held by the parent's other thread."""
    monkeypatch.setenv("METAGAN_FAST_THREADS", "2")
    learner, batch = learner_and_batch("dcgan-4", tasks, steps=3)
    noise = learner.draw_noise(batch)
    expected = learner.inner_loop(batch, noise=noise).generator
    context = multiprocessing.get_context("fork")
    with kept_busy(lambda: learner.inner_loop(batch, noise=noise)):
        for _ in range(4):
            child = context.Process(target=inner_loop_in_child, args=(learner, batch, noise, expected), daemon=True)
            child.start()
            child.join(timeout=20)
            hangs = child.is_alive()
            child.kill()
            child.join()
            assert not hangs
            assert child.exitcode == 0
            time.sleep(0.003)  # at another point of the other thread's call
    assert torch.equal(learner.inner_loop(batch, noise=noise).generator, expected)  # the parent still works


def test_tasks_that_overtake_one_another_leave_memory_to_the_one_whose_turn_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An ordered sum over tasks parks early results; a thread delayed before it gets a buffer must still get one."""
    monkeypatch.setenv("METAGAN_FAST_THREADS", "2")
    networks = MODELS.mlp((1, 8, 8), 16, (8,))
    learner = mgf.MetaGAN(*networks, latent_dim=16, inner=mgf.InnerLoop(steps=1), executor="native")
    batch = mgf.TaskBatch(torch.rand(65, 1, 1, 8, 8))
    noise = learner.draw_noise(batch)

    def work() -> None:
        for _ in range(60):
            learner.meta_gradient(batch, noise=noise)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert not thread.is_alive()
