"""Trees of class folders as found in practice: links, names of any bytes, files left out."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from PIL import Image

from metagan_fast import tasks
from metagan_fast.training.run_folder import write_json

EVERYTHING = (1.0, 0.0, 0.0)


def write_image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), value).save(path)


def classes(place: Path) -> tuple[str, ...]:
    return tasks.load(place, split=EVERYTHING).train.classes


class TestLinks:
    def test_a_link_to_a_parent_adds_no_classes(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        for number in range(10):
            write_image(tmp_path / "tree" / f"class {number}" / "a.png", number)
        (tmp_path / "tree" / "loop").symlink_to("../tree")
        assert classes(tmp_path / "tree") == tuple(f"class {number}" for number in range(10))
        assert f"1 link to a folder that is read already (loop -> {tmp_path / 'tree'})" in caplog.text

    def test_links_to_each_other_end(self, tmp_path: Path) -> None:
        for group, other in (("a", "b"), ("b", "a")):
            write_image(tmp_path / group / "c" / "1.png")
            (tmp_path / group / f"to {other}").symlink_to(tmp_path / other)
        assert classes(tmp_path) == ("a/c", "b/c")

    @pytest.mark.parametrize("alias", ["alias", "zoo/alias"])
    def test_a_folder_reached_twice_is_one_class_by_its_own_name(self, tmp_path: Path, alias: str) -> None:
        for name in ("cat", "dog"):
            write_image(tmp_path / name / "1.png")
        (tmp_path / alias).parent.mkdir(exist_ok=True)
        (tmp_path / alias).symlink_to(tmp_path / "cat")
        assert classes(tmp_path) == ("cat", "dog")

    def test_two_links_to_one_folder_elsewhere(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_image(tmp_path / "store" / "17" / "1.png")
        for name in ("cat", "kitten"):
            (tmp_path / "tree").mkdir(exist_ok=True)
            (tmp_path / "tree" / name).symlink_to(tmp_path / "store" / "17")
        assert classes(tmp_path / "tree") == ("cat",)
        assert f"(kitten -> {tmp_path / 'store' / '17'})" in caplog.text

    def test_a_tree_that_is_itself_a_link(self, tmp_path: Path) -> None:
        write_image(tmp_path / "tree" / "cat" / "1.png")
        (tmp_path / "here").symlink_to("tree")
        assert classes(tmp_path / "here") == ("cat",)

    def test_a_tree_of_nothing_but_a_loop(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to(".")
        with pytest.raises(ValueError, match=f"expected a folder for each class in {tmp_path}, found nothing to read"):
            classes(tmp_path)


class TestLeftOut:
    def test_one_line_counts_everything(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        for name in ("1.png", "2.JPEG", "3.jfif", "4.jpe", "._1.png", "__thumb.png"):
            Image.new("L", (4, 4)).save(tmp_path / "x.jpg")
            (tmp_path / "cat").mkdir(exist_ok=True)
            (tmp_path / "x.jpg").rename(tmp_path / "cat" / name)
        (tmp_path / "cat" / "notes.txt").write_text("no image")
        (tmp_path / "cat" / ".DS_Store").write_text("nobody expects it to be read")
        for name in ("gone.png", "gone too", "itself.png"):
            (tmp_path / "cat" / name).symlink_to(tmp_path / "cat" / "itself.png")
        write_image(tmp_path / "dog" / "1.png")
        write_image(tmp_path / "__MACOSX" / "dog" / "1.png")
        loaded = tasks.load(tmp_path, min_images=2, split=EVERYTHING)
        assert loaded.train.counts == (4,)
        (line,) = caplog.messages
        assert caplog.records[0].levelno == logging.WARNING
        assert line.startswith(f"{tmp_path}: left out ")
        for phrase in (
            '3 names that begin with "." or "__" (__MACOSX, ',
            "3 links that lead nowhere (cat/gone too, ",
            "1 file of another kind (cat/notes.txt)",
            "1 class with fewer than 2 images (dog)",
        ):
            assert phrase in line

    def test_nothing_left_out_is_no_line(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_image(tmp_path / "cat" / "1.png")
        (tmp_path / ".cache").write_text("")
        assert classes(tmp_path) == ("cat",)
        assert tasks.read_images(tmp_path / "cat").shape == (1, 1, 4, 4)
        assert not caplog.messages

    def test_support_images_are_counted_too(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        for name in ("1.png", ".2.png", "below/3.png"):
            write_image(tmp_path / name)
        (tmp_path / "4.png").symlink_to("gone")
        assert len(tasks.read_images(tmp_path)) == 1
        (line,) = caplog.messages
        for phrase in (
            '1 name that begins with "." or "__" (.2.png)',
            "1 link that leads nowhere (4.png)",
            "1 folder (below)",
        ):
            assert phrase in line


def test_names_of_any_bytes_survive_their_record(tmp_path: Path) -> None:
    try:
        for name in (b"caf\xe9", b"caf\xc3\xa9", b"tea"):
            os.mkdir(os.path.join(os.fsencode(tmp_path), name))
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    for folder in tmp_path.iterdir():
        write_image(folder / "1.png")
    loaded = tasks.load(tmp_path, split=(0.4, 0.3, 0.3))
    write_json(tmp_path / "split.json", loaded.split_record())
    record = json.loads((tmp_path / "split.json").read_text(encoding="utf-8"))
    assert record == loaded.split_record()
    again = tasks.load(tmp_path, split=record)
    assert again.split_record()["test"] == loaded.split_record()["test"]
    assert {"café", "tea"} < {name for part in ("train", "validation", "test") for name in record[part]}
