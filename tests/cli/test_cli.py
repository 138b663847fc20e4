"""The command line in process: every command on a tiny run, every setting reachable, errors in one line."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import metagan_fast as mgf
from metagan_fast import metrics
from metagan_fast.cli import main, options, parser, train
from metagan_fast.metrics.results import METHODS
from metagan_fast.training import config as configuration
from metagan_fast.training.outer_loop import Training
from metagan_fast.training.run_folder import RunFolder

data_sources = sys.modules["metagan_fast.tasks.load"]  # the package exports its function under this name

TINY = ["--preset", "quick", "--model", "hidden=[8]", "--inner-steps", "2", "--tasks", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", *TINY, "--steps", "2", "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of three colour images, larger than the run's."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(3):
        Image.new("RGB", (20, 20), (80 * index, 10, 200)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def copy_of_run(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy", symlinks=True))


def settings(*arguments: str) -> dict[str, Any]:
    """Return the resolved settings of a `train` command line."""
    given = parser().parse_args(["train", *arguments])
    preset = configuration.from_preset(given.preset or "default")
    return configuration.resolve(configuration.merge(preset, options.changes(given)))


def test_train_writes_its_record(run: Path) -> None:
    record = RunFolder.open(run).read_config()
    assert record["settings"] == settings(*TINY, "--steps", "2")
    assert record["image_shape"] == [1, 8, 8]
    assert record["versions"]["torch"] == torch.__version__
    tasks = mgf.tasks.load("digits", split=record["split"])
    assert set(tasks.train.classes).isdisjoint(tasks.test.classes)
    assert (run / "samples" / "step-00000002.png").exists()


def test_train_says_where_things_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr()
    assert "meta-step 1/1" in shown.err and "discriminator" in shown.err
    for place in ("report.html", "samples/step-00000001.png", "checkpoints/latest.safetensors", "metrics.jsonl"):
        assert str(tmp_path / "run" / place) in shown.out
    assert str(tmp_path / "run" / "events") in shown.out


def test_resume_goes_on(copy_of_run: Path) -> None:
    assert main(["train", *TINY, "--resume", "--steps", "3", "--out", str(copy_of_run)]) == 0
    assert RunFolder.open(copy_of_run).latest()[1]["step"] == 3
    assert main(["train", "--resume", "--steps", "4", "--keep", "1", "--out", str(copy_of_run)]) == 0
    assert RunFolder.open(copy_of_run).latest()[1]["step"] == 4
    assert RunFolder.open(copy_of_run).read_config()["settings"]["training"]["keep"] == 1


def test_a_resumed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """As after a crash: steps after a checkpoint are lost and repeated."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    arguments = [*TINY, "--steps", "4", "--checkpoint-every", "2"]
    assert main(["train", *arguments, "--out", str(straight)]) == 0
    shutil.copytree(straight, resumed, symlinks=True)
    (resumed / "checkpoints" / "step-00000004.safetensors").unlink()
    assert main(["train", "--resume", "--out", str(resumed)]) == 0
    files = ("checkpoints/step-00000004.safetensors", "metrics.jsonl", "config.json", "samples/step-00000004.png")
    for file in (*files, "report/adaptation.png", "report/interpolation.png"):
        assert (resumed / file).read_bytes() == (straight / file).read_bytes(), file


def test_overwrite_starts_again(copy_of_run: Path) -> None:
    assert main(["train", *TINY, "--steps", "1", "--overwrite", "--out", str(copy_of_run)]) == 0
    assert RunFolder.open(copy_of_run).latest()[1]["step"] == 1


def test_adapt_and_sample(run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapted"
    arguments = ["adapt", str(run), str(photos), "--out", str(out), "--samples", "5", "--save-weights"]
    assert main(arguments) == 0
    names = {file.name for file in out.iterdir()}
    assert names == {
        *(f"{i}.png" for i in range(5)),
        "grid.png",
        "support_above_generated.png",
        "adapted.safetensors",
        ".metagan-fast.json",
    }
    assert Image.open(out / "0.png").size == (8, 8)
    again = tmp_path / "again"
    weights = str(out / "adapted.safetensors")
    assert main(["sample", str(run), "--weights", weights, "--samples", "5", "--out", str(again)]) == 0
    assert (again / "3.png").read_bytes() == (out / "3.png").read_bytes()
    plain = tmp_path / "plain"
    assert main(["sample", str(run), "--samples", "5", "--out", str(plain)]) == 0
    assert (plain / "3.png").read_bytes() != (out / "3.png").read_bytes()


def images_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".metagan-fast.json"}


def test_a_second_run_leaves_none_of_the_first(run: Path, photos: Path, tmp_path: Path) -> None:
    """Files of an earlier run go, from default folders too, and where names get shorter."""
    for name, command in {"adapted": ["adapt", str(run), str(photos)], "plain": ["sample", str(run)]}.items():
        out = ["--out", str(tmp_path / name)]
        extra = ["--save-weights"] if name == "adapted" else []
        assert main([*command, *out, "--samples", "101", *extra]) == 0
        assert main([*command, *out, "--samples", "3"]) == 0
        both = {"support_above_generated.png"} if name == "adapted" else set()
        assert set(images_in(tmp_path / name)) == {"0.png", "1.png", "2.png", "grid.png"} | both


def test_images_of_the_users_own_are_not_replaced(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cat = Path(shutil.copytree(photos, tmp_path / "cat"))
    before = images_in(cat)
    for command in (["adapt", str(run), str(cat)], ["sample", str(run)]):
        assert main([*command, "--out", str(cat), "--samples", "3"]) == 2
        assert f"{cat / '0.png'} exists and `{command[0]}` did not write it" in capsys.readouterr().err
    assert main(["adapt", str(run), str(cat), "--out", str(cat)]) == 2  # 00.png is free, and would be an example next
    assert f"{cat} holds the examples" in capsys.readouterr().err
    assert images_in(cat) == before


def test_adapted_weights_are_no_output_of_sample(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["adapt", str(run), str(photos), "--out", out, "--save-weights"]) == 0
    before = images_in(tmp_path / "out")
    weights = str(tmp_path / "out" / "adapted.safetensors")
    assert main(["sample", str(run), "--weights", weights, "--out", out]) == 2
    assert "`sample` did not write it" in capsys.readouterr().err
    assert images_in(tmp_path / "out") == before


def test_overwrite_keeps_what_is_not_the_runs(copy_of_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = copy_of_run / "samples" / "zz-mine.png"
    mine.write_bytes(b"mine")
    assert main(["train", *TINY, "--steps", "1", "--overwrite", "--out", str(copy_of_run)]) == 0
    assert {file.name for file in mine.parent.iterdir()} == {"zz-mine.png", "step-00000001.png"}
    assert mine.read_bytes() == b"mine"
    assert "step-00000001.png (support images" in capsys.readouterr().out


def test_an_evaluation_of_the_users_own_is_not_replaced(copy_of_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy_of_run / "evaluation.json").write_text('{"grade": "good"}')
    assert main(["evaluate", str(copy_of_run)]) == 2
    assert "evaluation.json exists and `evaluate` did not write it" in capsys.readouterr().err
    assert (copy_of_run / "evaluation.json").read_text() == '{"grade": "good"}'


def test_names_that_are_no_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A data folder and a class with such names are printed, recorded and read again."""
    data = os.fsdecode(os.fsencode(tmp_path) + b"/na\xefve")
    try:
        os.mkdir(data)
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    for number, name in enumerate([b"caf\xe9", b"a", b"b", b"c", b"d"]):
        folder = Path(data, os.fsdecode(name))
        folder.mkdir()
        for index in range(12):
            Image.new("L", (8, 8), 20 * number + index).save(folder / f"{index}.png")
    run = str(tmp_path / "run")
    line = [*TINY, "--data", data, "--split", "0.8", "0", "0.2", "--steps"]
    assert main(["train", *line, "1", "--out", os.fsdecode(os.fsencode(tmp_path) + b"/r\xfcn")]) == 2
    assert "must be UTF-8, which TensorBoard needs" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {os.path.basename(data)}
    for arguments in (["train", *line, "1"], ["train", "--resume", "--steps", "2"]):
        assert main([*arguments, "--out", run]) == 0
        assert "na\\udcefve: 4 training classes" in capsys.readouterr().out
    split = RunFolder.open(run).read_config()["split"]
    assert os.fsdecode(b"caf\xe9") in split["train"] + split["test"]


def test_evaluate(
    copy_of_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_features = metrics.FeatureExtractor.train
    monkeypatch.setattr(
        metrics.FeatureExtractor,
        "train",
        lambda *given, **rest: train_features(*given, **rest, steps=3, batch_size=8),
    )
    command = ["evaluate", str(copy_of_run), "--samples", "6", "--per-class", "--features", "own_features:thumbnails"]
    monkeypatch.chdir(tmp_path)
    Path("own_features.py").write_text("def thumbnails(images):\n    return images[..., ::2, ::2].flatten(1)\n")
    assert main(command) == 0
    shown = capsys.readouterr().out
    found = json.loads((copy_of_run / "evaluation.json").read_text())
    evaluation = metrics.Evaluation.from_dict(found)
    assert evaluation.spaces == ("classifier", "prototype", "thumbnails")
    assert [row.method for row in evaluation.rows] == [name for name in METHODS if name != "random"]
    for space in ("classifier", "prototype"):
        assert f"{space} {found['settings']['features'][space][:16]}" in shown
    assert (
        "thumbnails your own" in shown and "adapted - copies" in shown and found["settings"]["episodes"][:16] in shown
    )
    monkeypatch.setattr(metrics.FeatureExtractor, "train", None)  # the second time they are read from the run
    assert main(command) == 0
    assert json.loads((copy_of_run / "evaluation.json").read_text()) == found
    assert (
        f"{evaluation.row('copies').figures['classifier']['kid'].mean:.3f}" in (copy_of_run / "report.html").read_text()
    )
    assert (copy_of_run / "report" / "evaluation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_full_evaluation(copy_of_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_features = metrics.FeatureExtractor.train
    few = {"steps": 3, "batch_size": 8}
    monkeypatch.setattr(metrics.FeatureExtractor, "train", lambda *given, **rest: train_features(*given, **rest, **few))
    assert main(["evaluate", str(copy_of_run), "--full", "--samples", "4", "--draws", "2"]) == 0
    found = json.loads((copy_of_run / "evaluation.json").read_text())
    evaluation = metrics.Evaluation.from_dict(found)
    assert [row.method for row in evaluation.headline] == list(METHODS)
    assert sorted(evaluation.shots) == [1, 4, 8] and found["settings"]["draws"] == 2
    first = evaluation.steps[0]
    assert set(evaluation.steps) == {0, first, round(first / 2), 2 * first}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("own_features", "expected MODULE:FUNCTION"),
        ("no_such_module:embed", "cannot import no_such_module:embed"),
        ("math:no_such_function", "cannot import math:no_such_function"),
        ("math:pi", "expected math:pi to be a function, got float"),
    ],
)
def test_features_of_ones_own_that_cannot_be_used(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "run", "--features", text])
    assert message in capsys.readouterr().err


def test_bench_hands_over(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmarks = types.ModuleType("metagan_fast.benchmarks")
    benchmarks.main = lambda arguments: len(arguments)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "metagan_fast.benchmarks", benchmarks)
    assert main(["bench", "--case", "x", "-h"]) == 3


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "photos" / "a.png")
    return tmp_path


ERRORS = {
    "train --loss unheard-of": "expected a loss of",
    "train --loss wgan-gp color=1": "color",
    "train --penalty gradient": "penalty",
    "train --model unheard-of": "expected a model of",
    "train --model hidden=[4] wings=2": "wings",
    "train --data glyfs": "did you mean 'glyphs'",
    "train --data empty": "empty",
    "train --labels file": "unknown option 'labels'",
    "train --preset slow": "expected a preset of default, quick",
    "train --inner-optimizer lion": "--inner-optimizer",
    "train --inner-lr fast": "--inner-lr",
    "train --inner-momentum 0.5": "momentum",
    "train --meta-lr step:1:2": "--meta-lr",
    "train --algorithm maml --serial": "serial",
    "train --algorithm maml --inner-state persist": "inner_state",
    "train --steps 0": "meta_steps",
    "train --shots 1000": "1000",
    "train --seed -1": "seed",
    "train --out file/run": "Not a directory",
    "train --out photos": "is not a run",
    "train --resume --out nowhere": "is not a run",
    "train --resume --overwrite": "not allowed with",
    "adapt nowhere photos": "is not a run",
    "adapt RUN empty": "no images",
    "adapt RUN nowhere": "nowhere",
    "adapt RUN file": "file",
    "adapt RUN photos --samples 0": "at least 1",
    "adapt RUN photos --steps -1": "at least 0",
    "adapt RUN photos --out file/out": "Not a directory",
    "sample RUN --weights nowhere": "No such file",
    "sample RUN --weights RUN/checkpoints/latest.safetensors": "save-weights",
    "evaluate RUN --shots 500": "use fewer shots",
    "evaluate RUN --split none": "--split",
    "launch": "launch",
    "": "COMMAND",
}


@pytest.mark.parametrize("line", ERRORS)
def test_errors_are_one_line(
    line: str, run: Path, in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spaces = {"pixels": lambda images: images.flatten(-3)}
    monkeypatch.setattr("metagan_fast.cli.evaluate.feature_spaces", lambda *_: spaces)
    arguments = line.replace("RUN", str(run)).split()
    if line.startswith("train") and "--preset" not in line:
        arguments[1:1] = TINY
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    error = capsys.readouterr().err
    assert code == 2, error
    assert ERRORS[line] in error
    assert error.count("\n") == 1 and "Traceback" not in error and error.startswith("metagan-fast")
    assert not (in_folder / "runs").exists()


def test_a_run_is_not_replaced_unasked(copy_of_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "--out", str(copy_of_run)]) == 2
    assert "holds a run; resume it, overwrite it" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["--seed 5", "--inner-lr 0.5", "--data glyphs", "--algorithm maml", "--loss hinge"])
def test_a_resumed_run_keeps_its_settings(change: str, copy_of_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", "--out", str(copy_of_run), *change.split()]) == 2
    assert "a resumed run keeps its settings" in capsys.readouterr().err


def test_debug_shows_where(in_folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        main(["--debug", "sample", "nowhere"])


def test_unexpected_errors_name_their_type(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(given: argparse.Namespace) -> int:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("metagan_fast.cli.info.run", fail)
    assert main(["info"]) == 2
    assert (
        capsys.readouterr().err == "metagan-fast info: RuntimeError: out of memory (metagan-fast --debug shows where)\n"
    )


@pytest.mark.parametrize("name", configuration.PRESETS)
def test_presets_resolve_and_survive_json(name: str) -> None:
    config = configuration.resolve(configuration.from_preset(name))
    assert configuration.resolve(json.loads(json.dumps(config))) == config
    configuration.build_training(config)
    if "figr" not in name:  # those are large
        shape = (1, 8, 8) if config["data"]["source"] == "digits" else (1, 32, 32)
        assert configuration.build_learner(config, shape).inner.to_config() == config["inner"]


def test_the_figr_preset_is_figr() -> None:
    config = configuration.resolve(configuration.from_preset("figr"))
    assert config["loss"]["name"] == "figr" and config["loss"]["weight"] == 10
    assert (config["inner"]["optimizer"], config["inner"]["lr"], config["inner"]["steps"]) == (
        "sgd",
        1e-3,
        10,
    )
    assert (config["meta"]["optimizer"], config["meta"]["lr"]) == ("adam", 1e-4)
    assert (config["training"]["tasks"], config["training"]["shots"], config["latent_dim"]) == (1, 4, 100)


def test_every_setting_has_a_flag() -> None:
    paths = {option.path for option in options.OPTIONS}
    expected = {f"inner.{field.name}" for field in dataclasses.fields(mgf.InnerLoop)}
    expected |= {f"training.{field.name}" for field in dataclasses.fields(Training)}
    for algorithm in (mgf.Reptile, mgf.FOMAML, mgf.MAML):
        expected |= {f"meta.{field.name}" for field in dataclasses.fields(algorithm)}
    expected |= {path for path in configuration.flatten(configuration.from_preset("default")) if "model" not in path}
    expected |= {f"data.{name}" for name in inspect.signature(mgf.tasks.load).parameters}
    sources = (*data_sources.NAMED.values(), *data_sources.FORMATS)
    expected |= {f"data.{name}" for source in sources for name in source.options}
    expected -= {"loss.name", "data.name_or_path", "data.options"}  # data.source, and those of the sources
    assert expected <= paths


def test_flags_become_settings() -> None:
    line = """
        --algorithm maml --meta-optimizer adamw --meta-lr cosine:1e-2:1e-4 --meta-betas 0.5 0.9 --clip-norm 1
        --generator-objective initial --step-weights annealed:5:100 --first-order-steps 7 --steps 30
        --inner-optimizer rmsprop --inner-lr linear:1:0:9 --inner-steps 5 --critic-steps 2 --shots 6
        --batch-size 3 --generated 3 --generator-steps 4
        --loss hinge separate_batches=true --penalty gradient weight=2 norm=pixel
        --model dcgan width=4 --latent-dim 9 --labels balanced --image-size 24x32 --invert --split 0.6 0.2 0.2
    """
    config = settings(*line.split())
    assert config["meta"]["lr"] == {"schedule": "cosine", "initial": 1e-2, "final": 1e-4, "steps": 30}
    assert config["meta"]["step_weights"] == {"steps": 5, "meta_steps": 100}
    assert config["meta"]["generator_objective"] == "initial" and config["meta"]["betas"] == [0.5, 0.9]
    assert config["inner"]["lr"]["steps"] == 9 and config["inner"]["critic_steps"] == 2
    assert config["inner"]["generated"] == 3 and config["inner"]["generator_steps"] == 4
    assert config["loss"] == {
        "name": "hinge",
        "separate_batches": True,
        "penalty": {"name": "gradient", "weight": 2, "norm": "pixel"},
    }  # fmt: skip
    assert config["training"]["query"] == 6
    assert config["data"]["invert"] and config["data"]["labels"] == "balanced"
    assert config["data"]["image_size"] == [24, 32]
    assert config["model"]["width"] == 4 and config["latent_dim"] == 9


def test_another_choice_drops_the_options_of_the_former() -> None:
    assert settings("--loss", "hinge")["loss"] == mgf.losses.Hinge().to_config()
    assert settings("--model", "mlp")["model"] == {"name": "mlp"}
    assert settings("--model", "width=2")["model"] == {
        **configuration.from_preset("default")["model"],
        "width": 2,
    }
    assert settings("--algorithm", "fomaml")["meta"] == mgf.FOMAML().to_config()


def test_schedules_keep_their_length_on_resume() -> None:
    stored = settings("--meta-lr", "linear:1:0", "--steps", "10")
    longer = train.continued(stored, None, {"training": {"meta_steps": 20}})
    assert longer["meta"]["lr"]["steps"] == 10 and longer["training"]["meta_steps"] == 20


@pytest.mark.parametrize("command", ["", "train", "adapt", "sample", "evaluate", "report", "info"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    if command == "train":
        assert all(option.flag in shown for option in options.OPTIONS)
        assert (
            "(default: relativistic-paired)" in " ".join(shown.split())
            and "{" not in shown.split("options:")[1]
            and "support images a task (default: 12)" in " ".join(shown.split())
        )
