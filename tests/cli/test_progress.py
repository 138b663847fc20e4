"""The display of training progress."""

from __future__ import annotations

import io

import pytest

from metagan_fast.cli import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_part_has_a_bar_of_its_own() -> None:
    stream = Terminal()
    display = progress.make(stream)
    display.start(3, 9)
    display.part("classifier", 1, 4)
    display.part("classifier", 4, 4)
    assert "classifier:  25%" in stream.getvalue()
    before = len(stream.getvalue())
    display.step(4, {"loss_generator": 1.0})
    display.part("classifier", 1, 4)  # another one, which a stop ends
    display.close()
    assert "classifier" in stream.getvalue()[before:]
    assert "4/9" in stream.getvalue()[before:]


def test_a_part_has_lines_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    stream = io.StringIO()
    display = progress.make(stream)
    for step in range(1, 13):
        display.part("classifier", step, 12)
        now += 1.0
    assert stream.getvalue().splitlines() == ["classifier: 8%", "classifier: 50%", "classifier: 92%"]
