"""The embedded `glyphs`: scripts, parts, drawings, licences."""

from __future__ import annotations

import csv
import time
import unicodedata
import zlib
from collections import Counter

import numpy as np
import pytest
import torch

from metagan_fast import tasks
from metagan_fast.tasks import embedded
from metagan_fast.tasks.images import ImageSet
from metagan_fast.tasks.split import PARTS
from support import ROOT

ALLOWED_LICENCES = {"OFL-1.1", "Apache-2.0", "MIT"}
FEWEST = {"train": 12, "validation": 40, "test": 40}
DUPLICATE = 0.95  # correlation of 16x16 reductions above which two drawings count as one

# Unicode names spell these scripts out; ideographs and their compatibility forms are named by the other words.
RESERVED_WORDS = {"HIRAGANA", "KATAKANA", "BOPOMOFO", "CJK", "IDEOGRAPH", "IDEOGRAPHIC", "KANGXI", "KANBUN", "HANGZHOU"}


@pytest.fixture(scope="module")
def glyphs() -> ImageSet:
    return embedded.read_glyphs()


@pytest.fixture(scope="module")
def fonts() -> list[dict[str, str]]:
    with (embedded.FOLDER / "glyphs.fonts.tsv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def reserved(text: str) -> set[str]:
    words = (unicodedata.name(c, "").replace("-", " ").split() for c in text + unicodedata.normalize("NFKC", text))
    return {word for name in words for word in name} & RESERVED_WORDS


def test_reserved_scripts_are_recognised() -> None:
    ideographs = "\u4e00\u3021\u2f00\uf900\u32c0\u3220\u3191\u3400\U00020000\u337b"
    for character in ideographs + "\u3042\u30a2\uff71\u3105\u31f0\U0001b000":
        assert reserved(character), hex(ord(character))
    assert not reserved("AΩж가אगก") and not reserved("Hangul/가")


@pytest.mark.parametrize("name", ["glyphs", "glyphs-latin", "digits"])
def test_no_shipped_set_has_a_character_of_a_reserved_script(name: str) -> None:
    loaded = tasks.load(name)
    classes = [name for part in PARTS for name in getattr(loaded, part).classes]
    assert not {name: reserved(name) for name in classes if reserved(name)}


def test_scripts_classes_and_drawings(glyphs: ImageSet) -> None:
    assert glyphs.groups is not None and glyphs.parts is not None
    assert len(glyphs.classes) >= 900 and len(set(glyphs.groups)) >= 8
    for name, group in zip(glyphs.classes, glyphs.groups, strict=True):
        script, slash, character = name.partition("/")
        assert script == group and slash and len(character) == 1
    parts = Counter(glyphs.parts)
    assert parts.keys() == set(PARTS) and parts["validation"] >= 60 and parts["test"] >= 60
    for name, part, count in zip(glyphs.classes, glyphs.parts, glyphs.counts, strict=True):
        assert count >= FEWEST[part], name
    assert sum(glyphs.counts) == len(glyphs.images)


def test_each_script_is_in_one_part_by_default(glyphs: ImageSet) -> None:
    loaded = tasks.load("glyphs")
    scripts = {part: set(getattr(loaded, part).groups) for part in PARTS}
    assert sum(map(len, scripts.values())) == len(set.union(*scripts.values())) == len(set(glyphs.groups or ()))
    assert {"Latin", "Greek", "Cyrillic", "Arabic", "Hangul"} <= scripts["train"]
    assert loaded.image_shape == (1, 32, 32)


def test_drawings_are_white_on_black_centred_and_not_blank(glyphs: ImageSet) -> None:
    pixels = torch.from_numpy(glyphs.images[:, 0])
    levels = torch.bincount(pixels.flatten().int(), minlength=256).nonzero().flatten()
    assert levels.tolist() == list(range(0, 256, 17))
    border = torch.cat([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], 1)
    assert border.float().mean() < 0.02 * 255
    ink = pixels.float().mean((1, 2)) / 255
    assert ink.min() > 0.003 and ink.max() < 0.9
    for rows_or_columns in (pixels.amax(2), pixels.amax(1)):
        inked = rows_or_columns > 0
        before, after = inked.int().argmax(1), inked.flip(1).int().argmax(1)
        assert (before - after).abs().max() <= 2  # as wide a margin on either side


def test_drawings_of_a_class_are_distinct(glyphs: ImageSet) -> None:
    for index in range(0, len(glyphs.classes), 7):  # every seventh, to be quick
        images = glyphs.of_class(index)[:, 0]
        reduced = images.reshape(-1, 16, 2, 16, 2).astype(np.float64).sum((2, 4)).reshape(len(images), 256)
        likeness = np.corrcoef(reduced) - 2 * np.eye(len(images))
        assert likeness.max() < DUPLICATE + 0.001, glyphs.classes[index]


def test_no_drawing_is_in_two_parts(glyphs: ImageSet) -> None:
    parts = np.repeat(np.array(glyphs.parts), glyphs.counts)
    owner: dict[bytes, str] = {}
    for drawing, part in zip(glyphs.images[:, 0], parts, strict=True):
        assert owner.setdefault(drawing.tobytes(), part) == part


def test_classes_are_recognised_by_their_means(glyphs: ImageSet) -> None:
    """Nearest class means of half of the drawings classify most of the other half, within a script."""
    assert glyphs.groups is not None
    for script in ("Devanagari", "Thai", "Georgian"):
        mine = [index for index, group in enumerate(glyphs.groups) if group == script]
        halves = [glyphs.of_class(index).astype(np.float32) for index in mine]
        means = np.stack([images[::2].mean(0).ravel() for images in halves])
        distances = [np.linalg.norm(images[1::2].reshape(-1, 1, 1024) - means, axis=2) for images in halves]
        hits = [(rows.argmin(1) == number).mean() for number, rows in enumerate(distances)]
        assert np.mean(hits) > 0.5, script


def test_fonts_have_allowed_licences_and_sources(glyphs: ImageSet, fonts: list[dict[str, str]]) -> None:
    assert {font["licence"] for font in fonts} <= ALLOWED_LICENCES
    assert {script for font in fonts for script in font["scripts"].split()} == set(glyphs.groups or ())
    assert sum(int(font["drawings"]) for font in fonts) == len(glyphs.images)
    assert all(len(font["sha256"]) == 64 and font["family"] and font["version"] for font in fonts)
    notice = (embedded.FOLDER / "LICENSE.glyphs.txt").read_text(encoding="utf-8")
    assert "SIL OPEN FONT LICENSE Version 1.1" in notice and "Apache License, version 2.0" in notice
    with (ROOT / "tools/glyphs/packages.tsv").open(newline="", encoding="utf-8") as file:
        pinned = {(row["name"], row["version"]) for row in csv.DictReader(file, delimiter="\t")}
    assert {(font["package"], font["package_version"]) for font in fonts} <= pinned


def test_size_in_a_wheel() -> None:
    """A wheel deflates its files."""
    assert sum(len(zlib.compress(file.read_bytes())) for file in embedded.FOLDER.iterdir()) < 6e6


def test_glyphs_load_quickly() -> None:
    embedded.read_glyphs()
    start = time.process_time()
    embedded.read_glyphs()
    assert time.process_time() - start < 0.8  # on a busy machine; 0.1 s on an idle one


class TestVersions:
    """Records without a version are of the first: `glyphs` then meant what is now `glyphs-latin`."""

    def test_an_early_record_loads_the_early_set(self) -> None:
        now = tasks.load("glyphs-latin", seed=3)
        record = {key: value for key, value in now.split_record().items() if key not in ("version", "split_by")}
        early = tasks.load("glyphs", split=record | {"data": "glyphs"})
        assert early.name == "glyphs-latin" and early.split_record() == record | {"data": "glyphs"}
        for part in PARTS:
            mine, theirs = getattr(early, part), getattr(now, part)
            assert mine.classes == theirs.classes
            assert torch.equal(mine.images(mine.classes[0]), theirs.images(theirs.classes[0]))

    def test_a_record_has_the_version_and_comes_back(self) -> None:
        record = tasks.load("glyphs").split_record()
        assert (record["version"], record["split_by"], record["shares"]) == (2, "group", None)
        again = tasks.load("glyphs", split=record)
        assert again.name == "glyphs" and again.split_record() == record

    def test_an_unknown_version_is_refused(self) -> None:
        record = tasks.load("digits").split_record()
        with pytest.raises(ValueError, match="version 9 of digits, but this package has version 1"):
            tasks.load("digits", split=record | {"version": 9})


class TestSplitBy:
    def test_groups_are_drawn_whole(self) -> None:
        one, other = (tasks.load("glyphs", split=(0.6, 0.2, 0.2), seed=seed) for seed in (0, 1))
        for loaded in (one, other):
            scripts = [set(getattr(loaded, part).groups) for part in PARTS]
            assert sum(map(len, scripts)) == len(set.union(*scripts)) and all(scripts)
        assert one.train.classes != other.train.classes
        assert tasks.load("glyphs", split=one.split_record()).split_record() == one.split_record()

    def test_classes_are_drawn_across_groups(self) -> None:
        loaded = tasks.load("glyphs", split_by="class")
        assert loaded.split_record()["shares"] == [0.7, 0.1, 0.2]
        assert set(loaded.train.groups or ()) & set(loaded.test.groups or ())

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="needs data with groups; digits has none"):
            tasks.load("digits", split_by="group")
        with pytest.raises(ValueError, match="split_by must be class or group, got 'script'"):
            tasks.load("digits", split_by="script")
