"""Output folders: a command replaces and removes its own files and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from metagan_fast import checkpoint
from metagan_fast.training.output_folder import OutputFolder

RECORD = ".metagan-fast.json"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != RECORD}


def files(count: int, mark: bytes = b"") -> dict[str, bytes]:
    digits = len(str(count - 1))
    return {f"{index:0{digits}}.png": b"%d" % index + mark for index in range(count)} | {"grid.png": mark}


@pytest.mark.parametrize(("first", "second"), [(12, 5), (101, 3), (3, 101), (4, 4)])
def test_a_second_run_leaves_just_its_own(tmp_path: Path, first: int, second: int) -> None:
    for count, mark in ((first, b"a"), (second, b"b")):
        OutputFolder(tmp_path / "below" / "out", "adapt").write(files(count, mark))
        assert contents(tmp_path / "below" / "out") == files(count, mark)


def test_a_users_file_is_neither_replaced_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"mine")
    folder = OutputFolder(tmp_path, "adapt")
    for act in (lambda: folder.check(files(2)), lambda: folder.write(files(2))):
        with pytest.raises(FileExistsError, match=rf"{tmp_path}/1\.png exists and `adapt` did not write it"):
            act()
    assert contents(tmp_path) == {"1.png": b"mine"}
    folder.write({"0.png": b"theirs"})
    folder.write({})
    assert contents(tmp_path) == {"1.png": b"mine"}


def test_a_file_that_was_changed_since_is_the_users(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path, "adapt")
    folder.write(files(3))
    (tmp_path / "2.png").write_bytes(b"retouched")
    with pytest.raises(FileExistsError, match=r"2\.png exists"):
        folder.write(files(3))
    folder.write(files(2))
    assert contents(tmp_path) == files(2) | {"2.png": b"retouched"}


@pytest.mark.parametrize("kind", ["folder", "link to nothing"])
def test_what_is_no_file_is_the_users_too(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "0.png"
    target.mkdir() if kind == "folder" else target.symlink_to("nothing")
    with pytest.raises(FileExistsError, match=r"0\.png exists"):
        OutputFolder(tmp_path, "adapt").write(files(2))
    assert target.is_dir() if kind == "folder" else target.is_symlink()


def test_another_command_owns_nothing_here(tmp_path: Path) -> None:
    OutputFolder(tmp_path, "adapt").write({"grid.png": b"", "adapted.safetensors": b"weights"})
    with pytest.raises(FileExistsError, match=r"grid\.png exists and `sample` did not write it"):
        OutputFolder(tmp_path, "sample").write(files(3))
    assert contents(tmp_path)["adapted.safetensors"] == b"weights"


def test_a_record_that_is_none_is_not_replaced(tmp_path: Path) -> None:
    for text in ("", "[]", '{"command": "adapt", "files": 3}', "\x00"):
        (tmp_path / RECORD).write_text(text)
        with pytest.raises(FileExistsError, match=r"\.metagan-fast\.json is no record of what a command wrote"):
            OutputFolder(tmp_path, "adapt").write(files(2))
        assert (tmp_path / RECORD).read_text() == text


def test_a_record_names_nothing_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "mine.txt").write_bytes(b"")
    folder = OutputFolder(tmp_path / "out", "adapt")
    folder.write({"0.png": b""})
    record = tmp_path / "out" / RECORD
    record.write_text(record.read_text().replace("0.png", "../mine.txt"))
    folder.write({})
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize("writes", range(6))
def test_a_run_that_is_cut_short_is_cleared_by_the_next(
    tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    OutputFolder(tmp_path, "adapt").write(files(12, b"a"))
    whole, left = checkpoint.write_bytes, writes

    def write_some(path: Path, data: bytes) -> None:
        nonlocal left
        if left == 0:
            raise checkpoint.CheckpointError("the disk is full")
        left -= 1
        whole(path, data)

    monkeypatch.setattr(checkpoint, "write_bytes", write_some)
    with pytest.raises(checkpoint.CheckpointError):
        OutputFolder(tmp_path, "adapt").write(files(5, b"b"))
    monkeypatch.undo()
    OutputFolder(tmp_path, "adapt").write(files(3, b"c"))
    assert contents(tmp_path) == files(3, b"c")
