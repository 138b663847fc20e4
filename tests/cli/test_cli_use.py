"""The command line in unusual places: closed streams, moved data, no home folder, `none`, locked runs."""

from __future__ import annotations

import io
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_cli import TINY, settings

from metagan_fast import metrics
from metagan_fast.cli import main, options, streams
from metagan_fast.tasks import fonts
from metagan_fast.training import config
from metagan_fast.training.run_folder import RunFolder

# Values of options


@pytest.mark.parametrize("option", options.OPTIONS, ids=lambda option: option.flag)
def test_none_is_taken_where_the_help_says_so(option: options.Option, capsys: pytest.CaptureFixture[str]) -> None:
    shown = _help_of(option.flag, capsys)
    takes = option.none or option.flag == "--penalty"
    assert takes or "none" not in shown.split()
    if takes:
        assert "none" in shown
        algorithm = ["--algorithm", "maml"] if option.flag == "--step-weights" else []
        flat = config.flatten(settings(*algorithm, "--loss", "hinge", option.flag, "none"))
        assert flat.get(option.path) == (0 if option.flag == "--query" and not algorithm else None)


def _help_of(flag: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    entry = re.split(rf"\n  {flag}[ ,]", capsys.readouterr().out)[1]
    return " ".join(re.findall(r"[\w-]+", re.split(r"\n  --|\n\n", entry)[0]))


def test_data_take_none_for_their_own_defaults() -> None:
    plain = config.build_tasks(settings("--data", "digits", "--image-size", "none"))
    assert plain.image_shape == (1, 8, 8)
    given = settings("--data", "digits", "--image-size", "none", "--labels", "none", "--fonts", "none")
    assert config.build_tasks(given).split_record() == plain.split_record()


RANGES = {
    "train --data-seed -1": "--data-seed: expected a whole number from 0 to 2**64 - 1, got '-1'",
    "train --seed 18446744073709551616": "--seed: expected a whole number from 0 to 2**64 - 1",
    "train --seed x": "--seed: expected a whole number from 0 to 2**64 - 1, got 'x'",
    "adapt run photos --seed -1": "--seed: expected a whole number from 0",
    "sample run --seed -1": "--seed: expected a whole number from 0",
    "evaluate run --seed -1": "--seed: expected a whole number from 0",
    "evaluate run --shots 0": "--shots: expected a whole number of at least 1, got '0'",
    "train --threads 0": "--threads: expected a whole number from 1 to 4096",
    "train --device cuda:x": "--device: expected a device of this machine",
    "train --preset slow": "--preset: expected a preset of",
    "train --steps 0": "--steps: expected meta_steps",
    "train --clip-norm inf": "--clip-norm: expected clip_norm to be positive and finite",
    "train --inner-lr linear:1:0:0": "--inner-lr: expected steps to be at least 1",
    "train --meta-lr cosine:nan:0": "--meta-lr: expected a finite initial",
    "train --algorithm maml --step-weights annealed:2:0": "--step-weights: expected meta_steps to be at least 1",
    "train --algorithm maml --serial": "--algorithm, --serial: ",
    "train --inner-optimizer adam --inner-state persist": "--inner-state, --tasks: expected one task a meta-step",
    "train --batch-size 0": "--batch-size: expected batch_size to be at least 1",
    "train --generator-steps 0": "--generator-steps: expected generator_steps to be at least 1",
    "train --loss wgan-gp --generated 5": "--loss, --generated: expected generated=None with wgan-gp",
    "train --shots 1000": "--shots: ",
    "train --latent-dim 0": "--latent-dim: ",
    "train --model dcgan width=0": "--model: ",
    "train --channels 2": "--channels: ",
    "train --split nan nan nan": "--split: split must be three shares",
    "train --labels file": "--labels: ",
    "train --data nowhere": "--data: no data set or path",
}


@pytest.mark.parametrize("line", RANGES)
def test_a_value_out_of_range_names_its_option(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = line.split()
    if arguments[0] == "train":
        arguments[1:1] = TINY
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1
    assert RANGES[line] in error
    assert not (tmp_path / "runs").exists()


# Folders


def write_classes(folder: Path, classes: int = 6, images: int = 12) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (classes, images, 8, 8), np.uint8)
    for index, drawn in enumerate(pixels):
        (folder / str(index)).mkdir(parents=True)
        for number, image in enumerate(drawn):
            Image.fromarray(image).save(folder / str(index) / f"{number}.png")


def test_paths_may_begin_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    write_classes(home / "data")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(home))
    assert main(["train", *TINY, "--steps", "1", "--data=~/data", "--out=~/run"]) == 0
    assert RunFolder.open(home / "run").read_config()["settings"]["data"]["source"] == str(home / "data")
    assert main(["adapt", "~/run", "~/data/0", "--out=~/adapted", "--samples", "1", "--save-weights"]) == 0
    weights = "~/adapted/adapted.safetensors"
    assert main(["sample", "~/run", f"--weights={weights}", "--samples", "1", "--out=~/sampled"]) == 0
    assert {path.name for path in home.iterdir()} == {"data", "run", "adapted", "sampled"}
    assert not list(elsewhere.iterdir())


def test_nobody_needs_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user may have no entry in the password file."""

    def unknown(*_: object) -> None:
        raise KeyError("uid not found")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    fonts.font_folders()
    assert main(["train", *TINY, "--steps", "1", "--out", "~nobody/run"]) == 0
    assert (tmp_path / "~nobody/run/config.json").exists()


def test_data_may_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before, after, run = (tmp_path / name for name in ("before", "after", "run"))
    write_classes(before)
    arguments = [*TINY, "--shots", "2", "--split", "0.5", "0.2", "0.3"]
    assert main(["train", *arguments, "--steps", "1", "--data", str(before), "--out", str(run)]) == 0
    record = RunFolder(run).read_config()
    before.rename(after)
    resume = ["train", "--resume", "--steps", "2", "--out", str(run)]
    evaluate = ["evaluate", str(run), "--draws", "1", "--samples", "4"]
    for command in (resume, evaluate):
        capsys.readouterr()
        assert main(command) == 2
        assert f"are no longer at {before}; say where they are with --data" in capsys.readouterr().err
        assert main([*command, "--data", "digits"]) == 2
        assert "keeps its settings" in capsys.readouterr().err
    train_features = metrics.FeatureExtractor.train
    monkeypatch.setattr(
        metrics.FeatureExtractor, "train", lambda *given, **rest: train_features(*given, **rest, steps=2, batch_size=4)
    )
    assert main([*evaluate, "--data", str(after)]) == 0
    assert main([*resume, "--data", str(after)]) == 0
    moved = RunFolder(run).read_config()
    assert moved["split"] == record["split"]
    assert moved["settings"]["data"]["source"] == str(after)
    assert main([*resume, "--steps", "3"]) == 0
    (after / "0").rename(after / "zero")
    assert main([*resume, "--steps", "4"]) == 2  # other classes


def test_a_run_without_a_data_version_keeps_the_first_data(tmp_path: Path) -> None:
    """`glyphs` then named what is now `glyphs-latin`."""
    run = RunFolder(tmp_path / "run")
    assert main(["train", *TINY, "--steps", "1", "--data", "glyphs-latin", "--out", str(run.path)]) == 0
    early = run.read_config()
    assert early["split"].pop("version") == 1 and early["split"].pop("split_by") == "class"
    early["settings"]["data"] |= {"source": "glyphs", "split": [0.7, 0.1, 0.2]}
    del early["settings"]["data"]["split_by"]
    early["split"]["data"] = "glyphs"
    run.write_config(early)
    assert main(["train", "--resume", "--steps", "2", "--out", str(run.path)]) == 0
    resumed = run.read_config()
    assert resumed["split"] == early["split"] and resumed["settings"]["data"] == early["settings"]["data"]
    assert run.latest()[1]["step"] == 2


def test_a_run_records_the_version_and_the_scripts_of_its_data(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    line = ["train", *TINY, "--steps", "1", "--data", "glyphs", "--image-size", "8", "--out", str(run.path)]
    assert main(line) == 0
    split = run.read_config()["split"]
    assert (split["version"], split["split_by"]) == (2, "group")
    assert {name.partition("/")[0] for name in split["test"]} == {"Devanagari"}


# A run under way, a folder that cannot be written


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


def test_a_second_process_leaves_a_run_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", *TINY, "--steps", "1", "--out", str(run)]) == 0
    before = content(run)
    with RunFolder(run).lock():
        for flag in ("--resume", "--overwrite"):
            capsys.readouterr()
            assert main(["train", *TINY, flag, "--steps", "2", "--out", str(run)]) == 2
            assert f"{run} is in use: process {os.getpid()} trains there" in capsys.readouterr().err
    assert content(run) == before
    assert main(["train", *TINY, "--overwrite", "--steps", "2", "--out", str(run)]) == 0


def test_evaluate_asks_first_where_it_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", *TINY, "--steps", "1", "--out", str(run)]) == 0

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    monkeypatch.setattr(metrics.FeatureExtractor, "train", None)  # would fail otherwise
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 2
    assert f"cannot write to {run}: Read-only file system" in capsys.readouterr().err


# Streams


def broken_pipe() -> io.TextIOWrapper:
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w")


def full_disk() -> io.TextIOWrapper:
    return open("/dev/full", "w")


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


class OnlyWrites:
    """A stream without a file descriptor, as notebooks and loggers have."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


STREAMS: dict[str, Callable[[], Any]] = {
    "a broken pipe": broken_pipe,
    "a full disk": full_disk,
    "closed": closed,
    "none": lambda: None,
    "a stand-in": OnlyWrites,
}


@pytest.mark.parametrize("kind", STREAMS)
def test_training_does_without_streams(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", STREAMS[kind]())
    monkeypatch.setattr(sys, "stderr", STREAMS[kind]())
    run = tmp_path / "run"
    assert main(["train", *TINY, "--steps", "2", "--out", str(run)]) == 0
    assert RunFolder(run).latest()[1]["step"] == 2
    assert main(["train", *TINY, "--out", str(run)]) == 2  # an error with no stream to report it on
    for arguments in (["train", "--seed", "-1"], ["train", "--help"], ["--version"]):
        with pytest.raises(SystemExit):
            main(arguments)
    monkeypatch.undo()


@pytest.mark.parametrize(("kind", "codes"), [("a broken pipe", (0, 141)), ("a full disk", (2,)), ("none", (0,))])
def test_info_that_nobody_reads(
    kind: str, codes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", STREAMS[kind]())
    code = main(["info"])
    monkeypatch.undo()
    assert code in codes
    error = capsys.readouterr().err
    assert error == ("metagan-fast: cannot write to standard output: No space left on device\n" if code == 2 else "")


def test_a_broken_pipe_of_something_else_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(given: object) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("metagan_fast.cli.info.run", fail)
    assert main(["info"]) == 2
    assert "Broken pipe" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash, for pipefail")
@pytest.mark.slow
def test_the_shell_sees_quiet_ends(tmp_path: Path) -> None:
    """Whole processes, including what the interpreter writes at exit."""
    train = " ".join([sys.executable, "-m", "metagan_fast", "train", *TINY, "--steps", "30", "--threads", "1"])
    script = f"""
        set -o pipefail
        {train} --out run 2>&1 | head -1; echo "train $?"
        {sys.executable} -m metagan_fast info | head -1; echo "info $?"
    """
    result = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    lines = result.stdout.splitlines()
    assert "train 0" in lines and {"info 0", "info 141"} & set(lines)
    assert result.stderr == ""
    assert RunFolder(tmp_path / "run").latest()[1]["step"] == 30


def test_files_do_not_take_the_place_of_closed_streams(tmp_path: Path) -> None:
    """A file opened as descriptor 2 would receive what C code prints."""
    child = os.fork()
    if not child:
        for descriptor in range(3):
            os.close(descriptor)
        streams.open_closed_descriptors()
        file = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
        os.write(2, b"a warning")
        os._exit(0 if file > 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "file").read_bytes() == b""


def test_benchmarks_read_paths_and_counts_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from metagan_fast.benchmarks import command

    monkeypatch.setenv("HOME", str(tmp_path))
    given = command._parser().parse_args(["--out=~/figures.jsonl", "--threads", "2"])
    assert (given.out, given.threads) == (tmp_path / "figures.jsonl", [2])
    for line in ("--threads 0", "--rounds 0"):
        with pytest.raises(SystemExit):
            command._parser().parse_args(line.split())
