"""Exported generators make the images of `AdaptedGAN.sample`, for any number of latents."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import metagan_fast as mgf
from metagan_fast.cli import main
from metagan_fast.display import image_grids
from metagan_fast.learner import export
from metagan_fast.noise import draw_sample_latents
from networks import batch_norm_dcgan, tiny_gan
from support import ROOT
from tolerances import tolerance

GANS: dict[str, tuple[Callable[[], tuple[nn.Module, nn.Module]], int, tuple[int, int, int]]] = {
    "tiny": (tiny_gan, 6, (1, 8, 8)),
    "dcgan": (lambda: mgf.models.dcgan(image_size=16, channels=3, width=4, blocks=2, latent_dim=5), 5, (3, 16, 16)),
    "batch norm": (batch_norm_dcgan, 8, (1, 16, 16)),
}


def adapted_gan(name: str) -> tuple[mgf.AdaptedGAN, int]:
    make, latent_dim, image_shape = GANS[name]
    learner = mgf.MetaGAN(*make(), latent_dim=latent_dim, inner=mgf.InnerLoop(steps=2))
    return learner.adapt(torch.rand(4, *image_shape) * 2 - 1), latent_dim


def run_pt2(path: Path, latents: Tensor) -> tuple[Tensor, dict[str, object]]:
    files = {export.METADATA_FILE: ""}
    images = torch.export.load(path, extra_files=files).module()(latents)
    return images, json.loads(files[export.METADATA_FILE])


def run_onnx(path: Path, latents: Tensor) -> tuple[Tensor, dict[str, object]]:
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    reference = pytest.importorskip("onnx.reference", reason="needs onnx's reference evaluator")
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    model = onnx.load(path)
    onnx.checker.check_model(model)
    (images,) = reference.ReferenceEvaluator(model).run(None, {"latents": latents.numpy()})
    return torch.from_numpy(np.asarray(images)), {each.key: json.loads(each.value) for each in model.metadata_props}


@pytest.mark.slow  # tracing takes seconds
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("name", GANS)
def test_an_exported_generator_makes_the_same_images(name: str, suffix: str, tmp_path: Path) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript", reason="needs onnx and onnxscript")
    adapted, latent_dim = adapted_gan(name)
    path = tmp_path / f"generator{suffix}"
    before = {key: value.clone() for key, value in adapted.generator.state_dict().items()}
    adapted.export(path)
    after = adapted.generator.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[key]) for key, value in before.items())
    for count in (1, 5):
        latents = draw_sample_latents(1, count, latent_dim, seed=3)[0]
        images, metadata = (run_pt2 if suffix == ".pt2" else run_onnx)(path, latents)
        expected = adapted.sample(count, seed=3)
        assert (images.detach() - expected).abs().max() <= tolerance("exported-images")
        image_shape = list(expected.shape[1:])
        expected_metadata = {"latent_dim": latent_dim, "image_shape": image_shape, "range": [-1, 1]}
        assert metadata == {"library": "metagan_fast", **expected_metadata}


@pytest.mark.slow  # starts Python
def test_a_file_needs_no_metagan_fast(tmp_path: Path) -> None:
    adapted, _ = adapted_gan("tiny")
    adapted.export(tmp_path / "generator.pt2")
    code = (
        "import sys, torch; images = torch.export.load('generator.pt2').module()(torch.zeros(3, 6)); "
        "print(*images.shape, 'metagan_fast' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout == "3 1 8 8 False\n"


def test_what_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, _ = adapted_gan("tiny")
    with pytest.raises(ValueError, match=r"ends in \.pt2 or \.onnx to export to, got .*\.bin"):
        adapted.export(tmp_path / "generator.bin")
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the extra `onnx`, and onnx and onnxscript .* pip install"):
        adapted.export(tmp_path / "generator.onnx")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow  # tracing takes seconds
def test_the_page_s_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, torch.Tensor] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/export.md").read_text(), re.DOTALL | re.MULTILINE):
        exec(block, names)
    assert names["new_images"].shape == (16, 1, 32, 32)


class Branching(nn.Module):
    """Generator with a branch on its values, which no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 16)

    def forward(self, latents: Tensor) -> Tensor:
        images = self.linear(latents).tanh().reshape(-1, 1, 4, 4)
        return images if images.sum() > 0 else -images


def test_a_generator_that_cannot_be_traced_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot export Branching to .*generator\.pt2"):
        export.export(Branching(), 3, tmp_path / "generator.pt2")
    assert not any(tmp_path.iterdir())


def test_the_command_line_refuses_before_it_adapts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["adapt", "glyphs", "signs", "--export", "generator.bin"]) == 2
    assert "ends in .pt2 or .onnx to export to, got generator.bin" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.slow  # tracing takes seconds
def test_the_command_line_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = mgf.tasks.load("glyphs").test.sample(tasks=1, shots=3).support[0]
    (tmp_path / "signs").mkdir()
    for index, image in enumerate(images):
        (tmp_path / "signs" / f"{index}.png").write_bytes(image_grids.png(image))
    assert main(["adapt", "glyphs", "signs", "--steps", "1", "--export", "generator.pt2"]) == 0
    latents = draw_sample_latents(1, 2, 64, seed=0)[0]
    expected = mgf.pretrained("glyphs").adapt(images, steps=1).sample(2)
    found, _ = run_pt2(tmp_path / "generator.pt2", latents)
    assert (found.detach() - expected).abs().max() <= tolerance("exported-images")
