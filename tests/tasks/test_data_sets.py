"""Data sets made of pinned packages: stand-in archives, licences, reserved scripts; no network."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from metagan_fast import tasks
from metagan_fast._utils.user_cache import cache_folder
from metagan_fast.cli import main
from metagan_fast.tasks import data_sets
from metagan_fast.tasks.data_sets import archives, emoji, glyphs_large, icon_names, icons, licences, svg
from metagan_fast.tasks.data_sets.archives import Archive
from metagan_fast.tasks.data_sets.collection import Collection, Drawing, parts_of
from metagan_fast.tasks.data_sets.scripts import LARGE_SCRIPTS, SCRIPTS, is_reserved

PINS = [(name, archive) for name, data in data_sets.SETS.items() for archive in data.pins()]
RESERVED_NAMES = ("hugeicons", "solar")


def ignore(stage: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


def tar(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return buffer.getvalue()


def deb(data: bytes) -> bytes:
    members = [(b"debian-binary", b"2.0\n"), (b"control.tar.gz", b"odd"), (b"data.tar.gz", data)]
    packed = b"!<arch>\n"
    for name, content in members:
        packed += name.ljust(16) + b"0".ljust(12) + b"0".ljust(6) + b"0".ljust(6) + b"100644".ljust(8)
        packed += str(len(content)).encode().ljust(10) + b"`\n" + content + b"\n" * (len(content) % 2)
    return packed


def pinned(data: bytes, name: str = "@iconify-json/one", **changes: str) -> Archive:
    archive = Archive("npm", name, "1.0", hashlib.sha256(data).hexdigest(), len(data), "MIT", name, "A. Uthor")
    return dataclasses.replace(archive, **changes)


def put(folder: Path, archive: Archive, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / archive.file).write_bytes(data)
    return folder / archive.file


def icon_package(icons: dict[str, str], licence: str = "MIT", chars: dict[str, str] | None = None) -> bytes:
    return tar(
        {
            "package/icons.json": json.dumps(
                {"icons": {name: {"body": body} for name, body in icons.items()}, "width": 24, "height": 24}
            ).encode(),
            "package/info.json": json.dumps({"license": {"spdx": licence}, "author": {"name": "A. Uthor"}}).encode(),
            "package/metadata.json": b"{}",
            "package/chars.json": json.dumps(chars or {}).encode(),
        }
    )


@pytest.mark.parametrize("name", data_sets.SETS)
def test_pins_are_of_allowed_licences(name: str) -> None:
    pins = data_sets.SETS[name].pins()
    assert pins and len({archive.file for archive in pins}) == len(pins)
    assert {archive.licence for archive in pins} <= {*licences.LICENCES, licences.BY_FILE}
    assert all(len(archive.sha256) == 64 and archive.source in ("npm", "debian") for archive in pins)
    assert all(archive.author or archive.licence in ("OFL-1.1", licences.BY_FILE) for archive in pins)


def test_allowed_licences_permit_changes_and_any_use() -> None:
    permissive = {
        "Apache-2.0",
        "BSD-3-Clause",
        "CC-BY-3.0",
        "CC-BY-4.0",
        "CC0-1.0",
        "ISC",
        "MIT",
        "OFL-1.1",
        "Unlicense",
    }
    assert set(licences.LICENCES) == permissive


def test_reserved_sets_are_not_pinned() -> None:
    assert not [archive.name for _, archive in PINS if any(word in archive.name for word in RESERVED_NAMES)]
    with pytest.raises(ValueError, match="reserved"):
        icons.build([pinned(b"", "@iconify-json/solar")], [Path("none")], 32, ignore)


def test_no_character_of_a_reserved_script() -> None:
    characters = [c for script in LARGE_SCRIPTS.values() for c in script.characters]
    assert not any(map(is_reserved, characters)) and len(set(characters)) == len(characters) > 3000
    assert all(LARGE_SCRIPTS[name].part == script.part for name, script in SCRIPTS.items())


@pytest.mark.parametrize("code", ["1f21a", "1f202", "3297", "1f9e7", "1f1ef-1f1f5", "1f004"])
def test_emoji_of_reserved_scripts_and_flags_are_left_out(code: str) -> None:
    assert emoji.is_left_out(code) and not emoji.is_left_out("1f600")


def test_emoji_variants() -> None:
    assert emoji.plain("1F44B-1F3FD") == "1f44b" and emoji.plain("2764-fe0f") == "2764"
    assert emoji.base("1f469-200d-1f680") == emoji.base("1f9d1-1f3fb-200d-1f680") == "1f680"
    assert emoji.base("1f3c3-200d-2640-fe0f") == "1f3c3"


@pytest.mark.parametrize(
    ("name", "concept"),
    [
        ("home-outline", "home"),
        ("house-16-solid", "home"),
        ("arrow-left-bold", "arrow-left"),
        ("left-arrow", "arrow-left"),
        ("magnifying-glass", "search"),
        ("trash-can", "trash"),
        ("close-circle", "circle-x"),
        ("github", None),
        ("translate", None),
        ("alphabet-kanji", None),
    ],
)
def test_concepts(name: str, concept: str | None) -> None:
    assert icon_names.concept(name) == concept


def test_concepts_know_a_sets_own_styles() -> None:
    assert icon_names.concept("wavy-home", prefixes=["wavy"]) == icon_names.concept("home-wavy", ["wavy"]) == "home"


def test_variants_share_a_group() -> None:
    assert {icon_names.group_of(name) for name in ("folder", "folder-plus", "folder-open")} == {"folder"}
    assert icon_names.group_of("circle-plus") == "sign"


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METAGAN_FAST_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("METAGAN_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "metagan_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "metagan_fast"


def fake_client(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder.mkdir()
    client = folder / "npm"
    client.write_text(f"#!/bin/sh\n{script}\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_downloads_are_kept_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAGAN_FAST_CACHE", str(tmp_path / "cache"))
    one, two = pinned(b"one", "one"), pinned(b"two", "two")
    put(tmp_path / "cache" / "archives", one, b"one")
    fake_client(tmp_path / "bin", monkeypatch, f'printf two > {two.file}; echo "$@" >> {tmp_path}/calls')
    paths = archives.fetch([one, two], None, ignore)
    assert [path.read_bytes() for path in paths] == [b"one", b"two"]
    assert archives.fetch([one, two], None, ignore) == paths
    assert (tmp_path / "calls").read_text() == "pack two@1.0 --ignore-scripts --silent\n"
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted([one.file, two.file])


def test_another_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAGAN_FAST_CACHE", str(tmp_path / "cache"))
    one = pinned(b"one", "one")
    fake_client(tmp_path / "bin", monkeypatch, f"printf other > {one.file}")
    with pytest.raises(ValueError, match="another SHA-256"):
        archives.fetch([one], None, ignore)
    assert not list((tmp_path / "cache" / "archives").iterdir())
    put(tmp_path / "given", one, b"other")
    with pytest.raises(ValueError, match="another SHA-256"):
        archives.fetch([one], tmp_path / "given", ignore)


def test_a_missing_client_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAGAN_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"npm is missing.*one-1\.0\.tgz.*--from"):
        archives.fetch([pinned(b"one", "one")], None, ignore)


def test_a_failing_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAGAN_FAST_CACHE", str(tmp_path / "cache"))
    fake_client(tmp_path / "bin", monkeypatch, "echo no such package >&2; exit 1")
    with pytest.raises(ValueError, match=r"failed \(no such package\).*--from"):
        archives.fetch([pinned(b"one", "one")], None, ignore)


def test_a_given_folder_must_have_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks 1 of 1 archives: one-1\.0\.tgz"):
        archives.fetch([pinned(b"one", "one")], tmp_path, ignore)
    with pytest.raises(ValueError, match="expected a folder"):
        archives.fetch([], tmp_path / "none", ignore)


@pytest.mark.parametrize("suffix", [".tgz", ".deb"])
def test_unpacking_stays_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setenv("METAGAN_FAST_CACHE", str(tmp_path / "cache"))
    files = {"../../outside.ttf": b"1", "/absolute.ttf": b"2", "a/b/inside.ttf": b"3", "a/other.txt": b"4"}
    files |= {"C:\\fonts\\drive.ttf": b"5", "..\\..\\back.ttf": b"6"}
    data = tar(files, {"a/link.ttf": "/etc/passwd"})
    archive = tmp_path / f"package{suffix}"
    archive.write_bytes(deb(data) if suffix == ".deb" else data)
    folder = archives.unpack(pinned(data), archive, lambda name: name.endswith(".ttf"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "outside.ttf": b"1",
        "absolute.ttf": b"2",
        "inside.ttf": b"3",
        "drive.ttf": b"5",
        "back.ttf": b"6",
    }
    assert not (tmp_path / "outside.ttf").exists() and folder.is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize("data", [b"", b"no archive", deb(b"no tar")[:80]])
@pytest.mark.parametrize("suffix", [".tgz", ".deb"])
def test_damaged_archives(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"package{suffix}"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="cannot read"):
        list(archives.read_files(path, lambda name: True))


def test_a_package_under_another_licence_is_refused(tmp_path: Path) -> None:
    data = icon_package({"home": "<path d='M0 0h24v24H0z'/>"}, licence="GPL-3.0")
    path = put(tmp_path, pinned(data), data)
    with pytest.raises(ValueError, match="expected the licence MIT"):
        svg.read_icon_set(pinned(data), path)


@pytest.mark.parametrize(
    "body",
    [
        *(
            '<image href="#a"/>',
            '<use href="/etc/passwd"/>',
            "<text>a</text>",
            "<script>1</script>",
            "<style>a</style>",
        ),
        *("<feImage/>", "<use href='/etc/passwd'/>", '<use xlink:href = "file:///etc/passwd"/>', "<s:image/>"),
        *('<!DOCTYPE svg [<!ENTITY a "b">]>', "<?xml-stylesheet href='#a'?>"),
    ],
)
def test_icons_that_need_more_than_their_shapes_are_left_out(tmp_path: Path, body: str) -> None:
    data = icon_package({"home": body, "plain": '<path fill="currentColor" d="M0 0h24v24H0z"/>'})
    found = svg.read_icon_set(pinned(data), put(tmp_path, pinned(data), data))
    assert svg.as_svg(found, "home") is None and svg.as_svg(found, "plain") is not None


def square(x: float, y: float, width: float, height: float) -> str:
    return f'<path fill="currentColor" d="M{x} {y}h{width}v{height}h{-width}z"/>'


def test_drawings_are_centred_and_fill_the_image(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py", reason="needs metagan_fast[data]")
    data = icon_package({"home": square(2, 3, 8, 4)})
    found = svg.read_icon_set(pinned(data), put(tmp_path, pinned(data), data))
    document = svg.as_svg(found, "home")
    assert document is not None
    drawing = svg.grey(document, 32)
    assert drawing is not None and drawing.shape == (32, 32)
    rows, columns = (np.flatnonzero(drawing.max(axis) > 127) for axis in (1, 0))
    assert (columns[0], columns[-1], rows[0], rows[-1]) == (2, 29, 9, 22)


def shapes(index: int) -> dict[str, str]:
    """Two concepts that each set draws in another way."""
    tall, wide = square(8 + index % 4, 1, 2 + index, 22 - index), square(1, 10, 22, 2)
    return {"home": tall + square(1, 2 * index % 20, 22, 2), "trash-outline": wide + square(2 * index, 2, 2, 18)}


def test_icons_from_stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("resvg_py", reason="needs metagan_fast[data]")
    monkeypatch.setattr(icons, "FEWEST", 4)
    monkeypatch.setattr(icons, "PLACED", 1)
    monkeypatch.setattr(icons, "each", lambda function, items, stage, progress: map(function, items))
    packages = []
    for index in range(8):
        data = icon_package(shapes(min(index, 6)))
        archive = pinned(data, f"@iconify-json/set{index}")
        packages.append((archive, put(tmp_path, archive, data)))
    made = icons.build(*zip(*packages, strict=True), 32, ignore)  # type: ignore[arg-type]
    assert set(made.counts) == {"home", "trash"}
    assert made.counts["home"] < 8, "the last set draws as the one before"
    again = icons.build(*zip(*packages, strict=True), 32, ignore)  # type: ignore[arg-type]
    assert made.to_bytes() == again.to_bytes()
    larger = icons.build(*zip(*packages, strict=True), 48, ignore)  # type: ignore[arg-type]
    assert larger.images.shape == (len(made.images), 48, 48) and larger.drawings == made.drawings


def collection() -> Collection:
    archive = pinned(b"", "@iconify-json/one")
    labels = [("folder", "folder"), ("folder-plus", "folder"), ("home", "home"), ("key", "key")] * 3
    drawings = [Drawing(label, group, archive, label) for label, group in sorted(labels)]
    images = np.arange(len(drawings) * 64, dtype=np.int64).reshape(-1, 8, 8).astype(np.uint8)
    parts = dict.fromkeys(["folder", "folder-plus"], "train") | {"home": "validation", "key": "test"}
    return Collection("stand-in", images, drawings, "Changed.", parts)


def test_a_saved_set_loads_with_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "made.npz"
    made = collection()
    assert made.save(path) == path.stat().st_size
    loaded = tasks.load(path)
    assert loaded.train.classes == ("folder/folder", "folder/folder-plus")
    assert (loaded.validation.classes, loaded.test.classes) == (("home/home",), ("key/key",))
    with np.load(path, allow_pickle=False) as stored:
        assert stored["sources"][0] == "@iconify-json/one 1.0: folder"
        assert set(stored["licences"]) == {"MIT"} and set(stored["authors"]) == {"A. Uthor"}
        assert len(stored["families"]) == len(stored["images"]) and "opensource.org" in str(stored["notice"])


def test_parts_keep_groups_together() -> None:
    drawings = collection().drawings
    parts = parts_of("stand-in", drawings)
    assert parts == parts_of("stand-in", drawings) and parts["folder"] == parts["folder-plus"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["train", "other"], "parts must be train, validation, test, got 'other'"),
        (["train", "test"], "one part for all"),
    ],
)
def test_parts_of_a_file_are_checked(tmp_path: Path, parts: list[str], message: str) -> None:
    path = tmp_path / "odd.npz"
    np.savez(path, images=np.zeros((2, 8, 8), np.uint8), labels=np.array(["a", "a"]), parts=np.array(parts))
    with pytest.raises(ValueError, match=message):
        tasks.load(path)


def test_the_command_makes_emoji_of_stand_ins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("resvg_py", reason="needs metagan_fast[data]")
    monkeypatch.setattr(emoji, "each", lambda function, items, stage, progress: map(function, items))
    chars = {"1f600": "grin", "1f44b": "wave", "1f44b-1f3fd": "wave-tone", "1f9e7": "red-envelope"}
    pins = []
    for index in range(emoji.FEWEST):
        icons = {
            name: f'<path fill="#{colour}{index}0" d="M1 1h20v{20 - 2 * index}h-20z"/>'
            for name, colour in (("grin", "ffd0"), ("wave", "f080"), ("wave-tone", "5040"), ("red-envelope", "ff00"))
        }
        if index == 0:
            del icons["grin"]  # one image too few
        data = icon_package(icons, chars=chars)
        pins.append(pinned(data, f"@iconify-json/vendor{index}"))
        put(tmp_path / "given", pins[-1], data)
    monkeypatch.setattr(data_sets.DataSet, "pins", lambda self: pins)
    out = tmp_path / "sub" / "emoji.npz"
    command = ["data", "get", "emoji", "--from", str(tmp_path / "given"), "--out", str(out), "--size", "16"]
    assert main(command) == 0
    assert "1 classes, 16 images of 16x16 in colour, 16 to 16 a class" in capsys.readouterr().out
    with np.load(out, allow_pickle=False) as stored:
        assert stored["images"].shape == (16, 16, 16, 3) and set(stored["labels"]) == {"wave"}
        assert (stored["images"][:, 0, 0] == 255).all()
    first = out.read_bytes()
    assert main(command) == 0 and out.read_bytes() == first


def test_the_command_lists_and_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["data", "list"]) == 0
    listed = capsys.readouterr().out.splitlines()[2:]
    assert [line.split("|")[1].strip() for line in listed] == list(data_sets.SETS)
    assert main(["data", "get", "icons", "--from", str(tmp_path), "--out", str(tmp_path / "icons.npz")]) == 2
    assert "lacks" in capsys.readouterr().err
    assert main(["data", "get", "icons", "--out", str(tmp_path / "icons.png")]) == 2
    assert "ends in .npz" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_page_shows_the_listing() -> None:
    page = Path(__file__).parents[2] / "docs" / "data.md"
    if not page.is_file():
        pytest.skip("the tests run without the source folder's pages")
    assert data_sets.listing() in page.read_text(encoding="utf-8")


def font_file(folder: Path, stem: str, boxes: dict[str, tuple[int, int]], licence: str) -> bytes:
    """Return a typeface of rectangles, each of a width and a height in thousandths of the em."""
    glyphs, order = {}, [".notdef", *(f"glyph{ord(c)}" for c in boxes)]
    for name, (width, height) in zip(order, [(1, 1), *boxes.values()], strict=True):
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for point in ((0, height), (width, height), (width, 0)):
            pen.lineTo(point)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap({ord(c): f"glyph{ord(c)}" for c in boxes})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(order, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": stem, "styleName": "Regular", "copyright": "A. Uthor"})
    builder.font["name"].setName(licence, 13, 3, 1, 0x409)
    builder.setupOS2()
    builder.setupPost()
    builder.save(folder / f"{stem}.ttf")
    return (folder / f"{stem}.ttf").read_bytes()


def test_glyphs_of_stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAGAN_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(glyphs_large, "FEWEST", dict.fromkeys(("train", "validation", "test"), 3))
    monkeypatch.setattr(glyphs_large, "each", lambda function, items, stage, progress: map(function, items))
    free = "This Font Software is licensed under the SIL Open Font License, Version 1.1."
    packages = []
    for index, licence in enumerate([free] * 4 + ["All rights reserved."]):
        # Widths differ between fonts and shapes between characters; Han and Kana are in the fonts alone.
        boxes = {
            "\u05d0": (700, 100 + 50 * index),
            "\u05d1": (100 + 50 * index, 700),
            "\u4e00": (600, 600),
            "\u30a2": (500, 500),
        }
        boxes |= {chr(code): (700, 690 - 10 * (code - 0x5D2)) for code in range(0x5D2, 0x5D6)}
        stem = f"Family{'ABCDE'[index]}-Regular"
        slanted = stem.replace("Regular", "Italic")
        files = {f"usr/share/fonts/{stem}.ttf": font_file(tmp_path, stem, boxes, licence)}
        files[f"usr/share/fonts/{slanted}.ttf"] = b"never read"
        data = deb(tar(files))
        archive = pinned(data, f"fonts-{index}", source="debian", licence=licences.BY_FILE, author="")
        packages.append((archive, put(tmp_path / "archives", archive, data)))
    made = glyphs_large.build(*zip(*packages, strict=True), 32, ignore)  # type: ignore[arg-type]
    assert {"\u05d0", "\u05d1"} <= set(made.counts) <= {chr(code) for code in range(0x5D0, 0x5D6)}
    assert made.counts["\u05d0"] == made.counts["\u05d1"] == 4, "the last font's licence is not allowed"
    assert set(made.parts.values()) == {"validation"} and {one.group for one in made.drawings} == {"Hebrew"}
    assert {(one.licence, one.author) for one in made.drawings} == {("OFL-1.1", "A. Uthor")}
    assert made.drawings[0].item == "FamilyA-Regular U+05D0"
    larger = glyphs_large.build(*zip(*packages, strict=True), 48, ignore)  # type: ignore[arg-type]
    assert larger.images.shape == (len(made.images), 48, 48) and larger.drawings == made.drawings
