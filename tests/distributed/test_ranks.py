"""Tasks shared by ranks: parts, collectives and whole meta-steps, against one process."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gang
import metagan_fast as mgf
import rank_scenarios as scenarios
from metagan_fast.distributed import Ranks, ranks
from networks import tiny_batch, tiny_gan
from support import assert_close

SIZES = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Return the results of each of four processes."""
    return gang.run("rank_scenarios", "everything", 4, tmp_path_factory.mktemp("gang"))


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return gang.run("rank_scenarios", "messages", 4, tmp_path_factory.mktemp("messages"))


@pytest.mark.scale
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("meta", "executor", "tasks"), scenarios.CASES)
def test_meta_steps_of_ranks_are_those_of_one_process(
    found: list[Any], meta: str, executor: str, tasks: int, size: int
) -> None:
    metrics, state = scenarios.train(meta, executor, tasks)
    in_order = scenarios.train(meta, executor, tasks, deterministic_reduce=True)
    for rank in range(size):
        of_any, of_ordered = (found[rank][size, meta, executor, tasks, ordered] for ordered in (False, True))
        assert_close(of_any[1], state, "float32-rounding")
        assert of_any[0].keys() == metrics.keys()
        assert torch.equal(of_any[1], found[0][size, meta, executor, tasks, False][1])  # all ranks alike
        assert of_ordered[0] == in_order[0] and torch.equal(of_ordered[1], in_order[1])
        if executor == "native":  # a task's result does not depend on the number of tasks in a call
            assert of_ordered[0] == metrics and torch.equal(of_ordered[1], state)


@pytest.mark.scale
def test_a_task_that_diverges_is_left_out_on_every_rank(tmp_path: Path) -> None:
    found: list[Any] = gang.run("rank_scenarios", "dropping", 4, tmp_path)
    for executor in ("native", "torch"):
        metrics, state = scenarios.drop(executor)
        in_order = scenarios.drop(executor, deterministic_reduce=True)
        for size, rank in ((members, rank) for members in SIZES for rank in range(members)):
            of_any, of_ordered = (found[rank][size, executor, ordered] for ordered in (False, True))
            assert of_any[0].keys() == metrics.keys() and of_any[0]["dropped_tasks"] == 1
            assert_close(of_any[1], state, "float32-rounding")
            assert torch.equal(of_any[1], found[0][size, executor, False][1])  # all ranks alike
            assert of_ordered[0] == in_order[0] and torch.equal(of_ordered[1], in_order[1])
    assert all("1 of 5 tasks diverged, 1 in meta-steps in a row" in each["error"] for each in found)
    assert (tmp_path / "replay.safetensors").exists()


@pytest.mark.scale
def test_collectives(messages: list[Any]) -> None:
    for rank, found in enumerate(messages):
        assert torch.equal(found["mapped"]["mean"], torch.tensor([0.0, 0.25]))
        assert found["objects"] == ["of 0", "of 1", "of 2", "of 3"]
        assert found["shared"] == {"rank": 0}
        tensors, metadata = found["state"]
        assert tensors["x"].tolist() == [1.5, 2.5] and tensors["n"].item() == 7 and metadata == {"step": 3}
        assert found["order"] == rank
        assert found["each"] == list("012345")  # what `data get` draws
        assert found["unlike"] == [2]
        assert found["stop"] is True
        assert found["counted"] == (True, True, None)
        kind = "ZeroDivisionError" if rank == 0 else "FirstRankFailed"
        assert found["failed"][0] == kind and "division" in found["failed"][1]


@pytest.mark.scale
def test_ranks_start_from_the_first_ones_parameters(messages: list[Any]) -> None:
    for found in messages:
        assert torch.equal(found["parameters"], messages[0]["parameters"])
        assert torch.equal(found["gradient"], messages[0]["gradient"])


@pytest.mark.scale
def test_ranks_that_differ_are_named(messages: list[Any]) -> None:
    for found in messages:
        assert "but rank 1 differs from rank 0" in found["other settings"]
        assert "after meta-step 1 rank 3 differs from rank 0" in found["other parameters"]


def of(rank: int, size: int) -> Ranks:
    one = Ranks()
    one.rank, one.size = rank, size
    return one


@pytest.mark.parametrize(("count", "size", "parts"), [(5, 2, [3, 2]), (8, 4, [2] * 4), (2, 3, [1, 1, 0]), (0, 1, [0])])
def test_parts_are_consecutive_and_even(count: int, size: int, parts: list[int]) -> None:
    found = [of(rank, size).part(count) for rank in range(size)]
    assert list(map(len, found)) == parts
    assert [index for part in found for index in part] == list(range(count))
    assert of(0, size).part(count, size - 1) == found[-1]


def test_a_mean_in_order_rounds_as_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces that end within and at the end of each part."""
    monkeypatch.setattr(ranks, "CHUNK", 3)
    terms = torch.randn(6, 11)
    out = torch.empty(11)
    of(0, 1).ordered_mean(out, [row.split([4, 7]) for row in terms], 6)
    expected = terms[0]
    for row in terms[1:]:
        expected = expected + row
    assert torch.equal(out, expected * (1 / 6))


def test_tasks_in_order_have_the_engines_bytes() -> None:
    for meta in scenarios.META:
        plain, in_order = (
            scenarios.train(meta, "native", 5, deterministic_reduce=ordered) for ordered in (False, True)
        )
        assert plain[0] == in_order[0] and torch.equal(plain[1], in_order[1])


def test_noise_is_checked_whole_and_cut_for_each_rank() -> None:
    learner = scenarios.learner("adam", "native", deterministic_reduce=True)
    batch = tiny_batch(tasks=3)
    noise = learner.draw_noise(batch)
    with pytest.raises(ValueError, match="expected noise"):
        learner.meta_step(batch, noise.slice(0, 2))
    assert learner.step == 0
    other = scenarios.learner("adam", "native")
    assert learner.meta_step(batch, noise) == other.meta_step(batch)
    assert torch.equal(learner.generator_parameters, other.generator_parameters)


def test_copies_have_no_group() -> None:
    learner = scenarios.learner("adam", "native", deterministic_reduce=True)
    assert learner._ranks is not None
    assert copy.deepcopy(learner)._ranks is None
    assert pickle.loads(pickle.dumps(learner))._ranks is None


def test_a_process_group_must_be_one() -> None:
    with pytest.raises(ValueError, match=r"torch\.distributed\.group\.WORLD"):
        mgf.MetaGAN(*tiny_gan(), latent_dim=6, process_group="gloo")  # type: ignore[arg-type]


class FSDPModule:
    """Mixin of the name and the place of torch's own, which needs a group to wrap a module."""

    __module__ = "torch.distributed.fsdp"


class Shards(FSDPModule, nn.Sequential):
    """Module as torch leaves it when it shards its parameters."""


def test_wrapped_modules_are_refused() -> None:
    generator, discriminator = tiny_gan()
    with pytest.raises(ValueError, match=r"got generator wrapped in DataParallel; pass generator\.module instead"):
        mgf.MetaGAN(nn.DataParallel(generator), discriminator, latent_dim=6)
    with pytest.raises(ValueError, match=r"got discriminator\.0 wrapped in DataParallel"):
        mgf.MetaGAN(generator, nn.Sequential(nn.DataParallel(discriminator)), latent_dim=6)
    with pytest.raises(ValueError, match="wrapped in FSDPModule; pass the module that it was made of"):
        mgf.MetaGAN(generator, Shards(*discriminator), latent_dim=6)
