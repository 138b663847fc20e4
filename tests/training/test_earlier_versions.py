"""Run folders and checkpoints of version 0.1.0 still load, and training goes on from them as it did then.

`data/run-0.1` is what `metagan-fast train` wrote up to meta-step 4, `data/run-0.1-step-6.safetensors` its checkpoint
after two more; `data/persist-0.1.safetensors` is a learner with optimizer states, inner and outer, saved by
`MetaGAN.save` after two meta-steps, `data/persist-0.1-step-3.safetensors` after three.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import metagan_fast as mgf
from metagan_fast import checkpoint
from metagan_fast.cli import main
from metagan_fast.training.run_folder import RunFolder
from support import ISAS, assert_close, instruction_set, join

DATA = Path(__file__).parent / "data"
needs_avx2 = pytest.mark.skipif("avx2" not in ISAS, reason="the stored bytes are those of AVX2, not available here")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a copy of the run."""
    return Path(shutil.copytree(DATA / "run-0.1", tmp_path / "run"))


def persistent_learner() -> mgf.MetaGAN:
    """Return a learner of the networks of `persist-0.1.safetensors` with other parameters."""
    networks = mgf.models.mlp((1, 4, 4), latent_dim=4, hidden=(12,))
    return mgf.MetaGAN.load(DATA / "persist-0.1.safetensors", *networks)


def change(actual: dict[str, Tensor], start: dict[str, Tensor]) -> Tensor:
    return join({name: value - start[name] for name, value in actual.items()})


def test_a_run_folder_is_read() -> None:
    folder = RunFolder.open(DATA / "run-0.1")
    config = folder.read_config()
    assert config["versions"]["metagan_fast"] == "0.1.0" and config["settings"]["training"]["meta_steps"] == 4
    assert [line["step"] for line in folder.read_metrics()] == [1, 2, 3, 4, 4]
    assert [path.name for path in folder.pictures()] == ["step-00000004.png"]
    tensors, metadata = folder.latest()
    assert metadata["step"] == 4 and metadata["run"]["split"] == config["split"]
    learner = mgf.MetaGAN.load(
        folder.checkpoints / "step-00000004.safetensors", *mgf.models.mlp((1, 8, 8), latent_dim=8, hidden=(16,))
    )
    assert learner.step == 4
    for role in ("generator", "discriminator"):
        for name, value in getattr(learner, role).state_dict().items():
            assert torch.equal(value, tensors[f"{role}.{name}"]), name


def test_a_run_is_sampled(run: Path, tmp_path: Path) -> None:
    assert main(["sample", str(run), "--samples", "2", "--out", str(tmp_path / "samples")]) == 0
    pictures = sorted((tmp_path / "samples").glob("*.png"))
    assert len(pictures) == 3  # two samples and their grid
    assert all(Image.open(path).getextrema() != (0, 0) for path in pictures)


@pytest.mark.parametrize("exact", [False, pytest.param(True, marks=needs_avx2)], ids=["closely", "by AVX2, exactly"])
def test_a_run_is_resumed(run: Path, exact: bool) -> None:
    with instruction_set("avx2") if exact else contextlib.nullcontext():
        assert main(["train", "--resume", "--steps", "6", "--out", str(run)]) == 0
    folder = RunFolder.open(run)
    start = checkpoint.read(DATA / "run-0.1/checkpoints/step-00000004.safetensors")[0]
    (tensors, metadata), (expected, record) = folder.latest(), checkpoint.read(DATA / "run-0.1-step-6.safetensors")
    record["run"]["split"]["shares"] = [0.7, 0.1, 0.2]  # 0.1.0 lost them when it resumed
    assert metadata == record
    assert [line["step"] for line in folder.read_metrics()] == [1, 2, 3, 4, 4, 5, 6, 6]
    assert_close(change(tensors, start), change(expected, start), "resumed-run")
    assert not exact or all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_saved_learner_is_loaded(tmp_path: Path) -> None:
    learner = persistent_learner()
    assert learner.step == 2
    learner.save(tmp_path / "again.safetensors")
    tensors, metadata = checkpoint.read(tmp_path / "again.safetensors")
    expected, record = checkpoint.read(DATA / "persist-0.1.safetensors")
    assert metadata == record
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


@pytest.mark.parametrize("exact", [False, pytest.param(True, marks=needs_avx2)], ids=["closely", "by AVX2, exactly"])
def test_a_saved_learner_goes_on(exact: bool) -> None:
    """With the states of both optimizers: Adam's first step from none would be another."""
    learner = persistent_learner()
    start = {name: value.clone() for name, value in learner.state()[0].items()}
    images = torch.rand(1, 3, 1, 4, 4, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with instruction_set("avx2") if exact else contextlib.nullcontext():
        learner.meta_step(mgf.TaskBatch(images))
    tensors, metadata = learner.state()
    expected, record = checkpoint.read(DATA / "persist-0.1-step-3.safetensors")
    assert metadata == record
    assert_close(change(tensors, start), change(expected, start), "resumed-run")
    assert not exact or all(torch.equal(tensors[name], expected[name]) for name in expected)
