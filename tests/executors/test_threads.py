"""Several threads: building learners beside other work, one learner for all, locks that survive copies and forks."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

import metagan_fast as mgf
from metagan_fast._utils.draws import draws_from_seed
from metagan_fast._utils.lock import Lock
from metagan_fast.executors.native.lowering import make_plan
from metagan_fast.training import config
from networks import tiny_batch, tiny_gan

INNER = mgf.InnerLoop(lr=0.05, steps=2)
PATIENCE = 60.0  # seconds before a waiting thread gives up


def nothing() -> None:
    """Do nothing."""


class Meeting(nn.Module):
    """A generator that calls a function in the middle of its forward pass."""

    def __init__(self, meanwhile: Callable[[], object] = nothing) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 64)
        self.meanwhile = meanwhile

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.linear(latents)
        self.meanwhile()
        return hidden.tanh().unflatten(1, (1, 8, 8))


def in_thread(function: Callable[[], Any]) -> Any:
    """Run a function in another thread and return its result."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(PATIENCE)


@pytest.fixture
def unpatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore `nn.Module` after the test."""
    for name in ("__call__", "__getattr__"):
        monkeypatch.setattr(nn.Module, name, getattr(nn.Module, name))


@pytest.mark.usefixtures("unpatched")
def test_modules_of_other_threads_run_while_a_learner_is_built() -> None:
    plain = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    expected = plain(torch.ones(1, 2))
    results: list[Any] = []
    generator = Meeting(lambda: results.append(in_thread(lambda: plain(torch.ones(1, 2)))))
    mgf.MetaGAN(generator, tiny_gan()[1], latent_dim=6)
    assert results and all(type(result) is Tensor and torch.equal(result, expected) for result in results)


@pytest.mark.usefixtures("unpatched")
def test_learners_built_at_the_same_time_leave_modules_as_they_were() -> None:
    """The first to begin is the first to end: neither thread may restore what the other saved."""

    def of_the_process() -> list[Any]:
        return [nn.Module.__call__, nn.Module.__getattr__, *warnings.filters, is_in_torch_dispatch_mode()]

    before = of_the_process()
    first_inside, second_inside, first_done = (threading.Event() for _ in range(3))

    def in_first() -> None:
        first_inside.set()
        assert second_inside.wait(PATIENCE)

    def in_second() -> None:
        second_inside.set()
        assert first_done.wait(PATIENCE)

    def build(meanwhile: Callable[[], object]) -> mgf.MetaGAN:
        return mgf.MetaGAN(Meeting(meanwhile), tiny_gan()[1], latent_dim=6)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(build, in_first)
        assert first_inside.wait(PATIENCE)
        second = pool.submit(build, in_second)
        first.result(PATIENCE)
        first_done.set()
        second.result(PATIENCE)
    assert before == of_the_process()
    assert nn.Linear(2, 2)(torch.ones(1, 2)).shape == (1, 2)


def test_building_a_learner_does_not_import_the_compiler() -> None:
    """PyTorch imports it for its own dispatch modes, which takes a second."""
    code = """
import sys, metagan_fast as mgf
generator, discriminator, latent_dim, _ = mgf.models.workload("mlp-8")
mgf.MetaGAN(generator, discriminator, latent_dim=latent_dim, executor="native")
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.path.dirname(__file__))


def test_many_threads_build_learners_and_run_modules() -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    inputs = torch.randn(3, 4)
    expected = plain(inputs)
    done = threading.Event()

    def run() -> int:
        count = 0
        while not done.is_set():
            assert torch.equal(plain(inputs), expected)
            count += 1
        return count

    def build(executor: str) -> str:
        return mgf.MetaGAN(*tiny_gan(), latent_dim=6, executor=executor).explain()

    with ThreadPoolExecutor(5) as pool:
        runners = [pool.submit(run) for _ in range(2)]
        try:
            texts = list(pool.map(build, ["auto", "torch", "auto", "auto"] * 2, timeout=PATIENCE))
        finally:
            done.set()
        assert all(runner.result(PATIENCE) for runner in runners)
    assert texts[0] == texts[2] == texts[3]


def plan(generator: nn.Module, discriminator: nn.Module) -> None:
    """Trace the generator."""
    make_plan(generator, mgf.FlatLayout.from_module(generator), (6,))


def adapt(generator: nn.Module, discriminator: nn.Module) -> None:
    """Adapt on the torch executor, which looks for random draws in the first call."""
    mgf.MetaGAN(generator, discriminator, latent_dim=6, executor="torch").adapt(torch.zeros(2, 1, 8, 8), steps=1)


@pytest.mark.parametrize("run", [plan, adapt])
def test_draws_of_other_threads_are_neither_undone_nor_taken_for_the_modules(run: Callable[..., None]) -> None:
    drawn: list[Tensor] = []
    networks = Meeting(lambda: drawn.append(in_thread(lambda: torch.rand(1)))), tiny_gan()[1]
    torch.manual_seed(5)
    expected = torch.rand(100)
    torch.manual_seed(5)
    run(*networks)
    found = torch.cat([*drawn, torch.rand(1)])
    assert len(found) > 1 and torch.equal(found, expected[: len(found)])


def test_fresh_weights_of_a_seed_are_those_of_manual_seed() -> None:
    torch.manual_seed(3)
    expected = mgf.models.dcgan(8, 1, 2, 2, 5)
    state = torch.get_rng_state()
    with draws_from_seed(3):
        found = mgf.models.dcgan(8, 1, 2, 2, 5)
    assert torch.equal(torch.get_rng_state(), state)
    for ours, theirs in zip(found, expected, strict=True):
        assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_networks_of_a_run_are_built_from_the_seed_whatever_other_threads_draw() -> None:
    settings = config.resolve(config.from_preset("quick"))
    expected = config.build_networks(settings, (1, 16, 16), seed=7)[0]
    original = nn.Linear.reset_parameters

    def drawing_beside(layer: nn.Linear) -> None:
        in_thread(lambda: torch.rand(3))
        original(layer)

    with mock.patch.object(nn.Linear, "reset_parameters", drawing_beside):
        found = config.build_networks(settings, (1, 16, 16), seed=7)[0]
    assert all(map(torch.equal, found.parameters(), expected.parameters()))


@pytest.mark.parametrize("executor", ["torch", "native"])
def test_adapting_from_several_threads_gives_what_one_thread_gives(executor: str) -> None:
    learner = mgf.MetaGAN(*tiny_gan(), latent_dim=6, inner=INNER, executor=executor)
    images = [torch.rand(2, 1, 8, 8) * 2 - 1 for _ in range(4)]

    def adapt(image: Tensor) -> tuple[Tensor, Tensor]:
        adapted = learner.adapt(image)
        return learner.generator_layout.flatten(adapted.generator), adapted.sample(2)

    alone = [adapt(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(adapt, images * 3))
    for (params, samples), (expected, expected_samples) in zip(together, alone * 3, strict=True):
        assert torch.equal(params, expected) and torch.equal(samples, expected_samples)


def test_calls_that_are_inside_the_module_at_the_same_time_do_not_mix() -> None:
    barrier = threading.Barrier(2)
    meets = False

    def meanwhile() -> None:
        if meets:
            barrier.wait(PATIENCE)

    learner = mgf.MetaGAN(Meeting(meanwhile), tiny_gan()[1], latent_dim=6, inner=INNER, executor="torch")
    images = [torch.rand(2, 1, 8, 8) * 2 - 1 for _ in range(2)]
    adapted = [learner.adapt(image) for image in images]
    samples = [gan.sample(2) for gan in adapted]
    meets = True
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(learner.adapt, images))
        sampled = list(pool.map(lambda gan: gan.sample(2), adapted))
    for ours, theirs in zip(together, adapted, strict=True):
        assert all(map(torch.equal, ours.generator.parameters(), theirs.generator.parameters()))
        assert all(map(torch.equal, ours.discriminator.parameters(), theirs.discriminator.parameters()))
    assert all(map(torch.equal, sampled, samples))


@pytest.mark.parametrize("reader", ["adapt", "save"])
def test_other_threads_see_the_initialisation_between_two_updates(reader: str, tmp_path: Any) -> None:
    learner = mgf.MetaGAN(*tiny_gan(), latent_dim=6, inner=INNER)
    batch = tiny_batch(query=0)
    initial = learner.generator_parameters.clone(), learner.discriminator_parameters.clone()
    original = mgf.Reptile.step
    started, threads, seen = threading.Event(), [], []

    def read() -> None:
        started.set()
        if reader == "adapt":
            adapted = learner.inner_loop(batch.slice(0, 1), steps=0)
            seen.append((adapted.generator[0], adapted.discriminator[0]))
        else:
            learner.save(tmp_path / "learner")
            saved = mgf.MetaGAN.load(tmp_path / "learner", *tiny_gan())
            seen.append((saved.generator_parameters, saved.discriminator_parameters))

    def step(meta: mgf.Reptile, *args: Any, **options: Any) -> tuple[Tensor, ...]:
        result = original(meta, *args, **options)
        if not threads:  # the generator has been updated, the discriminator has not
            threads.append(threading.Thread(target=read))
            threads[0].start()
            assert started.wait(PATIENCE)
            threads[0].join(0.3)
        return result

    with mock.patch.object(mgf.Reptile, "step", step):
        learner.meta_step(batch)
    threads[0].join(PATIENCE)
    final = learner.generator_parameters, learner.discriminator_parameters
    assert len(seen) == 1 and any(all(map(torch.equal, seen[0], state)) for state in (initial, final))


def test_meta_steps_of_several_threads_run_one_after_another() -> None:
    batch = tiny_batch(query=0)
    networks = tiny_gan()
    together, alone = (
        mgf.MetaGAN(*copy.deepcopy(networks), latent_dim=6, inner=INNER, executor="torch") for _ in range(2)
    )
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(together.meta_step, [batch] * 3))
    for _ in range(3):
        alone.meta_step(batch)
    assert together.step == alone.step == 3
    assert torch.equal(together.generator_parameters, alone.generator_parameters)


def test_a_lock_is_copied_and_pickled_as_a_free_one() -> None:
    lock = Lock()
    with lock:
        for other in (copy.deepcopy(lock), pickle.loads(pickle.dumps(lock))):
            assert in_thread(lambda other=other: other._lock.acquire(timeout=PATIENCE))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_lock_that_another_thread_holds_during_a_fork_is_free_in_the_child() -> None:
    lock = Lock()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            assert release.wait(PATIENCE)

    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(hold)
        assert held.wait(PATIENCE)
        child = os.fork()
        if child == 0:
            os._exit(0 if lock._lock.acquire(timeout=5) else 1)
        try:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        finally:
            release.set()
        holder.result(PATIENCE)
