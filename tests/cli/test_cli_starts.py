"""Which checkpoint commands take, where training starts, and images of the opposite contrast."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import metagan_fast as mgf
from metagan_fast.cli import main
from metagan_fast.metrics import FeatureExtractor
from metagan_fast.training.run_folder import KID, RunFolder

NETWORKS = ["--preset", "quick", "--model", "hidden=[8]", "--inner-steps", "2"]
TINY = [*NETWORKS, "--tasks", "2", "--split", "0.5", "0.3", "0.2"]
KEPT = ["--ema", "0.5", "--keep-best", "--validate-every", "1", "--checkpoint-every", "1", "--keep", "9"]


@pytest.fixture(scope="module", autouse=True)
def few_feature_steps() -> Iterator[None]:
    train = FeatureExtractor.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractor, "train", lambda *given, **rest: train(*given, **rest, steps=3, batch_size=8))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, few_feature_steps: None) -> Path:
    """Train a run whose best checkpoint is not its last."""
    path = tmp_path_factory.mktemp("starts") / "run"
    assert main(["train", *TINY, *KEPT, "--meta-lr", "0.5", "--steps", "5", "--out", str(path)]) == 0
    folder = RunFolder(path)
    best, metadata = folder.read_checkpoint(2)
    folder.save_best(best, {**metadata, KID: -9.0})
    return path


@pytest.fixture
def copy_of_run(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy", symlinks=True))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write four dark strokes on light paper."""
    (tmp_path / "photos").mkdir()
    for index in range(4):
        pixels = np.full((16, 16), 200, np.uint8)
        pixels[3:13, 4 + index : 7 + index] = 30
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    return tmp_path / "photos"


def initialisation(folder: RunFolder, which: str | int, name: str = "average.generator.") -> dict[str, torch.Tensor]:
    tensors = folder.read_checkpoint(which)[0]
    return {key.removeprefix(name): value for key, value in tensors.items() if key.startswith(name)}


def test_settings_are_recorded(run: Path) -> None:
    record = RunFolder(run).read_config()
    assert (record["settings"]["training"]["ema"], record["settings"]["training"]["keep_best"]) == (0.5, True)
    assert "init" not in record["settings"] and "initialisation" not in record
    assert list(run.glob("features.safetensors"))


@pytest.mark.parametrize("which", [None, "best", "last", "4"])
def test_sample_takes_the_checkpoint(
    which: str | None, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [] if which is None else ["--checkpoint", which]
    assert main(["sample", str(run), "--samples", "1", "--out", str(tmp_path / "out"), *chosen]) == 0
    said = "checkpoint: the best by validation, after 2 meta-steps (KID -9.000); --checkpoint last takes the newest"
    assert (said in capsys.readouterr().out) == (which in (None, "best"))
    step = {None: 2, "best": 2, "last": 5, "4": 4}[which]
    networks = mgf.models.mlp((1, 8, 8), latent_dim=32, hidden=[8])
    learner = mgf.MetaGAN.load(run / "checkpoints" / f"step-{step:08d}.safetensors", *networks)
    expected = learner.adapt(torch.zeros(1, 1, 8, 8), steps=0).sample(1)[0, 0]
    found = torch.from_numpy(np.array(Image.open(tmp_path / "out" / "0.png"))).float() / 127.5 - 1
    assert (found - expected).abs().max() < 1 / 127


@pytest.mark.slow
def test_commands_agree_on_the_checkpoint(copy_of_run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step, choice in ((2, []), (5, ["--checkpoint", "last"]), (3, ["--checkpoint", "3"])):
        assert main(["evaluate", str(copy_of_run), "--samples", "4", "--draws", "1", *choice]) == 0
        assert json.loads((copy_of_run / "evaluation.json").read_text())["meta_step"] == step
        assert "training the feature classifier" not in capsys.readouterr().out  # training did, for its validation
        assert main(["report", str(copy_of_run), *choice]) == 0
        assert f"{step} meta-steps" in (copy_of_run / "report.html").read_text()
        assert main(["adapt", str(copy_of_run), str(photos), *choice]) == 0


def test_a_checkpoint_that_is_not_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(run), "--checkpoint", "7"]) == 2
    assert "keeps no checkpoint 7; it has best, 1, 2, 3, 4, 5" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["sample", str(run), "--checkpoint", "first"])
    assert "expected last, best or a number of meta-steps, got 'first'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["run", "file"])
def test_training_starts_from_another_run(kind: str, run: Path, tmp_path: Path) -> None:
    source = run if kind == "run" else run / "checkpoints" / "step-00000004.safetensors"
    step = 2 if kind == "run" else 4
    out = tmp_path / "out"
    rest = ["--meta-lr", "0", "--split", "0.6", "0.2", "0.2", "--tasks", "1", "--steps", "1"]
    assert main(["train", *NETWORKS, *rest, "--init", str(source), "--out", str(out)]) == 0
    folder = RunFolder(out)
    started, expected = initialisation(folder, "last", "generator."), initialisation(RunFolder(run), step)
    assert started.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in started.items())
    record = folder.read_config()
    assert record["settings"]["init"] == str(source)
    assert record["initialisation"] == {"source": str(source), "meta_step": step}
    source = shutil.move(run, tmp_path / "moved") if kind == "run" else None
    try:
        assert main(["train", "--resume", "--steps", "2", "--out", str(out)]) == 0  # without the source
    finally:
        if source is not None:
            shutil.move(source, run)
    assert RunFolder(out).read_config() == {**record, "settings": RunFolder(out).read_config()["settings"]}
    assert main(["train", "--resume", "--init", str(out), "--out", str(out)]) == 2


def test_a_start_from_other_networks_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["train", *TINY, "--model", "hidden=[9]", "--init", str(run), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "--model, --init: cannot load" in error and error.count("\n") == 1
    assert "expected 'generator.hidden.0.weight' to be torch.float32 [9, 32], got torch.float32 [8, 32]" in error
    assert not out.exists()
    with pytest.raises(SystemExit):
        main(["train", *TINY, "--init", str(tmp_path / "nowhere"), "--out", str(out)])
    assert "expected a run's folder, a checkpoint file or one of glyphs" in capsys.readouterr().err


def test_images_of_the_opposite_contrast_are_inverted(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "the images are dark on light, the run's data light on dark: inverted (--no-invert leaves them)"
    light = tmp_path / "light"
    light.mkdir()
    for file in photos.iterdir():
        Image.fromarray(255 - np.array(Image.open(file))).save(light / file.name)
    pictures = {}
    for name, folder, choice in (
        ("recognised", photos, []),
        ("asked for", photos, ["--invert"]),
        ("light", light, []),
        ("left", photos, ["--no-invert"]),
    ):
        out = tmp_path / "out" / name
        assert main(["adapt", str(run), str(folder), "--samples", "1", "--out", str(out), *choice]) == 0
        assert (said in capsys.readouterr().out) == (name == "recognised")
        pictures[name] = (out / "support_above_generated.png").read_bytes()
    assert pictures["recognised"] == pictures["asked for"] == pictures["light"] != pictures["left"]


def test_runs_without_a_recorded_contrast_invert_nothing(
    copy_of_run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(copy_of_run)
    record = folder.read_config()
    assert record.pop("contrast") > 0
    folder.write_config(record)
    assert main(["adapt", str(copy_of_run), str(photos)]) == 0
    assert "inverted" not in capsys.readouterr().out
