"""Episodes: disjoint, repeatable, and those recorded for the embedded glyphs."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metagan_fast import tasks
from metagan_fast.metrics import Episodes
from metagan_fast.metrics.episodes import RECORDED
from striped_classes import Bars

# The recorded divisions: a change makes earlier figures incomparable.
DIGESTS = {
    "test": "2c52da60a529123287aa02a6bea04ebdc8b2f9f36f6ec8aae0d94c8448fb5271",
    "validation": "f89030f5f9ef168da2a30979b4ea8df050f0f7ca5bb2c6a4fc31ff554901bb3d",
}


@given(count=st.integers(5, 60), shots=st.integers(1, 8), seed=st.integers(0, 100))
def test_parts_of_a_class_are_disjoint(count: int, shots: int, seed: int) -> None:
    bars = Bars(range(3), count=count)
    if count < shots + 4:
        with pytest.raises(ValueError, match=f"classes of at least {shots + 4} images"):
            Episodes.draw(bars, shots=shots, seed=seed)  # type: ignore[arg-type]
        return
    episodes = Episodes.draw(bars, shots=shots, draws=2, seed=seed)  # type: ignore[arg-type]
    assert episodes.classes == bars.classes and len(episodes.draws) == 2
    for episode in (each for draw in episodes.draws for each in draw):
        assert len(episode.support) == shots
        assert len(episode.references) == len(episode.others) == (count - shots) // 2
        everything = episode.support + episode.references + episode.others
        assert len(set(everything)) == len(everything) and set(everything) <= set(range(count))


def test_draws_differ_and_repeat() -> None:
    bars = Bars(range(4))
    first = Episodes.draw(bars, seed=3)  # type: ignore[arg-type]
    assert first == Episodes.draw(bars, seed=3)  # type: ignore[arg-type]
    assert len({episode.support for draw in first.draws for episode in draw}) == 12
    assert first.first(1).draws == first.draws[:1]
    assert first.digest != Episodes.draw(bars, seed=4).digest  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected 1 to 3 draws, got 4"):
        first.first(4)


def test_classes_of_too_few_images_are_left_out() -> None:
    bars = Bars(range(3))
    bars.counts = (24, 11, 24)
    assert Episodes.draw(bars, shots=8).classes == ("bars-0", "bars-2")  # type: ignore[arg-type]


def test_episodes_survive_json() -> None:
    episodes = Episodes.draw(Bars(range(3)))  # type: ignore[arg-type]
    assert Episodes.from_dict(json.loads(json.dumps(episodes.to_dict()))) == episodes


@pytest.mark.parametrize("part", sorted(DIGESTS))
def test_recorded_episodes_of_the_glyphs(part: str) -> None:
    distribution = getattr(tasks.load("glyphs", min_images=12), part)
    recorded = Episodes.recorded(distribution)
    assert recorded is not None
    assert recorded.digest == DIGESTS[part]
    assert recorded.classes == distribution.classes
    assert (recorded.shots, len(recorded.draws)) == (8, 3)
    for draw in recorded.draws:
        for count, episode in zip(distribution.counts, draw, strict=True):
            assert max(episode.support + episode.references + episode.others) < count


def test_nothing_is_recorded_for_other_images() -> None:
    assert Episodes.recorded(Bars(range(3))) is None  # type: ignore[arg-type]
    glyphs = tasks.load("glyphs", min_images=12).test
    changed = glyphs.images(glyphs.classes[0])
    changed[0, 0, 0, 0] ^= 1  # shared with the distribution
    assert Episodes.recorded(glyphs) is None


def test_each_recorded_file_is_of_one_part() -> None:
    assert {path.stem for path in RECORDED.glob("*.json")} == {f"glyphs-{part}" for part in DIGESTS}
