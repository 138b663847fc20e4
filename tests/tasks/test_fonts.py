"""Rendering of characters, with typefaces made for the tests."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from metagan_fast import tasks
from metagan_fast.tasks.fonts import Typeface, characters_of, draw_all, find_typefaces, font_folders

Box = tuple[int, int, int, int]  # left, bottom, right, top in a thousand units to the em
NOTDEF = (100, 0, 400, 500)


def make_font(path: Path, boxes: dict[str, Box | None], **aliases: str) -> Path:
    """Write a typeface whose characters are boxes; aliases are characters drawn by another's glyph."""
    builder = FontBuilder(1000, isTTF=True)
    names = {character: f"glyph{ord(character)}" for character in boxes}
    order = [".notdef", *names.values()]
    builder.setupGlyphOrder(order)
    mapping = {ord(character): name for character, name in names.items()}
    mapping |= {ord(character): names.get(other, other) for character, other in aliases.items()}
    builder.setupCharacterMap(mapping)
    glyphs = {}
    for name, box in zip(order, [NOTDEF, *boxes.values()], strict=True):
        pen = TTGlyphPen(None)
        if box is not None:
            left, bottom, right, top = box
            pen.moveTo((left, bottom))
            for point in ((left, top), (right, top), (right, bottom)):
                pen.lineTo(point)
            pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(order, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def extent(drawing: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(drawing.max(1) > 127), np.flatnonzero(drawing.max(0) > 127)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_drawings_are_centred_at_one_scale(tmp_path: Path) -> None:
    boxes: dict[str, Box | None] = {
        "A": (0, 0, 700, 700),
        "B": (300, 0, 1000, 700),
        "C": (10, -100, 710, 600),
    }
    font = make_font(tmp_path / "a.ttf", {**boxes, "x": (50, 400, 400, 750), "M": (0, 0, 1400, 350)})
    typeface = Typeface(font, 32)
    for character in "ABC":  # centred at 28 of 32 pixels, anywhere in the em
        drawing = typeface.draw(character)
        assert drawing is not None and drawing.dtype == np.uint8 and drawing.shape == (32, 32)
        assert extent(drawing) == (2, 2, 30, 30)
        assert drawing[16, 16] == 255 and drawing[0, 0] == 0
    small, wide = typeface.draw("x"), typeface.draw("M")
    assert small is not None and extent(small) == (9, 9, 23, 23)  # half as large
    assert wide is not None and extent(wide)[::2] == (1, 31)  # made smaller, to fit


def test_edges_are_antialiased(tmp_path: Path) -> None:
    font = make_font(tmp_path / "a.ttf", {"A": (0, 0, 700, 700), "x": (0, 0, 333, 333)})
    drawing = Typeface(font, 32).draw("x")
    assert drawing is not None and len(np.unique(drawing)) > 2


def test_what_is_not_a_drawing_is_dropped(tmp_path: Path) -> None:
    boxes: dict[str, Box | None] = {
        "A": (0, 0, 700, 700),
        "B": (0, 0, 300, 700),
        "C": NOTDEF,
        "D": None,
        " ": None,
    }
    font = make_font(tmp_path / "a.ttf", {**boxes, "E": (0, 0, 700, 701)}, F=".notdef", G="A")
    assert characters_of(font) == set("ABCDEG")
    typeface = Typeface(font, 32)
    assert [character for character in "ABCDEFGZ" if typeface.draw(character) is not None] == list("ABEG")
    assert list(draw_all(font, 16, "GFEDCBA")) == ["A", "B"]  # E looks like A at this size, G is A


@pytest.fixture
def fonts(tmp_path: Path) -> Path:
    (tmp_path / "below").mkdir()
    for index, name in enumerate(["0.TTF", "below/1.ttf", "below/2.ttf", "below/3.ttf"]):
        boxes: dict[str, Box | None] = {
            "A": (0, 0, 300 + 100 * index, 700),
            "B": (0, 0, 700, 200 + 100 * index),
        }
        if index:
            boxes["C"] = (0, 0, 100, 700)
        make_font(tmp_path / name, boxes)
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    (tmp_path / "notes.txt").write_text("no font")
    return tmp_path


def test_system_fonts(fonts: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"fonts": [fonts], "split": (1, 0, 0), "min_drawings": 3}
    with caplog.at_level(logging.WARNING):
        train = tasks.load("system-fonts", image_size=16, **options).train
    assert str(fonts / "broken.ttf") in caplog.text
    assert train.classes == ("A", "B")  # C is drawn by three typefaces, but all the same way
    assert train.counts == (4, 4)
    assert train.image_shape == (1, 16, 16)
    assert len(np.unique(train.images("A").numpy().reshape(4, -1), axis=0)) == 4
    assert tasks.load(
        "system-fonts", fonts=str(fonts), characters="B", min_drawings=1, split=(1, 0, 0)
    ).train.classes == ("B",)
    assert len(find_typefaces([fonts, fonts / "0.TTF"])) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_drawings": 5}, "the 4 fonts found draw no character in 5 ways"),
        ({"image_size": (16, 8)}, "square"),
    ],
)
def test_refused_system_fonts(fonts: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.load("system-fonts", fonts=fonts, **options)  # type: ignore[arg-type]


def test_missing_fonts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"found no font in {tmp_path}"):
        tasks.load("system-fonts", fonts=tmp_path)
    with pytest.raises(ValueError, match=r"no font file or folder at .*absent"):
        tasks.load("system-fonts", fonts=tmp_path / "absent")
    assert all(folder.is_dir() for folder in font_folders())
