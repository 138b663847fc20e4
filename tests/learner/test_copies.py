"""Copies of learners and adapted GANs: by deepcopy, pickle, torch.save and worker processes; each owns its tensors."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import metagan_fast as mgf
from metagan_fast._utils.lock import Lock
from metagan_fast._utils.pair import Pair
from metagan_fast.executors import base
from metagan_fast.flat import FlatLayout
from metagan_fast.learner.state import LearnerState
from networks import tiny_batch, tiny_gan
from support import assert_close


def torch_save(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": torch_save,
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
executors = pytest.mark.parametrize("executor", ["native", "torch"])


def make_learner(executor: str = "auto", **settings: Any) -> mgf.MetaGAN:
    torch.manual_seed(1)
    settings = {"inner": mgf.InnerLoop(lr=0.05, steps=2), "meta": mgf.Reptile(lr=0.01), "seed": 3} | settings
    return mgf.MetaGAN(*tiny_gan(), latent_dim=6, executor=executor, **settings)


def parameters(learner: mgf.MetaGAN) -> Tensor:
    return torch.cat([learner.generator_parameters, learner.discriminator_parameters]).clone()


@executors
@ways
def test_a_copied_learner_goes_on_alone_with_the_same_bytes(way: Callable[[Any], Any], executor: str) -> None:
    inner = mgf.InnerLoop("adam", lr=0.01, steps=2, inner_state="persist")
    learner = make_learner(executor, inner=inner)
    batches = [tiny_batch(tasks=1, query=0) for _ in range(4)]
    for batch in batches[:2]:
        learner.meta_step(batch)
    copied = way(learner)
    before = parameters(learner)
    metrics = [copied.meta_step(batch) for batch in batches[2:]]
    assert torch.equal(parameters(learner), before)
    assert copied.generator[0].weight.data_ptr() == copied.generator_parameters.data_ptr()
    assert [learner.meta_step(batch) for batch in batches[2:]] == metrics
    assert torch.equal(parameters(copied), parameters(learner))
    assert copied.step == learner.step == 4
    assert copied.explain() == learner.explain()
    images = batches[0].support[0]
    assert torch.equal(copied.adapt(images).sample(2), learner.adapt(images).sample(2))


def older_state(learner: mgf.MetaGAN) -> dict[str, Any]:
    """Return the attributes of a learner in an older pickle: settings and counters apart, tuples instead of pairs."""
    state = copy.deepcopy(learner._state.__getstate__())
    modules, layouts = zip(*state.pop("networks"), strict=True)
    state |= {"modules": modules, "layouts": layouts, "buffers": list(state["buffers"])}
    counters = {"step": state.pop("step"), "_updates": state.pop("updates"), "_rollback": state.pop("_rollback")}
    older = object.__new__(LearnerState)
    older.__setstate__(state)
    settings = {**vars(learner._settings)}
    settings["executor_name"] = settings.pop("executor")
    return settings | counters | {"_state": older, "_training": Lock(), "_lock": Lock()}


def test_an_older_pickle_goes_on_with_the_same_bytes() -> None:
    learner = make_learner(inner=mgf.InnerLoop("adam", lr=0.01, steps=2, inner_state="persist"))
    batch = tiny_batch(tasks=1, query=0)
    learner.meta_step(batch)
    older = object.__new__(mgf.MetaGAN)
    older.__setstate__(older_state(learner))
    assert older.meta_step(batch) == learner.meta_step(batch)
    assert torch.equal(parameters(older), parameters(learner))
    assert older.step == learner.step == 2
    name = "TrainStates"  # class of adapted networks, which pickle builds by `__new__`
    assert getattr(base, name).__new__(getattr(base, name), 1, 2) == Pair(1, 2)


@ways
def test_a_pair_is_copied(way: Callable[[Any], Any]) -> None:
    copied = way(Pair([1], [2]))
    assert type(copied) is Pair and (copied.generator, copied.discriminator) == ([1], [2])


def test_a_deep_copy_keeps_the_modules_of_the_structure_around_it() -> None:
    learner = make_learner()
    holder = copy.deepcopy({"generator": learner.generator, "learner": learner, "again": learner})
    assert holder["learner"] is holder["again"]
    assert holder["learner"].generator is holder["generator"] is not learner.generator


def test_a_pickled_learner_has_its_own_size() -> None:
    networks = mgf.models.dcgan(image_size=8, width=64, blocks=1, latent_dim=6)
    learner = mgf.MetaGAN(*networks, latent_dim=6, meta=mgf.Reptile(optimizer="sgd", lr=0.1))
    size = 4 * (learner.generator_parameters.numel() + learner.discriminator_parameters.numel())
    assert size < len(pickle.dumps(learner)) < 1.1 * size


@executors
@ways
def test_a_copied_adapted_gan_gives_the_same_images(way: Callable[[Any], Any], executor: str) -> None:
    schedule = mgf.InnerLoop(lr=lambda step: 0.05, steps=2)  # not picklable
    adapted = make_learner(executor, inner=schedule).adapt(tiny_batch().support[0])
    copied = way(adapted)
    assert torch.equal(copied.sample(3, seed=5), adapted.sample(3, seed=5))
    assert copied.metrics == adapted.metrics
    with torch.no_grad():
        adapted.generator[0].weight.zero_()
    assert not torch.equal(copied.sample(3, seed=5), adapted.sample(3, seed=5))


def test_an_adapted_gan_follows_its_modules() -> None:
    adapted = make_learner("native").adapt(tiny_batch().support[0])
    images = adapted.sample(3)
    adapted.generator.double()
    assert adapted.sample(3).dtype == torch.float64
    assert_close(adapted.sample(3), images.double(), "float32-rounding")
    adapted.generator.float()
    assert torch.equal(adapted.sample(3), images)


def adapt(learner: mgf.MetaGAN, images: Tensor) -> tuple[mgf.MetaGAN, mgf.AdaptedGAN]:
    learner.meta_step(mgf.TaskBatch(images.unsqueeze(0)))
    return learner, learner.adapt(images)


@pytest.mark.slow
def test_a_worker_returns_what_it_made() -> None:
    images = tiny_batch(query=0).support[0]
    learner = make_learner()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found, adapted = pool.submit(adapt, learner, images).result(timeout=120)
    expected = adapt(make_learner(), images)
    assert torch.equal(parameters(found), parameters(expected[0]))
    assert torch.equal(adapted.sample(2), expected[1].sample(2))
    assert learner.step == 0


class Tied(nn.Module):
    """Make an image with one matrix, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.second.weight = self.first.weight

    def forward(self, latents: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(latents)))).unflatten(1, (1, 4, 4))


def test_adapted_modules_own_their_tensors(tmp_path: Path) -> None:
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    learner = mgf.MetaGAN(Tied(), discriminator, latent_dim=16, inner=mgf.InnerLoop(lr=0.05, steps=2))
    adapted = learner.adapt(tiny_batch(image_shape=(1, 4, 4)).support[0])
    for module in (adapted.generator, adapted.discriminator):
        for parameter in module.parameters():
            assert parameter.untyped_storage().nbytes() == 4 * parameter.numel() and parameter.requires_grad
    generator = adapted.generator
    assert isinstance(generator, Tied) and generator.first.weight is generator.second.weight
    safetensors.torch.save_model(generator, str(tmp_path / "generator.safetensors"))
    loaded = Tied()
    safetensors.torch.load_model(loaded, tmp_path / "generator.safetensors")
    latents = torch.randn(2, 16)
    assert torch.equal(loaded(latents), generator(latents))
    size = sum(4 * parameter.numel() for parameter in generator.parameters())
    assert len(pickle.dumps(generator)) < size + 5_000


def test_instantiate_copies_buffers_and_no_gradients() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    layout = FlatLayout.from_module(module)
    flat = torch.arange(float(layout.numel))
    module(torch.randn(4, 3)).sum().backward()
    made = layout.instantiate(module, flat)
    assert torch.equal(made[1].running_mean, module[1].running_mean)  # type: ignore[index]
    assert made[1].running_mean is not module[1].running_mean  # type: ignore[index]
    assert all(parameter.grad is None for parameter in made.parameters())
    assert torch.equal(layout.views(layout.flatten(made))["0.weight"], layout.views(flat)["0.weight"])
    with pytest.raises(ValueError, match="flat buffer"):
        layout.instantiate(module, flat[:-1])
