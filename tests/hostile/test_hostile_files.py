"""Files made to exhaust memory, to escape a folder or to run code, and random damage of every format."""

from __future__ import annotations

import ast
import gzip
import io
import pickle
import random
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import metagan_fast
from fuzz.attempts import failure
from fuzz.formats import FORMATS
from fuzz.mutations import mutated
from metagan_fast import checkpoint, tasks
from metagan_fast.dropin.figr import trainer as figr
from metagan_fast.tasks.data_sets import archives
from metagan_fast.training.report import pictures

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and limits of the address space")

CORPUS = Path(__file__).parent / "corpus"
EVERYTHING = {"split": (1.0, 0.0, 0.0)}


def refusal(place: Path, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        tasks.load(place, **EVERYTHING, **options)
    assert "\n" not in str(caught.value) and str(place) in str(caught.value)
    return str(caught.value)


# Damage


@pytest.mark.parametrize("place", sorted(CORPUS.glob("*/*.bin")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_files_that_once_failed(place: Path, tmp_path: Path) -> None:
    found = FORMATS[place.parent.name]
    assert failure(found.read, found.path(tmp_path), place.read_bytes()) is None


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", FORMATS)
def test_damage_raises_documented_errors_alone(name: str, tmp_path: Path) -> None:
    path, seeds = FORMATS[name].path(tmp_path), FORMATS[name].seeds()
    for seed in seeds:
        assert failure(FORMATS[name].read, path, seed) is None

    @settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
    @given(random=st.randoms(use_true_random=False))
    def attempt(random: random.Random) -> None:
        assert failure(FORMATS[name].read, path, mutated(seeds, random)) is None

    attempt()


def test_the_fuzzer_sees_what_it_should(tmp_path: Path) -> None:
    def exhaust(path: Path) -> None:
        try:
            bytearray(1 << 31)
        except MemoryError as error:
            raise ValueError("no memory") from error

    def unfold(path: Path) -> None:
        raise ValueError("two\nlines")

    def stumble(path: Path) -> None:
        raise KeyError("images")

    for read, text in ((exhaust, "MemoryError"), (unfold, "no line"), (stumble, "KeyError")):
        assert text in (failure(read, tmp_path / "a", b"") or "")
    assert failure(lambda path: path.read_bytes().decode("ascii"), tmp_path / "a", b"\xff") is None


# Sizes in headers


def png(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", len(header) - 4) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 2**31 - 1) + b"IDAT"


@pytest.mark.parametrize("side", [7_000, 12_000, 30_000], ids=["ours", "Pillow warns", "Pillow refuses"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_of_too_many_pixels(side: int, tmp_path: Path) -> None:
    path = FORMATS["image"].path(tmp_path)
    path.write_bytes(png(side, side))
    with pytest.raises(ValueError, match=rf"cannot read the image {path}: .* 40,000,000"):
        tasks.load(tmp_path, **EVERYTHING)


def test_the_limit_of_pixels_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = FORMATS["image"].path(tmp_path)
    Image.new("L", (5, 4)).save(path)
    monkeypatch.setenv("METAGAN_FAST_MAX_PIXELS", "19")
    with pytest.raises(ValueError, match=r"5 x 4 pixels, more than 19; .*METAGAN_FAST_MAX_PIXELS"):
        tasks.load(tmp_path, **EVERYTHING)
    monkeypatch.setenv("METAGAN_FAST_MAX_PIXELS", "20")
    assert tasks.load(tmp_path, **EVERYTHING).image_shape == (1, 4, 5)
    monkeypatch.setenv("METAGAN_FAST_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match=r"METAGAN_FAST_MAX_PIXELS to be a whole number above 0, got 'many'"):
        tasks.load(tmp_path, **EVERYTHING)


def test_an_animation_of_many_frames_is_its_first(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("P", (4, 4), 1).save(buffer, "GIF")
    whole = buffer.getvalue()
    block = whole[whole.index(b",") : -1]
    found = FORMATS["image"]
    assert failure(found.read, found.path(tmp_path), whole[:-1] + block * 200_000 + b";") is None


@pytest.mark.parametrize("data", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>", b"P3 4 4"])
def test_other_kinds_are_no_images_whatever_their_name(data: bytes, tmp_path: Path) -> None:
    path = FORMATS["image"].path(tmp_path)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="cannot read the image"):
        tasks.load(tmp_path, **EVERYTHING)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"latent_dim": 4', '"latent_dim": 4000000000'),
        ("[\n    8\n   ]", "[800000000, 800000000]"),
        ("[\n    8\n   ]", str([8] * 1000)),
    ],
    ids=["latent", "wide", "deep"],
)
def test_networks_larger_than_their_checkpoint(old: str, new: str, tmp_path: Path) -> None:
    found = FORMATS["config"]
    path = found.path(tmp_path)
    text = found.seeds()[0].decode()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(checkpoint.CheckpointError, match=r"config\.json: it describes networks of .* tensors, but"):
        found.read(path)


def test_a_sample_grid_of_too_many_pixels_is_left_out(tmp_path: Path) -> None:
    grid = tmp_path / "step-00000001.png"
    grid.write_bytes(png(30_000, 30_000))
    assert pictures.sample_rows([grid], pictures.GridLayout((), 1, 1, (4, 4))) == ([], {})


def idx(*shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


@pytest.mark.parametrize("shape", [(2**32 - 1, 2**32 - 1, 2**32 - 1), (2**31, 1, 1), (2**32 - 1, 0, 0)])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_headers_that_lie(shape: tuple[int, ...], packed: bool, tmp_path: Path) -> None:
    found = FORMATS["gz" if packed else "idx"]
    path = found.path(tmp_path)
    data = idx(*shape) + bytes(100)
    assert failure(found.read, path, gzip.compress(data) if packed else data) is None
    with pytest.raises(ValueError, match=str(path)):
        found.read(path)


def test_the_limit_of_unpacked_bytes_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = FORMATS["gz"].path(tmp_path)
    path.write_bytes(FORMATS["gz"].seeds()[0])
    for place, size in ((path, 100), (tmp_path / "a.npz", 99)):
        np.savez_compressed(tmp_path / "a.npz", images=np.zeros((4, 5, 5), np.uint8), labels=np.zeros(4, int))
        monkeypatch.setenv("METAGAN_FAST_MAX_BYTES", str(size - 1))
        options = {"labels": tmp_path / "labels"} if place == path else {}
        assert "METAGAN_FAST_MAX_BYTES raises the limit" in refusal(place, **options)
        monkeypatch.setenv("METAGAN_FAST_MAX_BYTES", "1000")
        tasks.load(place, **EVERYTHING, **options)


def test_a_bomb_of_gzip_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    found = FORMATS["gz"]
    with io.BytesIO() as buffer:
        with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as file:
            file.write(idx(2**31, 1, 1))
            for _ in range(64):
                file.write(bytes(1 << 20))
        data = buffer.getvalue()
    assert failure(found.read, found.path(tmp_path), data) is None


def npy(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def described(shape: str, dtype: str = "|u1") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (npy(described("(1099511627776, 4, 4)"), bytes(64)), "promises 17,592,186,044,416 bytes, it has 64"),
        (npy(described("(4, 4, 4)"), bytes(63)), "promises 64 bytes, it has 63"),
        (npy(described("(1099511627776, 0, 0)")), "expected images with pixels"),
        (npy(described("(4,)", "<U0")), "promises 0 bytes"),
        (npy(described("(" * 500 + ")" * 500)), "cannot read"),
        (npy(described("(4, 4, 4)"), bytes(64), b"\3\0"), "another version"),
    ],
)
def test_npz_headers_that_lie(images: bytes, message: str, tmp_path: Path) -> None:
    labels = io.BytesIO()
    np.save(labels, np.zeros(4, int))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("images.npy", images)
        file.writestr("labels.npy", labels.getvalue())
    assert message in refusal(tmp_path / "a.npz")


def test_sizes_of_a_zip_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((4, 5, 5), np.uint8), labels=np.zeros(4, int))
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\1\2")
    data[entry + 24 : entry + 28] = struct.pack("<I", 2**31)  # of the central directory: the size unpacked
    path.write_bytes(data)
    assert "too many for" in refusal(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("images.npy", bytes(100))
    assert "another method than deflate" in refusal(path)


# Pickles


class Bomb:
    """Object whose unpickling makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_no_reader_runs_a_pickle(tmp_path: Path) -> None:
    mark = tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(mark))
    pickle.loads(bomb)
    assert mark.exists()
    mark.unlink()
    saved, archived = io.BytesIO(), io.BytesIO()
    torch.save({"generator": Bomb(mark), "discriminator": {}, "episode": 1}, saved)
    np.savez(archived, images=np.array([Bomb(mark)], dtype=object), labels=np.array([Bomb(mark)], dtype=object))
    for name, found in FORMATS.items():
        path = found.path(tmp_path / name)
        for data in (bomb, saved.getvalue(), archived.getvalue(), gzip.compress(bomb)):
            assert failure(found.read, path, data) is None
    place = tmp_path / "checkpoint of figr"
    place.write_bytes(saved.getvalue())
    with pytest.raises(ValueError, match="cannot read"):
        figr._read_checkpoint(place)
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.read(place)
    assert not mark.exists()


def test_no_source_unpickles_or_evaluates_files() -> None:
    """`pickle.load`, `eval` and their like appear nowhere; `torch.load` and `np.load` only in their safe forms."""
    safe = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
    refused = {"eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "marshal.loads"}
    words = ("torch.load", "np.load", "eval(", "exec(", "pickle.", "yaml", "marshal")
    calls = 0
    for source in Path(metagan_fast.__file__).parent.rglob("*.py"):
        text = source.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text if any(word in text for word in words) else "")):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in refused, (source, node.lineno, name)
            if name in safe:
                key, value = safe[name]
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get(key) == str(value), (source, node.lineno, name)
                calls += 1
    assert calls >= 2


# Archives


def deb(size: str) -> bytes:
    return b"!<arch>\n" + f"{'data.tar':<16}{0:<12}{0:<6}{0:<6}{100644:<8}{size:<10}`\n".encode()


@pytest.mark.parametrize("size", ["-60", "9999999999", "1"])
def test_sizes_of_a_debian_package_that_lie(size: str, tmp_path: Path) -> None:
    found = FORMATS["deb"]
    path = found.path(tmp_path)
    assert failure(found.read, path, deb(size)) is None
    with pytest.raises(ValueError, match=rf"cannot read {path}: data\.tar has {size} bytes by its header"):
        found.read(path)


@pytest.mark.parametrize(("name", "value"), [("MOST_MEMBERS", 3), ("LARGEST_ARCHIVE", 19)])
def test_archives_of_too_much(name: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = FORMATS["tgz"].path(tmp_path)
    path.write_bytes(FORMATS["tgz"].seeds()[0])
    FORMATS["tgz"].read(path)
    monkeypatch.setattr(archives, name, value)
    with pytest.raises(ValueError, match=r"it has more than .* files or .* bytes, unpacked"):
        FORMATS["tgz"].read(path)
