"""Cache of decoded folders against the same folders without it."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metagan_fast import tasks
from metagan_fast._native import _core, is_available
from metagan_fast.tasks import decoding, listing

ALL = (1.0, 0.0, 0.0)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make three classes in two groups, of two images each."""
    for number, name in enumerate(("a/x", "a/y", "b/x")):
        for image in range(2):
            write_image(tmp_path / "tree" / name / f"{image}.png", 10 * number + image)
    return tmp_path / "tree"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the images that are decoded, class and file."""
    names: list[str] = []
    read = decoding.Decoder._read

    def spy(self: decoding.Decoder, path: Path, channels: int) -> Any:
        names.append(f"{path.parent.name}/{path.name}")
        return read(self, path, channels)

    monkeypatch.setattr(decoding.Decoder, "_read", spy)
    return names


def write_image(path: Path, value: int, colour: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB" if colour else "L", (4, 4), (value, 0, 0) if colour else value).save(path)


def assert_same(first: tasks.Tasks, second: tasks.Tasks) -> None:
    for part in ("train", "validation", "test"):
        ours, theirs = getattr(first, part), getattr(second, part)
        assert (ours.classes, ours.groups, ours.counts) == (theirs.classes, theirs.groups, theirs.counts)
        if ours.classes:
            batches = [one.sample(tasks=2, shots=1, step=3) for one in (ours, theirs)]
            assert batches[0].support.equal(batches[1].support)
            assert all(ours.images(name).equal(theirs.images(name)) for name in ours.classes)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"channels": 3},
        {"image_size": 8},
        {"invert": True},
        {"rotations": True},
        {"split": ALL, "min_images": 2},
        {"split_by": "group", "split": (0.5, 0, 0.5)},
    ],
)
def test_the_same_tasks_as_without(tree: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    write_image(tree / "b" / "single" / "0.png", 99)
    plain = tasks.load(tree, cache=False, **options)
    for _ in range(2):
        assert_same(plain, tasks.load(tree, cache=tmp_path / "cache", **options))


def test_the_second_load_decodes_nothing(tree: Path, tmp_path: Path, decoded: list[str]) -> None:
    tasks.load(tree, cache=tmp_path / "cache")
    assert len(decoded) == 6
    again = tasks.load(tree, cache=tmp_path / "cache", split=ALL)
    assert len(decoded) == 6
    assert not again.train._images.numpy().flags.owndata  # it lies in the map


def test_a_changed_class_alone_is_decoded_again(tree: Path, tmp_path: Path, decoded: list[str]) -> None:
    tasks.load(tree, cache=tmp_path / "cache")
    decoded.clear()
    write_image(tree / "a" / "y" / "1.png", 77)
    assert tasks.load(tree, cache=tmp_path / "cache", split=ALL).train.images("a/y")[1].unique().tolist() == [77]
    assert sorted(decoded) == ["y/0.png", "y/1.png"]


def test_a_replaced_file_of_the_same_size_and_time_is_noticed(tree: Path, tmp_path: Path) -> None:
    file = tree / "a" / "x" / "9.pgm"
    file.write_bytes(b"P5 4 4 255\n" + bytes([5] * 16))
    tasks.load(tree, cache=tmp_path / "cache")
    before = file.stat()
    time.sleep(0.02)  # a tick of the file system's clock
    file.write_bytes(b"P5 4 4 255\n" + bytes([6] * 16))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert tasks.load(tree, cache=tmp_path / "cache", split=ALL).train.images("a/x")[2].unique().tolist() == [6]


def test_new_and_removed_classes_and_a_first_colour_image(tree: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    tasks.load(tree, cache=cache)
    write_image(tree / "b" / "new" / "0.png", 50)
    assert_same(tasks.load(tree, cache=cache, split=ALL), tasks.load(tree, cache=False, split=ALL))
    shutil.rmtree(tree / "a" / "x")
    assert_same(tasks.load(tree, cache=cache, split=ALL), tasks.load(tree, cache=False, split=ALL))
    write_image(tree / "b" / "x" / "2.png", 200, colour=True)
    coloured = tasks.load(tree, cache=cache, split=ALL)
    assert coloured.image_shape[0] == 3
    assert_same(coloured, tasks.load(tree, cache=False, split=ALL))


@pytest.mark.parametrize("harm", ["cut", "cut to the head", "empty", "longer", "foreign", "flipped", "another tree's"])
def test_a_damaged_cache_is_made_again(tree: Path, tmp_path: Path, harm: str, decoded: list[str]) -> None:
    cache = tmp_path / "cache"
    tasks.load(tree, cache=cache)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    other = tmp_path / "other"
    write_image(other / "z" / "0.png", 3)
    tasks.load(other, cache=cache, split=ALL)
    (foreign,) = set(cache.iterdir()) - {file}
    flipped = bytearray(content)
    flipped[-60] ^= 1
    file.write_bytes(
        {
            "cut": content[:-1],
            "cut to the head": content[:4096],
            "empty": b"",
            "longer": content + b"\0",
            "foreign": os.urandom(5000),
            "flipped": bytes(flipped),
            "another tree's": foreign.read_bytes(),
        }[harm]
    )
    decoded.clear()
    assert_same(tasks.load(tree, cache=cache, split=ALL), tasks.load(tree, cache=False, split=ALL))
    assert len(decoded) == 12
    assert file.read_bytes() == content


def test_two_that_build_at_once(tree: Path, tmp_path: Path) -> None:
    plain = tasks.load(tree, cache=False)
    loaded: list[tasks.Tasks] = []
    threads = [
        threading.Thread(target=lambda: loaded.append(tasks.load(tree, cache=tmp_path / "cache"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in (*loaded, tasks.load(tree, cache=tmp_path / "cache")):
        assert_same(plain, found)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_failure_leaves_no_file(tree: Path, tmp_path: Path) -> None:
    (tree / "b" / "x" / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"cannot read the image {tree}/b/x/1.png"):
        tasks.load(tree, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_place_that_cannot_be_written_is_done_without(
    tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert_same(tasks.load(tree, cache=tmp_path / "file"), tasks.load(tree, cache=False))
    assert f"cannot cache the images of {tree}" in caplog.text


def test_small_trees_are_cached_only_where_asked(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAGAN_FAST_CACHE", str(tmp_path / "cache"))
    tasks.load(tree)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr("metagan_fast.tasks.image_cache.LEAST", 6)
    tasks.load(tree)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("cached", [False, True])
def test_broken_images_are_left_out_and_counted(
    tree: Path, tmp_path: Path, cached: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache" if cached else False
    for name in ("a/x/0.png", "b/x/0.png", "b/x/1.png"):
        (tree / name).write_bytes(b"no image")
    for changed in (False, False, True):
        if changed:
            write_image(tree / "a" / "y" / "1.png", 77)
        caplog.clear()
        loaded = tasks.load(tree, cache=cache, skip_broken=True, split=ALL).train
        assert dict(zip(loaded.classes, loaded.counts, strict=True)) == {"a/x": 1, "a/y": 2}
        assert loaded.images("a/x").unique().tolist() == [1]
        assert "left out 3 broken images (a/x/0.png, b/x/0.png, b/x/1.png)" in caplog.text


def test_no_image_at_all(tree: Path, tmp_path: Path) -> None:
    for file in tree.rglob("*.png"):
        file.write_bytes(b"no image")
    for cache in (False, tmp_path / "cache"):
        with pytest.raises(ValueError, match=r"no image of .* can be read"):
            tasks.load(tree, cache=cache, skip_broken=True)


def test_several_sizes_are_named(tree: Path, tmp_path: Path) -> None:
    Image.new("L", (5, 4)).save(tree / "b" / "x" / "1.png")
    for cache in (False, tmp_path / "cache"):
        with pytest.raises(ValueError, match=r"0.png is 4 x 4 but .*b/x/1.png is 4 x 5 .*give an image_size"):
            tasks.load(tree, cache=cache)


def test_progress_is_shown_for_many_files(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_MANY", 6)
    shown: list[tuple[str, int, int]] = []
    token = decoding.observer.set(lambda *arguments: shown.append(arguments))
    try:
        tasks.load(tree, cache=False)
    finally:
        decoding.observer.reset(token)
    assert shown == [("decode images", done, 6) for done in (2, 4, 6)]


class TestListing:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Iterator[Path]:
        """Make files, folders, links and a name that is no UTF-8."""
        write_image(tmp_path / "1.png", 3)
        (tmp_path / "below").mkdir()
        (tmp_path / "link").symlink_to("1.png")
        (tmp_path / "nowhere").symlink_to("missing")
        (tmp_path / "above").symlink_to("..")
        (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
        return tmp_path

    @pytest.mark.skipif(not is_available()[0], reason="needs the compiled extension")
    def test_the_extension_gives_the_bytes_of_python(self, folder: Path) -> None:
        place = os.fsencode(folder)
        assert _core.folder_listing(place) == listing.listing_in_python(place)
        with pytest.raises(FileNotFoundError, match="missing"):
            _core.folder_listing(place + b"/missing")

    def test_the_digest_depends_on_names_sizes_times_and_targets(self, folder: Path) -> None:
        seen = {listing.digest(folder)}
        assert listing.digest(folder) in seen

        def changed() -> bool:
            before = len(seen)
            seen.add(listing.digest(folder))
            return len(seen) > before

        os.utime(folder / "1.png", ns=(1, 1))
        assert changed()
        (folder / "1.png").rename(folder / "2.png")
        assert changed()
        (folder / "nowhere").unlink()
        (folder / "nowhere").symlink_to("elsewhere")
        assert changed()
        (folder / "below" / "file").write_text("")
        assert not changed()  # a folder's own digest shows it


def test_resident_pages_are_those_that_are_read(tmp_path: Path) -> None:
    """Loading and drawing touch few of the pages of the map."""
    pixels = np.zeros((64, 256), np.uint8)
    for number in range(40):
        (tmp_path / "tree" / f"{number}").mkdir(parents=True)
        for image in range(8):
            Image.fromarray(pixels + number).save(tmp_path / "tree" / f"{number}" / f"{image}.pgm")
    tasks.load(tmp_path / "tree", cache=tmp_path / "cache")
    loaded = tasks.load(tmp_path / "tree", cache=tmp_path / "cache", split=ALL)
    loaded.train.sample(tasks=2, shots=1)
    (name,) = (tmp_path / "cache").iterdir()
    blocks = Path("/proc/self/smaps").read_text().split(f"{name}\n")[1:]
    resident = sum(int(block.split("Rss:")[1].split()[0]) * 1024 for block in blocks)
    assert 0 < resident < name.stat().st_size
