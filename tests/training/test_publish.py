"""A published initialisation: its files, its card, and the way back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import metagan_fast as mgf
from evaluations import made_up_evaluation
from metagan_fast.cli import main
from metagan_fast.cli.runs import open_run
from metagan_fast.training.run_folder import RunFolder

TINY = ["--preset", "quick", "--model", "hidden=[8]", "--inner-steps", "2", "--tasks", "2", "--steps", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Train on a file with recorded licences, with a moving average, and pretend to evaluate."""
    folder = tmp_path_factory.mktemp("publish")
    images = np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8)
    labels = np.array([f"class {n % 10}" for n in range(120)])
    np.savez(folder / "drawings.npz", images=images, labels=labels, licences=np.array(["MIT", "CC0-1.0"] * 60))
    path = folder / "run"
    data = ["--data", str(folder / "drawings.npz"), "--split", "0.6", "0.2", "0.2"]
    assert main(["train", *TINY, *data, "--ema", "0.5", "--meta-optimizer", "adam", "--out", str(path)]) == 0
    evaluation = {**made_up_evaluation().to_dict(), "split": "test", "meta_step": 2}
    RunFolder(path).write_evaluation(evaluation)
    yield path


@pytest.fixture
def published(run: Path, tmp_path: Path) -> Path:
    out = tmp_path / "my-glyphs"
    assert main(["publish", str(run), str(out), "--license", "apache-2.0"]) == 0
    return out


def test_the_hub_s_files_are_there_and_tell_nothing_of_this_machine(run: Path, published: Path) -> None:
    names = {path.name for path in published.iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md", "evaluation.json", "adaptation.png"}
    for name in ("config.json", "README.md"):
        assert str(run.parent) not in (published / name).read_text()
    tensors = safetensors.torch.load_file(published / "model.safetensors")
    expected = open_run(run)[2].generator.state_dict()
    assert all(torch.equal(tensors[f"generator.{name}"], value) for name, value in expected.items())
    assert Image.open(published / "adaptation.png").size[0] > 10


def test_the_card_is_a_model_card(published: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub to read the card")
    card = hub.ModelCard.load(published / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["library_name"]) == ("apache-2.0", "metagan_fast")
    assert data["pipeline_tag"] == "unconditional-image-generation"
    assert {"gan", "few-shot", "reptile"} <= set(data["tags"])


def test_the_card_has_data_licences_and_figures(published: Path) -> None:
    text = (published / "README.md").read_text()
    front = dict(line.split(": ", 1) for line in text.split("---")[1].strip().splitlines())
    assert json.loads(front["license"]) == "apache-2.0"
    assert "`drawings.npz`: 6 classes for train, 2 classes for validation, 2 classes for test." in text
    assert "Licences of the images: CC0-1.0, MIT." in text
    assert "| the meta-trained GAN, adapted to the support images | 1.250 [1.000, 1.500] |" in text
    assert "reptile, 2 meta-steps" in text and 'mgf.pretrained("my-glyphs")' in text
    assert "![Examples" in text


def test_an_evaluation_of_another_meta_step_is_left_out(run: Path, tmp_path: Path) -> None:
    folder = RunFolder(run)
    content = folder.read_evaluation()
    folder.write_evaluation({**content, "meta_step": 1})
    try:
        assert main(["publish", str(run), str(tmp_path / "out"), "--license", "mit"]) == 0
    finally:
        folder.write_evaluation(content)
    assert "Not evaluated" in (tmp_path / "out" / "README.md").read_text()


def test_it_is_loaded_back_with_one_call(run: Path, published: Path) -> None:
    loaded, original = mgf.pretrained(published), open_run(run)[2]
    assert loaded.step == original.step == 2
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    assert torch.equal(loaded.adapt(images).sample(3), original.adapt(images).sample(3))
    assert torch.equal(mgf.pretrained(str(run)).adapt(images).sample(3), original.adapt(images).sample(3))


def test_commands_take_it_in_the_place_of_a_run(run: Path, published: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(3):
        Image.fromarray(np.full((8, 8), 60 * index, np.uint8)).save(tmp_path / "photos" / f"{index}.png")
    samples = []
    for source in (run, published):
        out = tmp_path / f"from-{source.name}"
        assert main(["adapt", str(source), str(tmp_path / "photos"), "--samples", "2", "--out", str(out)]) == 0
        samples.append((out / "grid.png").read_bytes())
    assert samples[0] == samples[1]
    data = ["--data", str(run.parent / "drawings.npz"), "--split", "0.6", "0.2", "0.2"]
    started = tmp_path / "started"
    assert main(["train", *TINY, *data, "--init", str(published), "--meta-lr", "0", "--out", str(started)]) == 0
    first, second = (mgf.pretrained(place).generator.state_dict() for place in (started, published))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_gan_of_the_package_can_be_published(tmp_path: Path) -> None:
    assert main(["publish", "glyphs", str(tmp_path / "glyphs"), "--license", "apache-2.0"]) == 0
    text = (tmp_path / "glyphs" / "README.md").read_text()
    assert "Licences of the images: Apache-2.0, OFL-1.1." in text and "![" not in text
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    both = [mgf.pretrained(place).adapt(images, steps=1).sample(2) for place in ("glyphs", tmp_path / "glyphs")]
    assert torch.equal(*both)


def test_other_files_are_left_alone(
    run: Path, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(run), str(published), "--license", "mit"]) == 0  # again
    assert 'license: "mit"' in (published / "README.md").read_text()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    assert main(["publish", str(run), str(tmp_path / "notes"), "--license", "mit"]) == 2
    assert "holds something else: choose another folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["publish", str(run), str(tmp_path / "new")])
    assert "--license" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"expected a pretrained GAN of glyphs, or the folder of a run; got 'nowhere'"):
        mgf.pretrained("nowhere")
