"""Rules of the tool that builds the embedded `glyphs`."""

from __future__ import annotations

import numpy as np
import pytest

from metagan_fast.tasks.data_sets import choose
from metagan_fast.tasks.data_sets.faces import is_faint
from metagan_fast.tasks.data_sets.licences import licence_of
from metagan_fast.tasks.data_sets.scripts import SCRIPTS, is_reserved

OFL = "This Font Software is licensed under the SIL Open Font\nLicense, Version 1.1."


@pytest.mark.parametrize(
    ("texts", "licence"),
    [
        ([OFL, "", "https://scripts.sil.org/OFL"], "OFL-1.1"),
        (["", "Licensed under the Apache License, Version 2.0", ""], "Apache-2.0"),
        (["", "", ""], None),
        (["Copyright 2010. All rights reserved.", OFL], None),
        (["Permission is hereby granted, free of charge", OFL], None),
        (["Licensed under the Apache License, Version 2.0", OFL], None),
        ([OFL, "GNU General Public License"], None),
    ],
)
def test_a_licence_is_what_all_texts_say(texts: list[str], licence: str | None) -> None:
    assert licence_of(texts) == licence


def test_no_character_is_of_a_reserved_script() -> None:
    assert all(is_reserved(c) for c in "\u4e00\u3042\u30a2\uff71\u3105\u2f00\u3220\u337b")
    characters = [c for script in SCRIPTS.values() for c in script.characters]
    assert not any(map(is_reserved, characters)) and len(set(characters)) == len(characters)


def test_scripts_that_share_letters_share_a_part() -> None:
    assert {SCRIPTS[name].part for name in ("Latin", "Greek", "Cyrillic")} == {"train"}


def bars(columns: tuple[int, ...], value: int = 255) -> np.ndarray:
    drawing = np.zeros((32, 32), np.uint8)
    drawing[4:28, list(columns)] = value
    return drawing


def test_faint_drawings() -> None:
    assert is_faint(bars(())) and is_faint(bars((5, 6), 60)) and not is_faint(bars((5, 6)))


def test_a_class_like_a_held_out_one_leaves_training() -> None:
    thai, latin, other = ("Thai", "\u0e01"), ("Latin", "A"), ("Latin", "B")
    two = [bars((4, 5, 26, 27)), bars((6, 7, 24, 25))]
    three = [bars((4, 5, 15, 16, 26, 27)), bars((6, 7, 15, 16, 24, 25))]
    classes = {latin: [0, 1], thai: [2, 3], other: [4, 5]}
    assert choose.alike(classes, classes, [0, 1, 0, 1, 0, 1], two + two + three) == {latin: thai}


def test_copies_count_once() -> None:
    name = ("Latin", "A")
    drawings = [bars((column, column + 1)) for column in range(4, 28, 2)]
    counts = {}
    for copies in (1, 3):
        rows = list(range(copies * len(drawings)))
        kept = choose.distinct({name: rows}, np.ones(len(rows)), drawings * copies)
        counts[copies] = len(kept[name])
    assert counts == {1: 12, 3: 12}
