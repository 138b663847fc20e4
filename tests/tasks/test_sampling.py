"""Sampling and splitting: functions of the seed alone, disjoint, uniform, with clear errors."""

from __future__ import annotations

import json
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from metagan_fast.tasks import TaskDistribution, draws
from metagan_fast.tasks.images import ImageSet
from metagan_fast.tasks.split import PARTS, record, split_classes


def image_set(counts: list[int], groups: list[str] | None = None) -> ImageSet:
    """Make images of one pixel, whose value identifies the image."""
    images = np.arange(sum(counts), dtype=np.uint8).reshape(-1, 1, 1, 1)
    names = tuple(f"class {index}" for index in range(len(counts)))
    return ImageSet(images, tuple(counts), names, None if groups is None else tuple(groups))


def identities(images: torch.Tensor) -> list[list[int]]:
    """Return the numbers of the images of each task: the scaling to [-1, 1] undone."""
    return ((images.flatten(1) + 1) * 127.5).round().int().tolist()


@given(
    counts=st.lists(st.integers(6, 12), min_size=1, max_size=8),
    tasks=st.integers(1, 12),
    shots=st.integers(1, 4),
    query=st.integers(0, 2),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**40),
)
def test_a_batch(counts: list[int], tasks: int, shots: int, query: int, seed: int, step: int) -> None:
    distribution = TaskDistribution(image_set(counts), seed=seed)
    batch = distribution.sample(tasks, shots, query, step)
    again = TaskDistribution(image_set(counts), seed=seed).sample(tasks, shots, query, step)
    assert torch.equal(batch.support, again.support)
    assert (batch.tasks, batch.shots, batch.query_shots) == (tasks, shots, query)
    assert batch.classes is not None and batch.classes == again.classes
    if batch.query is not None and again.query is not None:
        assert torch.equal(batch.query, again.query)

    drawn = identities(batch.support)
    if batch.query is not None:
        drawn = [support + query for support, query in zip(drawn, identities(batch.query), strict=True)]
    offsets = np.cumsum([0, *counts])
    for name, images in zip(batch.classes, drawn, strict=True):
        index = distribution.classes.index(name)
        assert all(offsets[index] <= image < offsets[index + 1] for image in images)  # its own class
        assert len(set(images)) == shots + query  # support and query share nothing

    times = Counter(batch.classes)
    assert max(times.values()) <= -(-tasks // len(counts))  # no class repeats before all have been drawn


@given(classes=st.integers(1, 8), tasks=st.integers(1, 4), shots=st.integers(1, 5), step=st.integers(0, 2**40))
def test_a_mixed_batch(classes: int, tasks: int, shots: int, step: int) -> None:
    counts = [3] * classes
    batch = TaskDistribution(image_set(counts), seed=5).sample(tasks, shots, step=step, mixed=True)
    again = TaskDistribution(image_set(counts), seed=5).sample(tasks, shots, step=step, mixed=True)
    assert torch.equal(batch.support, again.support)
    assert (batch.tasks, batch.shots, batch.query, batch.classes) == (tasks, shots, None, None)
    drawn = [image // 3 for task in identities(batch.support) for image in task]
    assert len(set(drawn)) == min(classes, len(drawn))  # every class comes before any repeats


def test_seed_and_step_matter_and_earlier_draws_do_not() -> None:
    distribution = TaskDistribution(image_set([9] * 20), seed=3)
    alone = distribution.sample(4, 4, step=7)
    for step in range(5):
        distribution.sample(8, 2, step=step)
    assert torch.equal(distribution.sample(4, 4, step=7).support, alone.support)
    assert not torch.equal(distribution.sample(4, 4, step=8).support, alone.support)
    assert not torch.equal(TaskDistribution(image_set([9] * 20), seed=4).sample(4, 4, step=7).support, alone.support)


def test_a_smaller_batch_begins_a_larger_one() -> None:
    distribution = TaskDistribution(image_set([9] * 12))
    assert torch.equal(distribution.sample(3, 4, 2, 5).support, distribution.sample(12, 4, 2, 5).support[:3])


def test_known_draws() -> None:
    """A run can be repeated by a later release only if the draws never change."""
    batch = TaskDistribution(image_set([20] * 12), seed=1).sample(tasks=3, shots=3, query=1, step=2)
    assert batch.query is not None
    assert batch.classes == ("class 0", "class 10", "class 11")
    assert identities(batch.support) == [[8, 11, 14], [213, 200, 201], [225, 237, 223]]
    assert identities(batch.query) == [[15], [215], [238]]


def test_classes_and_images_are_drawn_evenly() -> None:
    distribution = TaskDistribution(image_set([5, 5, 10, 6]))
    classes: Counter[str] = Counter()
    first_images: Counter[int] = Counter()
    last_images: Counter[int] = Counter()
    for step in range(1200):
        batch = distribution.sample(1, 3, 1, step)
        assert batch.classes is not None and batch.query is not None
        classes.update(batch.classes)
        if batch.classes == ("class 2",):
            first_images[identities(batch.support)[0][0]] += 1
            last_images[identities(batch.query)[0][0]] += 1
    assert all(abs(count - 300) < 5 * 15 for count in classes.values())  # 5 standard deviations
    for images in (first_images, last_images):
        assert sorted(images) == list(range(10, 20))
        assert all(abs(count - 30) < 5 * 5.2 for count in images.values())


def test_groups_are_drawn_before_classes() -> None:
    distribution = TaskDistribution(image_set([4] * 10, groups=["a"] + ["b"] * 9))
    times = Counter(distribution.sample(1, 1, step=step).classes for step in range(1000))
    assert abs(times[("class 0",)] - 500) < 5 * 16
    assert all(abs(times[(f"class {index}",)] - 55.6) < 5 * 7.3 for index in range(1, 10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"shots": 4, "query": 3},
            "class 'class 1' has 5 images, but shots=4 and query=3 need 7; min_images=7",
        ),
        ({"shots": 0}, "expected shots to be at least 1, got 0"),
        ({"tasks": 0}, "expected tasks to be at least 1, got 0"),
        ({"query": -1}, "expected query to be at least 0, got -1"),
        ({"step": -1}, "expected step to be at least 0, got -1"),
    ],
)
def test_refused_draws(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        TaskDistribution(image_set([9, 5, 9]), name="here").sample(**arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_distribution_without_classes_says_so() -> None:
    empty = TaskDistribution(image_set([3]).select([]), name="here (test)")
    assert len(empty) == 0 and empty.image_shape == (1, 1, 1)
    with pytest.raises(ValueError, match=r"here \(test\) has no classes"):
        empty.sample()
    with pytest.raises(ValueError, match="no class 'x'"):
        empty.images("x")
    with pytest.raises(ValueError, match="seed"):
        TaskDistribution(image_set([3]), seed=-1)


def test_images_of_a_class_share_memory() -> None:
    distribution = TaskDistribution(image_set([3, 2]))
    images = distribution.images("class 1")
    assert images.dtype == torch.uint8 and images.flatten().tolist() == [3, 4]
    assert images.data_ptr() == distribution.images("class 0").data_ptr() + 3


def test_words_are_a_prefix_of_more_words() -> None:
    few, many = (draws.words(5, draws.Stream.IMAGES, 9, (count,)) for count in (7, 1001))
    assert np.array_equal(few, many[:7])
    assert not np.array_equal(few, draws.words(5, draws.Stream.CLASSES, 9, (7,)))


names = st.lists(st.text(min_size=1, max_size=4), min_size=5, max_size=40, unique=True)


@given(
    names=names,
    seed=st.integers(0, 2**64 - 1),
    shares=st.sampled_from([(0.7, 0.1, 0.2), (0.5, 0.5, 0), (1, 0, 0)]),
)
def test_a_split_covers_and_is_disjoint(names: list[str], seed: int, shares: tuple[float, float, float]) -> None:
    parts = split_classes(names, shares, seed, "here")
    assert sorted(name for part in PARTS for name in parts[part]) == sorted(names)
    for part, share in zip(PARTS, shares, strict=True):
        assert bool(parts[part]) == (share > 0)
        assert abs(len(parts[part]) - share * len(names)) <= 1.5
        assert list(parts[part]) == [name for name in names if name in parts[part]]  # the data set's order

    again = split_classes(names[::-1], shares, seed, "here")
    assert {part: set(again[part]) for part in PARTS} == {part: set(parts[part]) for part in PARTS}

    written = json.loads(json.dumps(record(parts, shares, {"data": "here", "seed": seed, "shares": shares})))
    assert split_classes(names, written, seed + 1, "here") == parts


def test_the_seed_matters() -> None:
    names = [str(index) for index in range(30)]
    assert split_classes(names, (0.5, 0.2, 0.3), 0, "") != split_classes(names, (0.5, 0.2, 0.3), 1, "")


def test_a_split_by_name_trains_on_the_rest() -> None:
    parts = split_classes(list("abcd"), {"test": ["d"], "validation": ["a"]}, 0, "here")
    assert parts == {"train": ("b", "c"), "validation": ("a",), "test": ("d",)}


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ((0.5, 0.5), "three shares"),
        ((0.5, 0.2, 0.2), "add up to 1"),
        ((1.2, -0.2, 0.0), "add up to 1"),
        ((0.0, 0.5, 0.5), "leave none to train on"),
        ({"trian": ["a"]}, "has the keys train, validation, test, got 'trian'"),
        ({}, "has the keys"),
        ({"train": ["a", "b", "c"], "test": ["d", "z"]}, "the class 'z', not among the 4 classes of here"),
        ({"train": ["a", "b", "c"]}, "here has the class 'd', not named in the split"),
        ({"train": ["a", "b", "c"], "test": ["c", "d"]}, "the class 'c' more than once"),
        ({"test": ["u", "v", "w", "x", "y"]}, "'u', 'v', 'w' and 2 more"),
    ],
)
def test_refused_splits(split: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        split_classes(list("abcd"), split, 0, "here")  # type: ignore[arg-type]
    assert message in str(caught.value) and "\n" not in str(caught.value)
