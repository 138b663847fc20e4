"""MetaGAN: meta-steps, binding, adaptation, saving, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import metagan_fast as mgf
from networks import tiny_batch, tiny_gan
from support import assert_close

INNER = mgf.InnerLoop(lr=0.05, steps=2)


def make_learner(**settings: Any) -> mgf.MetaGAN:
    torch.manual_seed(1)
    settings = {"latent_dim": 6, "inner": INNER} | settings
    return mgf.MetaGAN(*tiny_gan(), **settings)


def parameters(learner: mgf.MetaGAN) -> Tensor:
    return torch.cat([learner.generator_parameters, learner.discriminator_parameters]).clone()


def test_reptile_with_sgd_moves_towards_the_mean_of_the_adapted() -> None:
    learner = make_learner(meta=mgf.Reptile(optimizer="sgd", lr=0.25))
    batch = tiny_batch(query=0)
    start = parameters(learner)
    adapted = learner.inner_loop(batch)
    mean = torch.cat([adapted.generator.double().mean(0), adapted.discriminator.double().mean(0)])
    learner.meta_step(batch)
    assert_close(parameters(learner) - start, 0.25 * (mean - start.double()), "float32-inner-step")
    assert learner.step == 1


def test_a_joint_step_moves_to_the_mean_of_the_adapted() -> None:
    learner = make_learner(meta=mgf.FOMAML(optimizer="adam", lr=0.1))
    batch = tiny_batch()
    adapted = learner.inner_loop(batch)
    mean = torch.cat([adapted.generator.double().mean(0), adapted.discriminator.double().mean(0)])
    start = parameters(learner)
    metrics = learner.joint_step(batch)
    assert_close(parameters(learner), mean, "float32-inner-step")
    assert metrics["gradient_norm"] == pytest.approx((mean - start.double()).norm().item(), rel=1e-4)
    assert not any(name.startswith("query") for name in metrics)
    assert learner.step == 1
    assert not any(buffer.any() for buffers in learner._state.buffers for buffer in buffers)
    again = make_learner(meta=mgf.FOMAML(optimizer="adam", lr=0.1))
    again.load_networks(learner.state()[0])
    again.step = 1
    learner.meta_step(batch)
    again.meta_step(batch)
    assert torch.equal(parameters(learner), parameters(again))  # the meta-optimizer starts afresh


def test_a_joint_step_has_its_own_inner_loop() -> None:
    inner = mgf.InnerLoop("adam", lr=0.02, steps=3, batch_size=1)
    learner, other = make_learner(), make_learner(inner=inner)
    batch = tiny_batch(query=0)
    for _ in range(2):
        learner.joint_step(batch, inner=inner)
        other.joint_step(batch)
    assert torch.equal(parameters(learner), parameters(other))
    assert learner.inner == INNER
    assert learner.meta_step(batch).keys() == other.meta_step(batch).keys()
    assert not torch.equal(parameters(learner), parameters(other))
    with pytest.raises(ValueError, match="InnerLoop"):
        learner.joint_step(batch, inner="adam")


def test_a_joint_step_that_diverges_changes_nothing() -> None:
    learner = make_learner(inner=mgf.InnerLoop(lr=1e30, steps=2))
    start = parameters(learner)
    with pytest.raises(FloatingPointError):
        learner.joint_step(tiny_batch(query=0))
    assert torch.equal(parameters(learner), start) and learner.step == 0


def test_a_mini_batch_with_every_image_equally_often_is_all_images_once() -> None:
    inner = mgf.InnerLoop(lr=0.05, steps=2, batch_size=2 * tiny_batch().shots, generated=5)
    learner = make_learner(loss="r1", inner=inner)
    batch = tiny_batch(query=0)
    doubled = mgf.TaskBatch(batch.support.repeat(1, 2, 1, 1, 1))
    assert learner.draw_noise(batch).support_index is None
    explained = learner.explain(batch.shots)
    once = learner.inner_loop(batch)
    learner.inner = dataclasses.replace(inner, batch_size=None)
    assert learner.explain(batch.shots) == explained
    twice = learner.inner_loop(doubled)
    assert_close(once.generator, twice.generator, "float32-inner-step")
    assert_close(once.discriminator, twice.discriminator, "float32-inner-step")
    learner.inner = dataclasses.replace(inner, generated=None)
    assert learner.draw_noise(batch).support_index is not None  # there are as many generated ones as real ones


def test_serial_reptile_updates_after_each_task() -> None:
    batch = tiny_batch(query=0)
    serial = make_learner(meta=mgf.Reptile(optimizer="sgd", lr=0.25, serial=True))
    noise = serial.draw_noise(batch)
    serial.meta_step(batch)
    by_hand = make_learner(meta=mgf.Reptile(optimizer="sgd", lr=0.25))
    for t in range(batch.tasks):
        by_hand.meta_step(batch.slice(t, t + 1), noise.slice(t, t + 1))
    assert torch.equal(parameters(serial), parameters(by_hand))
    assert serial.step == 1
    with pytest.raises(ValueError, match="serial Reptile"):
        serial.meta_gradient(batch)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_meta_optimizers_match_torch(optimizer: str) -> None:
    options: dict[str, Any] = {"sgd": {"momentum": 0.9}, "adam": {"betas": (0.5, 0.9)}, "adamw": {"weight_decay": 0.1}}[
        optimizer
    ]
    learner = make_learner(meta=mgf.Reptile(optimizer=optimizer, lr=mgf.schedules.Linear(0.1, 0.0, 4), **options))
    oracle = nn.Parameter(parameters(learner).double())
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    peer = kind([oracle], lr=0.1, **options)
    for step in range(3):
        batch = tiny_batch(query=0)
        gradient = learner.meta_gradient(batch)
        learner.meta_step(batch)
        peer.param_groups[0]["lr"] = 0.1 * (1 - step / 4)
        oracle.grad = torch.cat([gradient.generator, gradient.discriminator]).double()
        peer.step()
        assert_close(parameters(learner), oracle, "float32-rounding")


def test_clipping_bounds_each_network() -> None:
    batch = tiny_batch(query=0)
    start = parameters(make_learner())
    by_norm = make_learner(meta=mgf.Reptile(optimizer="sgd", lr=1.0, clip_norm=1e-3))
    metrics = by_norm.meta_step(batch)
    assert metrics["gradient_norm"] > 1e-2
    moved = (parameters(by_norm) - start).split([by_norm.generator_layout.numel, by_norm.discriminator_layout.numel])
    for part in moved:
        assert part.norm().item() == pytest.approx(1e-3, rel=1e-2)
    by_value = make_learner(meta=mgf.Reptile(optimizer="sgd", lr=1.0, clip_value=1e-4))
    by_value.meta_step(batch)
    assert (parameters(by_value) - start).abs().max() <= 1.001e-4


def test_metrics_are_means_over_tasks() -> None:
    batch = tiny_batch(query=2)
    learner = make_learner(meta=mgf.FOMAML())
    gradient = learner.meta_gradient(batch)
    metrics = learner.meta_step(batch)
    names = {"loss_discriminator", "loss_generator", "penalty", "query_loss_discriminator", "query_loss_generator"}
    assert set(metrics) == names | {"gradient_norm"}
    for name in names:
        assert gradient.metrics[name].shape == (3,)
        assert metrics[name] == pytest.approx(gradient.metrics[name].mean().item())
    norm = torch.cat([gradient.generator, gradient.discriminator]).norm().item()
    assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("executor", ["auto", "torch"])
def test_history_has_the_losses_of_every_inner_step(executor: str) -> None:
    learner = make_learner(executor=executor, inner=mgf.InnerLoop(lr=0.05, steps=3, critic_steps=2))
    batch = tiny_batch(tasks=2, query=0)
    history = learner.inner_loop(batch).history
    assert {name: losses.shape for name, losses in history.items()} == dict.fromkeys(
        ("loss_discriminator", "loss_generator"), (3, 2)
    )
    for step in range(3):
        metrics = learner.inner_loop(batch, steps=step + 1).metrics
        for name, losses in history.items():
            assert torch.equal(losses[step], metrics[name])


def test_applying_a_meta_gradient_is_a_meta_step() -> None:
    together, apart = (make_learner(meta=mgf.Reptile(optimizer="adam", lr=0.01, clip_norm=0.1)) for _ in range(2))
    for _ in range(2):
        batch = tiny_batch()
        metrics = together.meta_step(batch)
        assert apart.apply(apart.meta_gradient(batch)) == metrics
    assert torch.equal(parameters(apart), parameters(together))
    assert apart.step == together.step == 2


def test_reptile_reports_query_losses_where_there_are_query_images() -> None:
    batch = tiny_batch()
    metrics = make_learner().meta_step(batch)
    assert_close(
        torch.tensor(metrics["query_loss_generator"]),
        torch.tensor(make_learner(meta=mgf.FOMAML()).meta_step(batch)["query_loss_generator"]),
        "float32-rounding",
    )


def test_persistent_inner_state_is_one_long_adam_run() -> None:
    """With epsilon 1 the initialisation jumps to phi, so K steps twice with carried state are 2K steps."""
    images = tiny_batch(tasks=1, query=0)
    inner = mgf.InnerLoop("adam", lr=0.01, steps=2, inner_state="persist")
    learner = make_learner(inner=inner, meta=mgf.Reptile(optimizer="sgd", lr=1.0), loss="hinge")
    long = make_learner(inner=mgf.InnerLoop("adam", lr=0.01, steps=4), loss="hinge")
    reset = make_learner(
        inner=mgf.InnerLoop("adam", lr=0.01, steps=2), meta=mgf.Reptile(optimizer="sgd", lr=1.0), loss="hinge"
    )
    noise = long.draw_noise(images)
    halves = [
        mgf.Noise(noise.discriminator_latents[a:b], noise.generator_latents[a:b], noise.interpolation[a:b])
        for a, b in ((0, 2), (2, 4))
    ]
    for half in halves:
        learner.meta_step(images, half)
        reset.meta_step(images, half)
    adapted = long.inner_loop(images, noise)
    expected = torch.cat([adapted.generator[0], adapted.discriminator[0]])
    assert_close(parameters(learner), expected, "float32-rounding")
    assert not torch.allclose(parameters(reset), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="expected one task"):
        learner.meta_step(tiny_batch(tasks=2, query=0))


def test_modules_are_views_of_the_initialisation() -> None:
    learner = make_learner()
    weight = learner.generator[0].weight
    assert weight.data_ptr() == learner.generator_parameters.data_ptr()
    other = tiny_gan()[0]
    learner.generator.load_state_dict(other.state_dict())
    assert torch.equal(learner.generator_layout.flatten(other), learner.generator_parameters)
    before = weight.clone()
    learner.meta_step(tiny_batch(query=0))
    assert not torch.equal(weight, before)


def test_the_next_call_binds_again_after_a_move() -> None:
    learner = make_learner()
    batch = tiny_batch(query=0)
    learner.meta_step(batch)
    learner.generator.double()
    with pytest.raises(ValueError, match="both networks in one dtype"):
        learner.meta_step(batch)
    learner.discriminator.double()
    learner.meta_step(batch)
    assert learner.generator_parameters.dtype == torch.float64
    assert learner.generator[0].weight.data_ptr() == learner.generator_parameters.data_ptr()
    learner.discriminator.load_state_dict(tiny_gan()[1].double().state_dict(), assign=True)
    learner.meta_step(batch)
    assert learner.discriminator[0].weight.data_ptr() == learner.discriminator_parameters.data_ptr()


def test_persistent_inner_state_moves_with_the_modules() -> None:
    batch = tiny_batch(tasks=1, query=0)
    inner = mgf.InnerLoop("adam", lr=0.01, steps=2, inner_state="persist")
    moved, stayed = (make_learner(inner=inner, loss="hinge") for _ in range(2))
    for learner in (moved, stayed):
        learner.meta_step(batch)
    moved.generator.double()
    moved.discriminator.double()
    actual, expected = (learner.meta_gradient(batch).generator for learner in (moved, stayed))
    assert_close(actual, expected.double(), "float32-rounding")


@pytest.mark.parametrize("call", ["meta_step", "meta_gradient", "inner_loop"])
def test_a_call_looks_once_whether_the_modules_are_bound(call: str) -> None:
    learner, batch = make_learner(), tiny_batch()
    with mock.patch.object(mgf.FlatLayout, "is_bound", autospec=True, side_effect=mgf.FlatLayout.is_bound) as is_bound:
        getattr(learner, call)(batch)
    assert [seen.args[1] for seen in is_bound.call_args_list] == [learner.generator, learner.discriminator]


def test_adapt_is_deterministic_and_changes_nothing() -> None:
    learner = make_learner()
    images = tiny_batch(query=0).support[0]
    before = parameters(learner)
    a, b = learner.adapt(images, steps=3), learner.adapt(images, steps=3)
    assert torch.equal(a.sample(4), b.sample(4))
    assert not torch.equal(a.sample(4), a.sample(4, seed=1))
    assert a.sample(4).shape == (4, 1, 8, 8)
    assert torch.equal(parameters(learner), before)
    assert {"loss_discriminator", "loss_generator", "penalty"} == set(a.metrics)
    latents = mgf.noise.draw_sample_latents(1, 4, 6, seed=0)[0]
    assert_close(a.sample(4), a.generator(latents).detach(), "float32-rounding")
    unadapted = learner.adapt(images, steps=0)
    assert torch.equal(learner.generator_layout.flatten(unadapted.generator), learner.generator_parameters)


def test_sampling_many_tasks_at_once() -> None:
    learner = make_learner()
    batch = tiny_batch(query=0)
    adapted = learner.inner_loop(batch, steps=3)
    samples = learner.sample_tasks(adapted, 4, seed=2)
    assert samples.shape == (3, 4, 1, 8, 8)
    layout = learner.generator_layout
    generator = tiny_gan()[0]
    layout.bind(generator, adapted.generator[2].clone())
    latents = mgf.noise.draw_sample_latents(3, 4, 6, seed=2)[2]
    assert_close(samples[2], generator(latents).detach(), "float32-rounding")


@pytest.mark.parametrize("inner_state", ["reset", "persist"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_save_and_load_go_on_exactly(tmp_path: Path, optimizer: str, inner_state: Any) -> None:
    inner = mgf.InnerLoop("adam", lr=mgf.schedules.Cosine(0.01, 0.001, 2), steps=2, inner_state=inner_state)
    meta = mgf.Reptile(optimizer=optimizer, lr=mgf.schedules.Linear(0.5, 0.0, 9), clip_norm=1.0)
    learner = make_learner(inner=inner, meta=meta, loss=mgf.losses.WGANGP(weight=3, penalty_norm="pixel"), seed=7)
    batches = [tiny_batch(tasks=1, query=0) for _ in range(4)]
    for batch in batches[:2]:
        learner.meta_step(batch)
    learner.save(tmp_path / "run.safetensors")
    torch.manual_seed(99)
    resumed = mgf.MetaGAN.load(tmp_path / "run.safetensors", *tiny_gan())
    assert (resumed.inner, resumed.meta, resumed.loss, resumed.seed, resumed.step) == (inner, meta, learner.loss, 7, 2)
    for batch in batches[2:]:
        learner.meta_step(batch)
        resumed.meta_step(batch)
    assert torch.equal(parameters(resumed), parameters(learner))
    assert torch.equal(resumed.adapt(batches[0].support[0]).sample(2), learner.adapt(batches[0].support[0]).sample(2))


@pytest.mark.parametrize(
    "meta",
    [
        mgf.MAML(step_weights=mgf.AnnealedStepWeights(2, 10), first_order_steps=3),
        mgf.FOMAML(step_weights=(0.25, 0.75), generator_objective="initial"),
        mgf.MAML(step_weights="uniform", optimizer="adamw", weight_decay=0.1),
    ],
)
def test_algorithms_survive_saving(tmp_path: Path, meta: Any) -> None:
    make_learner(meta=meta).save(tmp_path / "run.safetensors")
    assert mgf.MetaGAN.load(tmp_path / "run.safetensors", *tiny_gan()).meta == meta


def test_loading_into_other_networks_changes_nothing(tmp_path: Path) -> None:
    make_learner().save(tmp_path / "run.safetensors")
    generator, discriminator = tiny_gan(latent_dim=7)
    with pytest.raises(ValueError, match=r"does not fit.*generator\.0\.weight"):
        mgf.MetaGAN.load(tmp_path / "run.safetensors", generator, discriminator)
    with pytest.raises(ValueError, match=r"does not fit.*meta"):
        mgf.MetaGAN.load(tmp_path / "run.safetensors", *tiny_gan(), meta=mgf.Reptile(optimizer="sgd"))
    with pytest.raises(mgf.CheckpointError, match=r"nothing\.safetensors"):
        mgf.MetaGAN.load(tmp_path / "nothing.safetensors", *tiny_gan())


def test_a_callable_of_ones_own_cannot_be_saved(tmp_path: Path) -> None:
    learner = make_learner(meta=mgf.Reptile(lr=lambda step: 0.1))
    learner.meta_step(tiny_batch(query=0))
    with pytest.raises(ValueError, match="rate that can be saved"):
        learner.save(tmp_path / "run.safetensors")


def test_a_diverging_inner_loop_leaves_the_initialisation_alone() -> None:
    learner = make_learner(inner=mgf.InnerLoop(lr=1e30, steps=3))
    before = parameters(learner)
    with pytest.raises(FloatingPointError, match="not finite; the initialisation is unchanged"):
        learner.meta_step(tiny_batch(query=0))
    assert torch.equal(parameters(learner), before)
    assert learner.step == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_dim": 0}, "latent_dim"),
        ({"executor": "gpu"}, "executor of auto, torch"),
        ({"precision": "fp8"}, "precision of"),
        ({"seed": -1}, "seed"),
        ({"loss": "wgan-pg"}, "wgan-gp"),
        ({"inner": mgf.InnerLoop("adam", inner_state="persist"), "meta": mgf.MAML()}, "inner_state"),
        ({"inner": INNER, "meta": mgf.FOMAML(step_weights=(1.0,))}, "2 numbers"),
        ({"inner": mgf.InnerLoop(generated=4)}, "expected generated=None with wgan-gp.*got 4 with batch_size=None"),
        ({"inner": mgf.InnerLoop(generated=4, batch_size=3), "loss": "figr"}, "generated=None with figr"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_learner(**settings)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mgf.InnerLoop("sdg"), "inner optimizer of sgd"),
        (lambda: mgf.InnerLoop(lr=-1.0), "lr"),
        (lambda: mgf.InnerLoop(lr=float("nan")), "lr"),
        (lambda: mgf.InnerLoop(steps=0), "steps"),
        (lambda: mgf.InnerLoop(batch_size=0), "batch_size"),
        (lambda: mgf.InnerLoop(generated=0), "generated"),
        (lambda: mgf.InnerLoop(generator_steps=0), "generator_steps"),
        (lambda: mgf.InnerLoop("sgd", momentum=0.9), "no momentum"),
        (lambda: mgf.InnerLoop("momentum", momentum=1.0), "momentum"),
        (lambda: mgf.InnerLoop(weight_decay=-1.0), "weight_decay"),
        (lambda: mgf.InnerLoop("adam", betas=(1.0, 0.9)), "betas"),
        (lambda: mgf.InnerLoop(inner_state="keep"), "inner_state"),  # type: ignore[arg-type]
        (lambda: mgf.Reptile(optimizer="lion"), "meta-optimizer"),
        (lambda: mgf.Reptile(clip_norm=0.0), "clip_norm"),
        (lambda: mgf.Reptile(momentum=0.9), "no momentum"),
        (lambda: mgf.MAML(generator_objective="both"), "generator_objective"),  # type: ignore[arg-type]
        (lambda: mgf.MAML(generator_objective="query", step_weights="uniform"), "step_weights=None"),
        (lambda: mgf.MAML(step_weights="last"), "step_weights"),
        (lambda: mgf.MAML(first_order_steps=-1), "first_order_steps"),
    ],
)
def test_values_out_of_range(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_pairs_of_an_interpolating_penalty_stay_pairs() -> None:
    learner = make_learner(loss="r1", inner=mgf.InnerLoop(generated=4))
    with pytest.raises(ValueError, match="expected generated=None with wgan-gp"):
        learner.loss = mgf.losses.get("wgan-gp")
    assert learner.loss == mgf.losses.get("r1")
    make_learner(loss="wgan-gp", inner=mgf.InnerLoop(generated=4, batch_size=4))


@pytest.mark.parametrize("name", ["reptile", "fomaml", "maml"])
def test_algorithms_by_name(name: str) -> None:
    learner = make_learner(meta=name)
    assert learner.meta == {"reptile": mgf.Reptile(), "fomaml": mgf.FOMAML(), "maml": mgf.MAML()}[name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"meta": "raptile"}, r"meta-algorithm of reptile, fomaml, maml, or an object such as .*got 'raptile'"),
        ({"meta": mgf.Reptile}, r"such as Reptile\(\)"),
        ({"inner": "sgd"}, r'InnerLoop\("sgd", lr=0\.01\), got \'sgd\''),
        ({"inner": mgf.InnerLoop}, "expected inner to be an InnerLoop"),
        ({"inner": {"steps": 3}}, "expected inner to be an InnerLoop"),
        ({"loss": mgf.losses.WGANGP}, "expected a loss of"),
    ],
)
def test_settings_of_another_kind(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_learner(**settings)
    with pytest.raises(ValueError, match=r"expected discriminator to be an nn\.Module"):
        mgf.MetaGAN(tiny_gan()[0], nn.Linear, latent_dim=6)  # type: ignore[arg-type]


def test_settings_are_assigned() -> None:
    """As if the learner had been built with them, where the executor does not depend on them."""
    learner = make_learner(seed=3)
    learner.meta = mgf.Reptile(lr=0.02)
    learner.seed = 5
    built = make_learner(seed=5, meta=mgf.Reptile(lr=0.02))
    batch = tiny_batch(query=0)
    assert learner.meta_step(batch) == built.meta_step(batch)
    assert torch.equal(parameters(learner), parameters(built))
    assert learner.state()[1] == built.state()[1]
    with pytest.raises(ValueError, match="seed"):
        learner.seed = -1
    with pytest.raises(ValueError, match="expected a loss of"):
        learner.loss = "wasserstein"  # type: ignore[assignment]
    assert learner.seed == 5 and learner.loss == built.loss


@pytest.mark.parametrize("executor", ["native", "torch"])
def test_assigned_settings_reach_the_executor(executor: str) -> None:
    changes = {"loss": mgf.losses.get("hinge"), "inner": mgf.InnerLoop("adam", lr=0.01, steps=2)}
    learner, batch = make_learner(executor=executor), tiny_batch(query=0)
    learner.meta_step(batch)
    built = make_learner(executor=executor)
    built.meta_step(batch)
    built = mgf.MetaGAN(built.generator, built.discriminator, **(vars(built._settings) | changes))
    built.step = 1
    for name, value in changes.items():
        setattr(learner, name, value)
    assert torch.equal(learner.inner_loop(batch).generator, built.inner_loop(batch).generator)
    with pytest.raises(ValueError, match=r"expected a meta-optimizer with 2 state buffers.*got 0 of 'sgd'"):
        learner.meta = mgf.Reptile("sgd", lr=0.1)


def test_arguments_of_another_kind() -> None:
    learner, batch = make_learner(), tiny_batch(query=0)
    calls: list[Any] = [learner.meta_step, learner.meta_gradient, learner.inner_loop, learner.draw_noise]
    for call in calls:
        with pytest.raises(TypeError, match=r"expected a TaskBatch, got Tensor; .*TaskBatch\(support=images\)"):
            call(batch.support)
    for call in calls[:3]:
        with pytest.raises(TypeError, match=r"expected a Noise or None, got Tensor; draw_noise\(batch\)"):
            call(batch, torch.zeros(3))
    with pytest.raises(TypeError, match="expected what meta_gradient returns, got InnerLoopResult"):
        learner.apply(learner.inner_loop(batch))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected what inner_loop returns, got AdaptedGAN"):
        learner.sample_tasks(learner.adapt(batch.support[0]), 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_adapt_takes_numpy_arrays(dtype: Any) -> None:
    learner = make_learner()
    array = tiny_batch(query=0).support[0].numpy().astype(dtype)
    array.flags.writeable = False
    expected = learner.adapt(torch.tensor(array.astype(np.float64))).sample(2)
    assert torch.equal(learner.adapt(array).sample(2), expected)
    flipped = learner.adapt(np.flip(array, 3)).sample(2)  # strides below zero
    assert torch.equal(learner.adapt(np.ascontiguousarray(np.flip(array, 3))).sample(2), flipped)


@pytest.mark.parametrize("executor", ["native", "torch"])
def test_images_that_adapt_refuses(executor: str) -> None:
    learner = make_learner(executor=executor)
    for shape in ((2, 3, 8, 8), (2, 1, 9, 9)):
        with pytest.raises(ValueError, match=r"images of shape \[1, 8, 8\], the batch holds .*; build the networks"):
            learner.adapt(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"got \[1, 8, 8\]; add a dimension: images\.unsqueeze\(0\) for one image"):
        learner.adapt(torch.zeros(1, 8, 8))
    for images in (np.zeros((2, 1, 8, 8), np.uint8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)):
        with pytest.raises(TypeError, match=r"must be floating, got .*uint8; bytes: images / 127\.5 - 1"):
            learner.adapt(images)
    with pytest.raises(ValueError, match=r"use images / 127\.5 - 1"):
        learner.adapt(torch.full((2, 1, 8, 8), 200.0))
    with pytest.raises(TypeError, match="must be a tensor or a NumPy array, got list"):
        learner.adapt([[0.0]])  # type: ignore[arg-type]


@pytest.mark.parametrize("executor", ["native", "torch"])
def test_networks_that_diverged_say_so(executor: str, caplog: pytest.LogCaptureFixture) -> None:
    learner = make_learner(executor=executor, inner=mgf.InnerLoop(lr=1e30, steps=3))
    batch = tiny_batch(query=0)
    with pytest.raises(FloatingPointError, match=r"adapted networks have parameters that are NaN.*lower the inner"):
        learner.adapt(batch.support[0])
    adapted = make_learner(executor=executor).adapt(batch.support[0])
    nn.init.constant_(adapted.generator[0].weight, float("nan"))  # type: ignore[index]
    with pytest.raises(FloatingPointError, match="makes images that are NaN or infinite: lower"):
        adapted.sample(2)
    rows = make_learner(executor=executor).inner_loop(batch)
    learner.sample_tasks(rows, 2)
    assert not caplog.records
    rows.generator[1] = float("nan")
    learner.sample_tasks(rows, 2)
    assert "images generated for tasks [1] are NaN or infinite: lower" in caplog.text


def test_batches_that_do_not_fit() -> None:
    learner = make_learner(meta=mgf.MAML())
    with pytest.raises(ValueError, match="MAML needs query images"):
        learner.meta_step(tiny_batch(query=0))
    with pytest.raises(ValueError, match=r"noise\.discriminator_latents"):
        noise = learner.draw_noise(tiny_batch(tasks=2))
        learner.meta_step(tiny_batch(tasks=3), noise)
    with pytest.raises(ValueError, match=r"image 1 of task 0.*NaN"):
        images = tiny_batch(query=0).support[0]
        images[1, 0, 3, 3] = float("nan")
        learner.adapt(images)
    with pytest.raises(ValueError, match=r"\[shots, channels, height, width\]"):
        learner.adapt(torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="steps to be at least 0"):
        learner.adapt(torch.zeros(2, 1, 8, 8), steps=-1)


@pytest.mark.parametrize("meta", [mgf.Reptile(), mgf.FOMAML(), mgf.MAML()], ids=lambda meta: meta.algorithm)
@pytest.mark.parametrize("executor", ["torch", "native"])
def test_the_default_dtype_changes_nothing(executor: str, meta: mgf.Reptile, float64_default: None) -> None:
    def train(default: torch.dtype) -> tuple[Tensor, Tensor]:
        torch.set_default_dtype(torch.float32)
        learner = make_learner(executor=executor, meta=meta, loss="non-saturating")
        batch = tiny_batch()
        torch.set_default_dtype(default)
        learner.meta_step(batch)
        return parameters(learner), learner.adapt(batch.support[0]).sample(3)

    for actual, wanted in zip(train(torch.float64), train(torch.float32), strict=True):
        assert actual.dtype == torch.float32
        assert torch.equal(actual, wanted)
