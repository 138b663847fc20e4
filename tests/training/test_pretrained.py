"""GANs of the package: files, hashes, use by name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

import metagan_fast as mgf
from metagan_fast.cli import main
from metagan_fast.training import pretrained


@pytest.mark.parametrize("name", pretrained.NAMES)
def test_files_are_those_recorded(name: str) -> None:
    folder = pretrained.folder(name)
    recorded = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert found.keys() - {"SHA256SUMS"} == recorded.keys()
    for place, digest in recorded.items():
        assert hashlib.sha256(found[place].read_bytes()).hexdigest() == digest, place


@pytest.mark.parametrize("name", pretrained.NAMES)
def test_files_are_checked_when_read(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "metagan_fast"):
        mgf.pretrained(name)
    assert "without checksums" not in caplog.text


def test_all_take_at_most_3_mb() -> None:
    names = [path for name in pretrained.NAMES for path in pretrained.folder(name).rglob("*") if path.is_file()]
    assert "glyphs" in pretrained.NAMES and sum(path.stat().st_size for path in names) <= 3_000_000


def test_the_command_line_and_python_adapt_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    batch = mgf.tasks.load("glyphs").test.sample(tasks=1, shots=4)
    (tmp_path / "signs").mkdir()
    for index, image in enumerate(batch.support[0]):
        pixels = ((image[0] + 1) * 127.5).round().byte().numpy()
        Image.fromarray(pixels).save(tmp_path / "signs" / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    assert main(["adapt", "glyphs", "signs", "--steps", "2", "--samples", "3", "--save-weights"]) == 0
    saved, _ = mgf.checkpoint.read(tmp_path / "adapted" / "signs" / "adapted.safetensors")
    adapted = mgf.pretrained("glyphs").adapt(batch.support[0], steps=2)
    for name, value in adapted.generator.state_dict().items():
        torch.testing.assert_close(saved[f"generator.{name}"], value, rtol=0, atol=0)
    assert main(["sample", "glyphs", "--samples", "2"]) == 0
    assert (tmp_path / "initialisation").is_dir()


def test_an_existing_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pretrained.is_shipped(pretrained.folder("glyphs"))
    (tmp_path / "glyphs").mkdir()
    assert pretrained.folder("glyphs") == Path("glyphs") and not pretrained.is_shipped(Path("glyphs"))
    assert mgf.pretrained("glyphs").step > 0  # a name, never a path


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"expected a pretrained GAN of .*glyphs.*; got 'glyph'"):
        mgf.pretrained("glyph")


@pytest.mark.slow
def test_training_starts_from_a_name(tmp_path: Path) -> None:
    arguments = ["--steps", "1", "--tasks", "1", "--inner-steps", "1", "--no-keep-best", "--out", str(tmp_path / "run")]
    assert main(["train", "--init", "glyphs", *arguments]) == 0
    from metagan_fast.training.run_folder import RunFolder

    assert RunFolder.open(tmp_path / "run").read_config()["initialisation"]["source"] == "glyphs"
