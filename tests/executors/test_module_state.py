"""Modules with state, changed after the learner was built, with shared layers, on one image, in inference mode."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import metagan_fast as mgf
from metagan_fast._utils import log
from metagan_fast._utils.modules import Snapshot
from networks import tiny_batch, tiny_gan
from support import assert_close

INNER = mgf.InnerLoop(lr=0.05, steps=2)
EXECUTORS = ["native", "torch"]


def make_learner(generator: nn.Module, discriminator: nn.Module, **settings: Any) -> mgf.MetaGAN:
    return mgf.MetaGAN(generator, discriminator, latent_dim=6, inner=INNER, **settings)


def images(shots: int = 3) -> Tensor:
    return torch.rand(shots, 1, 8, 8) * 2 - 1


def state(learner: mgf.MetaGAN) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.state()[0].items()}


# State that forward changes


class Centred(nn.Module):
    """Subtract a running mean of the inputs, kept in `write`'s way."""

    def __init__(self, write: Callable[[Centred, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 1)
        self.register_buffer("mean", torch.full((64,), 0.1))
        self.plain = torch.full((64,), 0.1)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.linear(x - self.write(self, 0.5 * x.detach().mean(0)))


def replaced(module: Centred, change: Tensor) -> Tensor:
    """Replace the buffer."""
    module.mean = 0.5 * module.mean + change
    return module.mean


def in_place(module: Centred, change: Tensor) -> Tensor:
    """Overwrite the buffer."""
    return module.mean.mul_(0.5).add_(change)


def attribute(module: Centred, change: Tensor) -> Tensor:
    """Replace a tensor that is no buffer."""
    module.plain = 0.5 * module.plain + change
    return module.plain


def attribute_in_place(module: Centred, change: Tensor) -> Tensor:
    """Overwrite a tensor that is no buffer."""
    return module.plain.mul_(0.5).add_(change)


def in_training_alone(module: Centred, change: Tensor) -> Tensor:
    """Overwrite the buffer where gradients are wanted."""
    if torch.is_grad_enabled():
        return in_place(module, change)
    return 0.5 * module.mean + change


def pure(module: Centred, change: Tensor) -> Tensor:
    """Keep nothing: the oracle."""
    return 0.5 * module.mean + change


WRITES = [replaced, in_place, in_training_alone, attribute, attribute_in_place]


def normalised(norm: Callable[..., nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), norm(nn.Linear(64, 8)), nn.LeakyReLU(0.2), norm(nn.Linear(8, 1)))


STATEFUL: dict[str, Callable[[], nn.Module]] = {
    **{write.__name__: (lambda write=write: Centred(write)) for write in WRITES},
    "spectral norm": lambda: normalised(parametrizations.spectral_norm),
    "old spectral norm": lambda: normalised(spectral_norm),
    "old weight norm": lambda: normalised(weight_norm),
    "instance norm": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3, track_running_stats=True), nn.Flatten(), nn.Linear(108, 1)
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", STATEFUL)
def test_a_module_that_changes_itself_changes_nothing_else(kind: str) -> None:
    """Neither the learner nor other tasks or the next call see the change."""
    learner = make_learner(tiny_gan()[0], STATEFUL[kind](), executor="torch")
    batch = tiny_batch(query=0)
    before = state(learner)
    first = learner.inner_loop(batch)
    again = learner.inner_loop(batch)
    alone = learner.inner_loop(batch.slice(1, 2))
    assert torch.equal(first.discriminator, again.discriminator)
    assert_close(alone.discriminator[0], first.discriminator[1], "float32-rounding")
    adapted = learner.adapt(images())
    adapted.discriminator(adapted.sample(2))
    after = state(learner)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    learner.meta_step(batch)
    assert all(
        torch.equal(value, before[f"discriminator.{name}"]) for name, value in learner.discriminator.named_buffers()
    )


def test_a_resumed_run_of_a_module_that_changes_itself_is_the_uninterrupted_one(tmp_path: Path) -> None:
    generator, discriminator = tiny_gan()[0], STATEFUL["spectral norm"]()
    learner = make_learner(generator, discriminator)
    batch = tiny_batch(query=0)
    learner.meta_step(batch)
    learner.save(tmp_path / "learner")
    learner.meta_step(batch)
    resumed = mgf.MetaGAN.load(tmp_path / "learner", tiny_gan()[0], STATEFUL["spectral norm"]())
    resumed.meta_step(batch)
    before, after = state(learner), state(resumed)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("write", WRITES)
def test_each_call_starts_from_the_state_in_the_module(write: Callable[..., Tensor]) -> None:
    generator, discriminator = tiny_gan()[0], Centred(write)
    oracle = Centred(pure)
    oracle.load_state_dict(discriminator.state_dict())
    batch = tiny_batch(query=0)
    found, expected = (
        make_learner(copy.deepcopy(generator), module).inner_loop(batch) for module in (discriminator, oracle)
    )
    assert_close(found.discriminator, expected.discriminator, "float32-rounding")
    assert_close(found.generator, expected.generator, "float32-rounding")


def test_writes_to_a_buffer_are_named_in_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    log._said.clear()
    learner = make_learner(tiny_gan()[0], nn.Sequential(nn.Identity(), Centred(in_place)))
    with caplog.at_level(logging.WARNING):
        learner.adapt(images())
        learner.adapt(images())
    lines = [record.message for record in caplog.records if "buffer" in record.message]
    assert len(lines) == 1 and "the discriminator writes its buffer '1.mean'" in lines[0]


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_old_weight_norm_is_the_new_one() -> None:
    generator = tiny_gan()[0]
    old, new = normalised(weight_norm), normalised(parametrizations.weight_norm)
    names = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    for layer in ("1", "3"):
        for ours, theirs in (*names.items(), ("bias", "bias")):
            new.get_parameter(f"{layer}.{theirs}").data = old.get_parameter(f"{layer}.{ours}").detach().clone()
    task = images()
    found, expected = (make_learner(copy.deepcopy(generator), module).adapt(task) for module in (old, new))
    fake = found.sample(3)
    assert_close(fake, expected.sample(3), "float32-rounding")
    assert_close(found.discriminator(fake), expected.discriminator(fake), "float32-rounding")
    with torch.no_grad():
        assert not torch.equal(found.discriminator(fake), old(fake))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_instance_norm_leaves_running_statistics_alone(executor: str) -> None:
    tracked = STATEFUL["instance norm"]()
    plain = nn.Sequential(tracked[0], nn.InstanceNorm2d(3), *tracked[2:])
    generator, batch = tiny_gan()[0], tiny_batch(query=0)
    found, expected = (
        make_learner(copy.deepcopy(generator), copy.deepcopy(module), executor=executor).inner_loop(batch)
        for module in (tracked, plain)
    )
    assert_close(found.discriminator, expected.discriminator, "float32-rounding")


# Changes after the learner was built


class Leaky(nn.Module):
    """A discriminator with attributes that decide what it computes."""

    def __init__(self, slope: float = 0.2) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 1)
        self.slope = slope
        self.settings = {"scale": [1.0]}
        self.activation: nn.Module = nn.Tanh()
        self.hooked = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.first(x.flatten(1)), self.slope)
        return self.last(self.activation(hidden)) * self.settings["scale"][0]


def _set_slope(module: Leaky) -> None:
    module.slope = 0.7


def _set_inside(module: Leaky) -> None:
    module.settings["scale"][0] = 3.0


def _replace_layer(module: Leaky) -> None:
    module.activation = nn.Sigmoid()


def _add_hook(module: Leaky) -> None:
    module.first.register_forward_hook(lambda layer, args, output: output * 2)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("change", [_set_slope, _set_inside, _replace_layer, _add_hook])
def test_a_learner_follows_changes_of_its_modules(change: Callable[[Leaky], None], executor: str) -> None:
    generator, discriminator = tiny_gan()[0], Leaky()
    late = make_learner(copy.deepcopy(generator), copy.deepcopy(discriminator), executor=executor)
    batch = tiny_batch(query=0)
    before = late.inner_loop(batch)
    change(late.discriminator)
    change(discriminator)
    found = late.inner_loop(batch)
    expected = make_learner(generator, discriminator, executor=executor).inner_loop(batch)
    assert torch.equal(found.discriminator, expected.discriminator)
    assert not torch.equal(found.discriminator, before.discriminator)


def test_values_of_buffers_and_other_tensors_are_read_where_they_lie() -> None:
    generator, discriminator = tiny_gan()[0], Centred(lambda module, change: module.mean + module.plain)
    learner = make_learner(generator, discriminator)
    batch = tiny_batch(query=0)
    before = learner.inner_loop(batch)
    for tensor in (discriminator.mean, discriminator.plain):
        tensor.mul_(2)
    found = learner.inner_loop(batch)
    expected = make_learner(generator, discriminator).inner_loop(batch)
    assert torch.equal(found.discriminator, expected.discriminator)
    assert not torch.equal(found.discriminator, before.discriminator)


def test_an_adapted_gan_follows_changes_of_its_generator() -> None:
    class Scaled(nn.Sequential):
        scale = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    adapted = make_learner(Scaled(*tiny_gan()[0]), tiny_gan()[1]).adapt(images())
    before = adapted.sample(3)
    adapted.generator.scale = 0.5
    assert_close(adapted.sample(3), 0.5 * before, "float32-rounding")


def test_a_change_that_the_named_executor_cannot_run_is_an_error_until_it_is_undone() -> None:
    learner = make_learner(tiny_gan()[0], Leaky(), executor="native")
    task = images()
    expected = learner.adapt(task).sample(2)
    learner.discriminator.activation = nn.Mish()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"executor=\"native\" cannot run this.*Mish"):
            learner.adapt(task)
    learner.discriminator.activation = nn.Tanh()
    assert torch.equal(learner.adapt(task).sample(2), expected)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_other_parameters_ask_for_another_learner(executor: str) -> None:
    learner = make_learner(tiny_gan()[0], Leaky(), executor=executor)
    learner.discriminator.first = nn.Linear(64, 9)
    learner.discriminator.last = nn.Linear(9, 1)
    with pytest.raises(ValueError, match=r"the discriminator's parameters to keep .*build another MetaGAN"):
        learner.adapt(images())


def test_a_layer_of_the_same_parameters_is_taken_over() -> None:
    learner = make_learner(tiny_gan()[0], Leaky())
    layer = nn.Linear(64, 8)
    learner.discriminator.first = layer
    expected = layer.weight.detach().clone()
    learner.adapt(images(), steps=0)
    views = learner.discriminator_layout.views(learner.discriminator_parameters)
    assert torch.equal(views["first.weight"], expected)


def test_snapshots_tell_what_changed() -> None:
    module = Leaky()
    snapshot = Snapshot(module)
    with torch.no_grad():
        module.first.weight.mul_(2)
    module.slope = float("0.2")
    assert snapshot.is_current()
    module.train(False)
    assert not snapshot.is_current()
    module.train(True)
    assert snapshot.is_current()
    module.extra = 1
    assert not snapshot.is_current()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_snapshot_goes_with_its_module(copied: Callable[[Any], Any]) -> None:
    module = Leaky()
    module, snapshot = copied((module, Snapshot(module)))
    assert snapshot.is_current()
    module.slope = 0.7
    assert not snapshot.is_current() and not copied(snapshot).is_current()


# Layers that both networks have


def test_a_layer_of_both_networks_is_named() -> None:
    shared = nn.Linear(4, 4)
    generator = nn.Sequential(nn.Linear(6, 4), shared, nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)))
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), shared, nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"generator's parameter '1.weight' is the discriminator's '2.weight' too"):
        make_learner(generator, discriminator)
    discriminator[2] = nn.Linear(4, 4)
    discriminator[2].weight = nn.Parameter(shared.weight)
    with pytest.raises(ValueError, match=r"'1.weight' is the discriminator's '2.weight' too.*copy.deepcopy"):
        make_learner(generator, discriminator)
    discriminator[2] = copy.deepcopy(shared)
    learner = make_learner(generator, discriminator)
    learner.meta_step(tiny_batch(query=0))
    learner.discriminator[2] = shared
    with pytest.raises(ValueError, match=r"'1.weight' is the discriminator's '2.weight' too"):
        learner.adapt(images())


# A single image


def batch_norm_gan(where: str) -> tuple[nn.Module, nn.Module]:
    norms = {name: nn.BatchNorm1d(8) if name == where else nn.Identity() for name in ("generator", "discriminator")}
    generator = nn.Sequential(
        nn.Linear(6, 8), norms["generator"], nn.ReLU(), nn.Linear(8, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8))
    )
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), norms["discriminator"], nn.ReLU(), nn.Linear(8, 1))
    return generator, discriminator


@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("where", ["generator", "discriminator"])
def test_batch_norm_refuses_a_single_image(where: str, executor: str, first: int) -> None:
    learner = make_learner(*batch_norm_gan(where), executor=executor)
    if first > 1:  # findings of a first call with more images must not matter
        learner.adapt(images(first))
    message = f"the {where} normalises over the images of a batch and got a single one; expected at least 2"
    with pytest.raises(ValueError, match=message):
        learner.adapt(images(1))
    adapted = learner.adapt(images(2))
    if where == "generator":
        with pytest.raises(ValueError, match=message):
            adapted.sample(1)
    else:
        assert adapted.sample(1).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_batch_norm_refuses_a_single_query_image(executor: str) -> None:
    learner = make_learner(*batch_norm_gan("discriminator"), executor=executor, loss="hinge", meta=mgf.MAML())
    with pytest.raises(ValueError, match="the discriminator normalises over the images of a batch"):
        learner.meta_step(tiny_batch(query=1))
    learner.meta_step(tiny_batch(query=2))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_real_and_a_generated_image_are_two_where_they_always_pass_together(executor: str) -> None:
    learner = make_learner(*batch_norm_gan("discriminator"), executor=executor, loss="relativistic-average")
    assert learner.adapt(images(1)).sample(1).isfinite().all()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_batch_norm_counts_the_generated_images(executor: str) -> None:
    def learner(generated: int, **options: Any) -> mgf.MetaGAN:
        learner = make_learner(
            *batch_norm_gan("discriminator"), executor=executor, loss=mgf.losses.NonSaturating(**options)
        )
        learner.inner = mgf.InnerLoop(steps=1, generated=generated)
        return learner

    assert learner(2).adapt(images(1)).sample(1).isfinite().all()
    message = "the discriminator normalises over the images of a batch and got a single one"
    with pytest.raises(ValueError, match=message):
        learner(1).adapt(images(3))
    for options in ({"separate_batches": True}, {"penalty": mgf.losses.ZeroCenteredPenalty()}):
        with pytest.raises(ValueError, match=message):
            learner(2, **options).adapt(images(1))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_other_norms_take_a_single_image(executor: str) -> None:
    adapted = make_learner(*tiny_gan(), executor=executor).adapt(images(1))
    assert adapted.sample(1).shape == (1, 1, 8, 8)
    two_dimensional = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 1))
    assert make_learner(tiny_gan()[0], two_dimensional, executor=executor).adapt(images(1)).sample(1).isfinite().all()


# Inference mode


@pytest.mark.parametrize("executor", EXECUTORS)
def test_inference_mode_makes_no_difference(executor: str) -> None:
    networks = tiny_gan()
    plain, other = (copy.deepcopy(networks) for _ in range(2))
    batch = tiny_batch()
    expected = make_learner(*plain, executor=executor, meta=mgf.MAML(clip_value=0.01), loss="hinge")
    with torch.inference_mode():
        inside = mgf.TaskBatch(batch.support.clone(), batch.query.clone() if batch.query is not None else None)
        learner = make_learner(*other, executor=executor, meta=mgf.MAML(clip_value=0.01), loss="hinge")
        noise = learner.draw_noise(inside).to()
        metrics = learner.meta_step(inside, noise)
        learner.apply(learner.meta_gradient(inside))
        adapted = learner.adapt(inside.support[0])
        samples = adapted.sample(2)
        rows = learner.sample_tasks(learner.inner_loop(inside), 2)
    assert metrics == expected.meta_step(batch)
    expected.apply(expected.meta_gradient(batch))
    assert torch.equal(samples, expected.adapt(batch.support[0]).sample(2))
    assert torch.equal(rows, expected.sample_tasks(expected.inner_loop(batch), 2))
    learner.meta_step(batch)
    assert not any(x.is_inference() for x in (samples, rows, *adapted.generator.parameters()))
    adapted.discriminator(adapted.generator(torch.zeros(2, 6))).sum().backward()


def test_a_module_made_under_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        networks = tiny_gan()
    with pytest.raises(ValueError, match=r"'0.weight' was made under torch.inference_mode\(\).*outside"):
        make_learner(*networks)
