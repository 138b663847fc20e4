"""Checkpoints: exact round trips, equal bytes, and files that cannot be written or read."""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import metagan_fast as mgf
from metagan_fast import checkpoint
from metagan_fast.checkpoint import CheckpointError
from metagan_fast.metrics import FeatureExtractor
from networks import tiny_batch, tiny_gan

TENSORS = {
    "float32": torch.arange(33, dtype=torch.float32) / 7,
    "bfloat16": torch.linspace(-1, 1, 5).to(torch.bfloat16),
    "float64": torch.full((2, 3), 1 / 3, dtype=torch.float64),
    "step": torch.tensor(12),
    "empty": torch.zeros(0, 32),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
}
METADATA = {"seed": 1, "rate": 0.1, "names": ["a", "ü"], "nested": {"none": None, "flag": True}}


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor), name


def test_round_trip_is_exact(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "a.safetensors", TENSORS, METADATA)
    tensors, metadata = checkpoint.read(tmp_path / "a.safetensors")
    assert_same(tensors, TENSORS)
    assert metadata == METADATA
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(metadata=st.dictionaries(st.text(), json_values, max_size=4))
def test_metadata_round_trips(tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "metadata.safetensors"
    checkpoint.write(path, {}, metadata)
    assert checkpoint.read(path)[1] == metadata


def test_aliases_are_stored_apart(tmp_path: Path) -> None:
    flat = torch.arange(64.0)
    views = {"whole": flat, "head": flat[:32], "same": flat}
    checkpoint.write(tmp_path / "a", views, {})
    assert_same(checkpoint.read(tmp_path / "a")[0], views)


def test_equal_contents_give_equal_bytes_in_another_process(tmp_path: Path) -> None:
    program = (
        "import sys, torch; from metagan_fast import checkpoint\n"
        "checkpoint.write(sys.argv[1], {n: torch.arange(4.) for n in 'cab'}, {n: 1 for n in 'cab'})"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "there")], check=True)
    checkpoint.write(tmp_path / "here", {n: torch.arange(4.0) for n in "abc"}, dict.fromkeys("abc", 1))
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


def test_reading_does_not_hold_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    checkpoint.write(path, {"x": torch.arange(1000.0)}, {})
    tensors, _ = checkpoint.read(path)
    tensors["x"].add_(1)
    path.write_bytes(b"")
    assert tensors["x"][-1] == 1000
    checkpoint.write(path, {"x": torch.arange(1000.0)}, {})
    assert checkpoint.read(path)[0]["x"][-1] == 999


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "flipped"
    data = checkpoint.to_bytes({"a": torch.tensor([1.5]), "n": torch.tensor(3)}, {"name": "ü"})
    assert data[int.from_bytes(data[:8], "little") + 7] == ord(" ")  # the header's padding
    path.write_bytes(data)
    with path.open("r+b", buffering=0) as file:
        for bit in range(8 * len(data)):
            os.pwrite(file.fileno(), flipped(data, bit), 0)
            with pytest.raises(CheckpointError) as caught:
                checkpoint.read(path)
            assert "\n" not in str(caught.value) and str(path) in str(caught.value), bit


@given(data=st.data())
def test_any_damage_is_noticed_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "changed"
    whole = checkpoint.to_bytes(TENSORS, METADATA)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 64)))
    path.write_bytes(whole[:start] + data.draw(st.binary(max_size=16)) + whole[end:])
    with contextlib.suppress(CheckpointError):
        tensors, metadata = checkpoint.read(path)
        assert_same(tensors, TENSORS)
        assert metadata == METADATA


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    data = checkpoint.to_bytes(TENSORS, METADATA)
    path.write_bytes(flipped(data, 8 * data.index(TENSORS["float32"].numpy().tobytes()) + 70))
    with pytest.raises(CheckpointError, match=r"run\.safetensors is damaged: .* tensor 'float32' .*; use an earlier"):
        checkpoint.read(path)
    path.write_bytes(data.replace(b"0.1", b"0.2"))
    with pytest.raises(CheckpointError, match=r"run\.safetensors is damaged: .* its metadata .*; use an earlier"):
        checkpoint.read(path)


def test_files_without_checksums_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    document = json.dumps({"format": 1, "metadata": METADATA})
    safetensors.torch.save_file({"x": torch.ones(3)}, tmp_path / "old", {"metagan_fast": document})
    with caplog.at_level("DEBUG", "metagan_fast"):
        tensors, metadata = checkpoint.read(tmp_path / "old")
    assert_same(tensors, {"x": torch.ones(3)})
    assert metadata == METADATA and "old was written without checksums" in caplog.text


def test_checksums_cannot_be_lost_in_part(tmp_path: Path) -> None:
    data = checkpoint.to_bytes({"x": torch.ones(3)}, {})
    for name in (b"checksum", b"tensors"):
        (tmp_path / "a").write_bytes(data.replace(name, name.upper()))
        with pytest.raises(CheckpointError, match="its header has the parts"):
            checkpoint.read(tmp_path / "a")


def test_long_headers_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match=r"header would take 1,099,511,627,776 bytes"):
        checkpoint.read(path)
    checkpoint.write(path, {}, {"a": "x" * 1000})
    monkeypatch.setattr(checkpoint, "_LONGEST_DOCUMENT", 1000)
    with pytest.raises(CheckpointError, match="its metadata take 1,"):
        checkpoint.read(path)
    with pytest.raises(CheckpointError, match=r"at most 1,000 characters, got 1,\d+; store long lists"):
        checkpoint.to_bytes({}, {"a": "x" * 1000})


@pytest.mark.parametrize("kept", [0, 5, 40, -3])
def test_truncated_file(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.safetensors"
    checkpoint.write(path, TENSORS, METADATA)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is truncated or not"):
        checkpoint.read(path)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    path.write_text("a text file, long enough to hold a header length\n" * 20)
    with pytest.raises(CheckpointError, match="not a metagan_fast checkpoint"):
        checkpoint.read(path)
    torch.save({"x": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not a metagan_fast checkpoint"):
        checkpoint.read(path)
    safetensors.torch.save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="but not a metagan_fast checkpoint"):
        checkpoint.read(path)


@pytest.mark.parametrize(
    "header",
    [
        *("not json", "[]", "{}", "null", '{"format": 1}', '{"format": 1, "metadata": [1]}'),
        *('{"format": "1", "metadata": {}}', '{"format": true, "metadata": {}}', '{"format": NaN, "metadata": {}}'),
        '{"format": %s, "metadata": {}}' % ("9" * 5000),
        '{"format": 1, "metadata": %s}' % ("[" * 100_000),
    ],
    ids=lambda header: header[:40],
)
def test_damaged_header(tmp_path: Path, header: str) -> None:
    safetensors.torch.save_file({}, tmp_path / "a", {"metagan_fast": header})
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(tmp_path / "a")
    assert "\n" not in str(caught.value)


def persistent_learner() -> mgf.MetaGAN:
    inner = mgf.InnerLoop("adam", lr=mgf.schedules.Linear(0.01, 0.0, 9), steps=1, inner_state="persist")
    loss = mgf.losses.get("r1", weight=2.0)
    learner = mgf.MetaGAN(*tiny_gan(), latent_dim=6, inner=inner, loss=loss, executor="torch")
    learner.meta_step(tiny_batch(tasks=1, query=0))
    return learner


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values in nested data, containers included."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


MISSING = object()
ODD = [MISSING, None, True, -1, 0.5, 10**30, 10**400, float("nan"), float("inf"), "x", [], ["x", 1], {}, {"x": 1}]


def replaced(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def test_any_damage_of_a_learners_metadata_is_a_checkpoint_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, metadata = persistent_learner().state()
    assert metadata["inner_updates"] == [1, 1]
    path = "run.safetensors"
    refused, networks = 0, tiny_gan()
    for place in leaves(metadata):
        for value in ODD:
            damaged = json.loads(json.dumps(replaced(metadata, place, value)))
            monkeypatch.setattr(checkpoint, "read", lambda _, damaged=damaged: (tensors, damaged))
            try:
                learner = mgf.MetaGAN.load(path, *networks)
            except CheckpointError as error:
                refused += 1
                assert "\n" not in str(error) and path in str(error) and len(str(error)) < 400, (place, value)
            else:  # a value that is a setting or a count, too
                json.dumps(learner.state()[1])
    assert refused > 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("inner.generator.1"), r"'inner\.generator\.1' is missing"),
        (lambda x: x.update({"inner.generator.x": torch.ones(3)}), r"'inner\.generator\.x' is unknown"),
        (
            lambda x: x.update({"inner.discriminator.0": torch.ones(3)}),
            r"'inner\.discriminator\.0' to be .* got .*\[3\]",
        ),
        (lambda x: x.update({"generator.0.bias": x["generator.0.bias"].to(torch.complex64)}), "got torch.complex64"),
        (lambda x: x.update({"generator.0.bias": x["generator.0.bias"].to(torch.int8)}), "got torch.int8"),
        (lambda x: x.pop("meta.generator.0"), r"'meta\.generator\.0' is missing"),
        (lambda x: x.update({"": torch.ones(1)}), "'' is unknown"),
    ],
)
def test_odd_tensors_change_nothing(tmp_path: Path, change: Any, message: str) -> None:
    tensors, metadata = persistent_learner().state()
    change(tensors)
    checkpoint.write(tmp_path / "odd", tensors, metadata)
    generator, discriminator = tiny_gan()
    before = generator[0].weight.clone()
    with pytest.raises(CheckpointError, match=f"cannot load .*odd: it does not fit this learner: .*{message}"):
        mgf.MetaGAN.load(tmp_path / "odd", generator, discriminator)
    assert torch.equal(generator[0].weight, before)
    learner = persistent_learner()
    with pytest.raises(CheckpointError, match="cannot load the saved state: it does not fit"):
        learner.load_state(tensors, metadata)


@pytest.mark.parametrize(
    "record", [None, 3, {}, {"image_shape": 3}, {"image_shape": [1, 2]}, {"image_shape": ["x", 8, 8]}]
)
def test_damaged_record_of_a_feature_classifier(tmp_path: Path, record: Any) -> None:
    checkpoint.write(tmp_path / "features", {}, {"features": record})
    with pytest.raises(CheckpointError, match=r"features \(delete it to train one\)"):
        FeatureExtractor.load(tmp_path / "features")


def test_newer_version(tmp_path: Path) -> None:
    header = json.dumps({"format": checkpoint.FORMAT_VERSION + 1, "metadata": {}})
    safetensors.torch.save_file({}, tmp_path / "new", {"metagan_fast": header})
    with pytest.raises(CheckpointError, match=r"new has checkpoint format 2.*upgrade"):
        checkpoint.read(tmp_path / "new")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*none: No such file"):
        checkpoint.read(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"cannot save .*: No such file"):
        checkpoint.write(tmp_path / "none" / "a", {}, {})


def test_metadata_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        checkpoint.write(tmp_path / "a", {}, {"path": tmp_path})
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def full_disk(path: Path, mode: str) -> Iterator[SimpleNamespace]:
    """Open a file whose disk is full after its first bytes."""

    def write(data: bytes) -> None:
        file.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open(path, mode) as file:
        yield SimpleNamespace(write=write)


def assert_previous_file_survives(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="No space left on device; free space") as caught:
        checkpoint.write(path, tensors, {"new": True})
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    assert path.read_bytes() == before
    assert checkpoint.read(path)[1] == METADATA
    assert list(path.parent.iterdir()) == [path]


def test_full_disk_leaves_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.write(tmp_path / "a", TENSORS, METADATA)
    monkeypatch.setattr(checkpoint, "open", full_disk, raising=False)
    assert_previous_file_survives(tmp_path / "a", TENSORS)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_for_real(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        checkpoint.write(disk / "a", TENSORS, METADATA)
        assert_previous_file_survives(disk / "a", {"x": torch.zeros(200_000)})


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            checkpoint.write(tmp_path / "a", TENSORS, METADATA)
    finally:
        tmp_path.chmod(0o700)


def test_unwritable_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(checkpoint, "open", refuse, raising=False)
    with pytest.raises(CheckpointError, match="Permission denied") as caught:
        checkpoint.write(tmp_path / "a", TENSORS, METADATA)
    assert "\n" not in str(caught.value)
