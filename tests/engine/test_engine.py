"""The C++ engine against float64 autograd: four passes of whole networks, inner loops, meta-gradients."""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from metagan_fast.benchmarks.baselines import plain
from metagan_fast.benchmarks.problem import smooth_copy
from torch import nn

import metagan_fast as mgf
from engine_passes import autograd_passes, draw_passes, engine_passes
from layer_cases import Case
from metagan_fast import _native
from metagan_fast.flat import FlatLayout
from support import assert_close, relative_error

if not _native.is_available()[0]:
    pytest.skip("the extension is not installed", allow_module_level=True)

IMAGES = 3


def layers() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=2, dilation=2),
        nn.GroupNorm(2, 6),
        nn.SiLU(),
        nn.ConvTranspose2d(6, 5, 3, stride=2, padding=1, output_padding=1),
        nn.InstanceNorm2d(5, affine=True),
        nn.ELU(),
        nn.PixelShuffle(1),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.GELU(),
        nn.AvgPool2d(3, stride=1, padding=1),
        nn.Softplus(),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.LayerNorm(3),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(30, 7),
        nn.PReLU(7),
        nn.GELU("tanh"),
    )


def dcgan(part: int, **options: Any) -> Callable[[], nn.Module]:
    return lambda: mgf.models.dcgan(**options)[part]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layers": (layers, (3, 9, 11)),
    "mlp-generator": (lambda: mgf.models.workload("mlp-8").generator, (32,)),
    "mlp-discriminator": (lambda: mgf.models.workload("mlp-8").discriminator, (1, 8, 8)),
    "dcgan-generator": (dcgan(0, image_size=(12, 20), channels=3, width=5, blocks=2, latent_dim=7), (7,)),
    "dcgan-discriminator": (dcgan(1, image_size=(12, 20), channels=3, width=5, blocks=2), (3, 12, 20)),
    "resnet-generator": (lambda: mgf.models.resnet(16, width=4, blocks=2, latent_dim=10)[0], (10,)),
    "resnet-discriminator": (lambda: mgf.models.resnet(16, width=4, blocks=2)[1], (1, 16, 16)),
    "batch-norm-generator": (lambda: mgf.models.classic_dcgan(16, width=8, latent_dim=16)[0], (16,)),
    "batch-norm-discriminator": (lambda: mgf.models.classic_dcgan(16, width=8)[1], (1, 16, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_four_passes_equal_double_backward(name: str, isa: str) -> None:
    build, shape = NETWORKS[name]
    case = Case(build(), shape, IMAGES)
    given = draw_passes(case)
    found = engine_passes(case, given, threads=2)
    for key, expected in autograd_passes(case, given).items():
        assert_close(found[key], expected, "engine-pass")


GANS: dict[str, Callable[[], tuple[nn.Module, nn.Module, int]]] = {
    "dcgan": lambda: mgf.models.workload("dcgan-16")[:3],
    # Where PReLU is near its kink, correct meta-gradients differ (docs/tuning.md, "MAML checks on smooth networks").
    "smooth-dcgan": lambda: (*map(smooth_copy, mgf.models.workload("dcgan-16")[:2]), GANS["dcgan"]()[2]),
    "resnet": lambda: (*map(smooth_copy, mgf.models.resnet(16, width=4, blocks=2, latent_dim=10)), 10),
    "batch-norm": lambda: (*mgf.models.classic_dcgan(16, width=8, latent_dim=16), 16),
}


def learner(executor: str, dtype: torch.dtype = torch.float32, gan: str = "dcgan", **settings: Any) -> mgf.MetaGAN:
    torch.manual_seed(0)
    generator, discriminator, latent_dim = GANS[gan]()
    return mgf.MetaGAN(
        generator.to(dtype), discriminator.to(dtype), latent_dim=latent_dim, executor=executor, **settings
    )


def batch(tasks: int = 3) -> mgf.TaskBatch:
    random = torch.Generator().manual_seed(1)
    support, query = (torch.rand(tasks, 4, 1, 16, 16, generator=random) * 2 - 1 for _ in range(2))
    return mgf.TaskBatch(support, query)


ZERO_CENTERED = ("real", "fake", "both")


def zero_centered(location: Any, **options: Any) -> mgf.losses.Loss:
    return mgf.losses.NonSaturating(penalty=mgf.losses.ZeroCenteredPenalty(10.0, location), **options)


@pytest.mark.parametrize(
    ("gan", "loss"),
    [
        *(("dcgan", loss) for loss in mgf.losses.NAMES),
        ("resnet", "wgan-gp"),
        ("batch-norm", "wgan-gp"),
        # Real or fake images that are the penalty's points too, and others that are not.
        ("resnet", "r1"),
        ("dcgan", zero_centered("fake")),
        ("dcgan", mgf.losses.RelativisticAverage(penalty=mgf.losses.ZeroCenteredPenalty(10.0))),
        *(("batch-norm", zero_centered(at, separate_batches=apart)) for at in ZERO_CENTERED for apart in (0, 1)),
    ],
    ids=str,
)
def test_one_inner_step_is_as_exact_as_the_torch_executor(gan: str, loss: str | mgf.losses.Loss) -> None:
    inner = mgf.InnerLoop(steps=1)
    results = {}
    for name, executor, dtype in (
        ("native", "native", torch.float32),
        ("torch", "torch", torch.float32),
        ("exact", "torch", torch.float64),
    ):
        subject = learner(executor, dtype, gan, loss=loss, inner=inner)
        adapted = subject.inner_loop(batch())
        results[name] = (
            adapted.generator - subject.generator_parameters,
            adapted.discriminator - subject.discriminator_parameters,
        )
    for native, usual, exact in zip(*(results[name] for name in ("native", "torch", "exact")), strict=True):
        assert relative_error(native, exact) <= max(3 * relative_error(usual, exact), 2e-4 if loss == "wgan" else 1e-4)


@pytest.mark.parametrize(
    ("optimizer", "batch_size"),
    [("sgd", None), ("momentum", None), ("adam", None), ("rmsprop", None), ("sgd", 3), ("sgd", 6)],
)
def test_inner_loop_equals_the_plain_loop(optimizer: str, batch_size: int | None) -> None:
    inner = mgf.InnerLoop(steps=3, optimizer=optimizer, lr=1e-4, eps=1e-3, batch_size=batch_size)
    subject = learner("native", loss="non-saturating", inner=inner)
    adapted = subject.inner_loop(batch())
    exact = learner("torch", torch.float64, loss="non-saturating", inner=inner).inner_loop(batch())
    assert_close(
        adapted.generator - subject.generator_parameters, exact.generator - subject.generator_parameters, "engine-loop"
    )
    assert_close(
        adapted.discriminator - subject.discriminator_parameters,
        exact.discriminator - subject.discriminator_parameters,
        "engine-loop",
    )


GENERATOR_SIDE: dict[str, dict[str, Any]] = {
    "more-generated": {"generated": 6, "critic_steps": 2, "generator_steps": 2},
    "fewer-generated": {"generated": 2, "batch_size": 3},
}


@pytest.mark.parametrize("options", GENERATOR_SIDE.values(), ids=GENERATOR_SIDE)
@pytest.mark.parametrize(
    ("gan", "loss"),
    [
        ("resnet", "r1"),
        ("resnet", zero_centered("fake")),
        ("resnet", "relativistic-average"),
        ("resnet", mgf.losses.RelativisticPaired(penalty=mgf.losses.ZeroCenteredPenalty(10.0, "both"))),
        *(("batch-norm", zero_centered(at, separate_batches=apart)) for at in ZERO_CENTERED for apart in (0, 1)),
    ],
    ids=str,
)
def test_images_and_updates_of_the_generator_equal_float64_autograd(
    gan: str, loss: str | mgf.losses.Loss, options: dict[str, Any]
) -> None:
    settings = {"gan": gan, "loss": loss, "inner": mgf.InnerLoop(steps=2, lr=1e-2, **options)}
    tasks = mgf.TaskBatch(batch().support)
    native = learner("native", **settings).meta_gradient(tasks)
    exact = learner("torch", torch.float64, **settings).meta_gradient(tasks)
    for name in ("generator", "discriminator"):
        assert_close(getattr(native, name), getattr(exact, name), "engine-loop")
    for name, value in native.metrics.items():
        assert_close(value, exact.metrics[name], "engine-maml")


@pytest.mark.parametrize(
    ("gan", "separate", "objective", "options"),
    [
        ("resnet", False, "support", "more-generated"),
        ("batch-norm", False, "support", "more-generated"),
        ("batch-norm", False, "query", "fewer-generated"),
        ("batch-norm", True, "query", "more-generated"),
    ],
)
def test_maml_of_the_generators_images_and_updates_equals_float64_autograd(
    gan: str, separate: bool, objective: Any, options: str
) -> None:
    loss = mgf.losses.NonSaturating(separate_batches=separate)
    inner = mgf.InnerLoop("momentum", steps=2, lr=1e-2, **GENERATOR_SIDE[options])
    settings = {"gan": gan, "loss": loss, "meta": mgf.MAML(generator_objective=objective), "inner": inner}
    native = learner("native", **settings).meta_gradient(batch())
    exact = learner("torch", torch.float64, **settings).meta_gradient(batch())
    assert_close(native.generator, exact.generator, "engine-maml")
    assert_close(native.discriminator, exact.discriminator, "engine-maml")


def test_wgan_gp_inner_loop_is_within_ten_times_the_plain_loop() -> None:
    subject = learner("native", inner=mgf.InnerLoop(steps=5))
    tasks = batch()
    noise = subject.draw_noise(tasks)
    adapted = subject.inner_loop(tasks, noise)
    networks = (subject.generator, subject.discriminator)
    usual = plain.inner_loop(*copy.deepcopy(networks), tasks.support, noise, steps=5)
    doubles = tuple(copy.deepcopy(network).double() for network in networks)
    exact = plain.inner_loop(*doubles, tasks.support.double(), noise.to(dtype=torch.float64), steps=5)
    for part, name in enumerate(("generator", "discriminator")):
        layout = getattr(subject, f"{name}_layout")
        start = getattr(subject, f"{name}_parameters").double()
        change, usual_change = (
            torch.stack([layout.flatten(module).double() for module in modules[part]]) - start
            for modules in (exact, usual)
        )
        own = relative_error(usual_change, change)
        assert relative_error(getattr(adapted, name).double() - start, change) <= max(10 * own, 1e-5)


@pytest.mark.parametrize(
    ("loss", "meta", "inner"),
    [
        ("non-saturating", {}, {}),
        ("least-squares", {}, {"optimizer": "momentum", "weight_decay": 0.01}),
        ("hinge", {"generator_objective": "initial"}, {"critic_steps": 2}),
        ("wgan", {}, {}),
        ("non-saturating", {"generator_objective": "query"}, {"critic_steps": 2}),
        ("least-squares", {"generator_objective": "query"}, {"optimizer": "momentum", "weight_decay": 0.01}),
        ("wgan", {"generator_objective": "query"}, {}),
    ],
)
def test_maml_equals_float64_autograd(loss: str, meta: dict[str, Any], inner: dict[str, Any]) -> None:
    settings = {"loss": loss, "meta": mgf.MAML(**meta), "inner": mgf.InnerLoop(steps=3, lr=1e-2, **inner)}
    settings["gan"] = "dcgan" if loss == "wgan" else "smooth-dcgan"  # clipping is a kink of its own
    native = learner("native", **settings).meta_gradient(batch())
    exact = learner("torch", torch.float64, **settings).meta_gradient(batch())
    assert_close(native.generator, exact.generator, "engine-maml")
    assert_close(native.discriminator, exact.discriminator, "engine-maml")


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("gan", ["resnet", "batch-norm"])
def test_maml_of_branches_and_batch_statistics_equals_float64_autograd(gan: str, separate: bool) -> None:
    loss = mgf.losses.NonSaturating(separate_batches=separate)
    settings = {"gan": gan, "loss": loss, "meta": mgf.MAML(), "inner": mgf.InnerLoop(steps=2, lr=1e-2)}
    native = learner("native", **settings).meta_gradient(batch())
    exact = learner("torch", torch.float64, **settings).meta_gradient(batch())
    assert_close(native.generator, exact.generator, "engine-maml")
    assert_close(native.discriminator, exact.discriminator, "engine-maml")


@pytest.mark.parametrize("objective", ["support", "query"])
def test_fomaml_with_a_penalty_equals_float64_autograd(objective: Any) -> None:
    meta = mgf.FOMAML(generator_objective=objective)
    settings = {"loss": "r1", "meta": meta, "inner": mgf.InnerLoop(steps=2)}
    native = learner("native", **settings).meta_gradient(batch())
    exact = learner("torch", torch.float64, **settings).meta_gradient(batch())
    assert_close(native.generator, exact.generator, "engine-maml")
    assert_close(native.discriminator, exact.discriminator, "engine-maml")


def test_tasks_together_or_one_by_one_give_the_same_bytes() -> None:
    subject = learner("native", inner=mgf.InnerLoop(steps=2))
    tasks = batch()
    noise = subject.draw_noise(tasks)
    together = subject.inner_loop(tasks, noise).generator
    for task in range(tasks.tasks):
        alone = subject.inner_loop(tasks.slice(task, task + 1), noise.slice(task, task + 1)).generator
        assert torch.equal(together[task], alone[0])


def memory_of_a_thread(workload: str, loss: str, steps: int, **inner: Any) -> int:
    generator, discriminator, latent_dim, _ = mgf.models.workload(workload)
    learner = mgf.MetaGAN(
        generator,
        discriminator,
        latent_dim=latent_dim,
        loss=loss,
        inner=mgf.InnerLoop(steps=steps, **inner),
        meta=mgf.MAML(),
        executor="native",
    )
    return int(learner.explain(4).split("optimizer state, ")[1].split(" ")[0].replace(",", ""))


def test_memory_of_maml_grows_by_parameters_alone() -> None:
    generator, discriminator, *_ = mgf.models.workload("dcgan-32")
    state = 4 * sum(FlatLayout.from_module(module).numel for module in (generator, discriminator))
    three, five = (memory_of_a_thread("dcgan-32", "non-saturating", steps) for steps in (3, 5))
    assert five - three == 2 * state
    assert five < 45e6  # the plain loop's graph of five steps takes 270 MB
    assert memory_of_a_thread("dcgan-32", "non-saturating", 3, optimizer="momentum") == three + 3 * state


@contextmanager
def interrupted_after(seconds: float, timer: int = signal.ITIMER_REAL) -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread after `seconds` of the timer's clock."""
    number = signal.SIGPROF if timer == signal.ITIMER_PROF else signal.SIGALRM
    before = signal.signal(number, signal.default_int_handler)
    signal.setitimer(timer, seconds)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(number, before)


@pytest.mark.parametrize("tasks", [1, 3])
def test_control_c_stops_a_call(tasks: int) -> None:
    generator, discriminator, latent_dim, image_shape = mgf.models.workload("dcgan-32")
    learner = mgf.MetaGAN(
        generator, discriminator, latent_dim=latent_dim, inner=mgf.InnerLoop(steps=3000), executor="native"
    )
    batch = mgf.TaskBatch(torch.zeros(tasks, 4, *image_shape))
    noise = learner.draw_noise(batch)
    with interrupted_after(0.2):
        start = time.monotonic()
        learner.inner_loop(batch, noise=noise)  # a minute and more
    assert time.monotonic() - start < 5  # 0.1 s on an idle machine
    learner.adapt(batch.support[0], steps=1)  # the engine can be used again


def test_control_c_stops_the_first_maml_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred states of 35 MB are not cleared beforehand. CPU time of the process is compared."""
    monkeypatch.setenv("METAGAN_FAST_THREADS", "1")
    inner, networks = mgf.InnerLoop(steps=100), mgf.models.mlp((1, 8, 8), 32, (2048, 2048))
    learner = mgf.MetaGAN(
        *networks, latent_dim=32, loss="non-saturating", inner=inner, meta=mgf.MAML(), executor="native"
    )
    batch = mgf.TaskBatch(torch.zeros(1, 4, 1, 8, 8), torch.zeros(1, 4, 1, 8, 8))
    noise = learner.draw_noise(batch)
    with interrupted_after(0.1, signal.ITIMER_PROF):
        start = time.process_time()
        learner.meta_gradient(batch, noise=noise)
    assert time.process_time() - start < 1.1


def test_control_c_stops_a_call_that_waits_for_another_thread() -> None:
    """The engine serves one call at a time; an interrupted second call ends before the first does."""
    subject = learner("native", inner=mgf.InnerLoop(steps=400))
    tasks = batch(tasks=1)
    noise = subject.draw_noise(tasks)
    first = threading.Thread(target=subject.inner_loop, args=(tasks, noise))
    first.start()
    time.sleep(0.05)
    with interrupted_after(0.1):
        subject.inner_loop(tasks, noise)
    assert first.is_alive()
    first.join()
