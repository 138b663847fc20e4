"""The display of progress."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tqdm.auto
import tqdm.notebook

import metagan_fast as mgf
from metagan_fast.display import progress
from metagan_fast.metrics import evaluate
from metagan_fast.training.outer_loop import Training
from metagan_fast.training.run_folder import RunFolder
from metagan_fast.training.trainer import Trainer


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


def test_a_part_with_another_name_has_another_bar() -> None:
    stream = Terminal()
    display = progress.make(stream)
    display.part("packages", 0, 4)
    display.part("shapes", 1, 2)  # the first one never ended
    assert "packages:   0%" in stream.getvalue() and "shapes:  50%" in stream.getvalue()
    lines = io.StringIO()
    display = progress.make(lines)
    for name in ("packages", "shapes"):
        display.part(name, 0, 0)  # nothing to do
    assert lines.getvalue().splitlines() == ["packages: 0%", "shapes: 0%"]


class Widget(tqdm.auto.tqdm):  # type: ignore[misc]
    """Bar that is recorded and drawn nowhere."""

    made: ClassVar[list[Widget]] = []

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings | {"file": io.StringIO()})
        self.made.append(self)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[Widget]:
    """Let bars be as in a notebook; return those that are made."""
    made: ClassVar[list[Widget]] = []
    as_in_notebook = type("tqdm", (Widget,), {"__module__": "tqdm.notebook", "made": made})
    monkeypatch.setattr(tqdm.auto, "tqdm", as_in_notebook)
    return made


def learner_and_tasks() -> tuple[mgf.MetaGAN, mgf.tasks.Tasks]:
    tasks = mgf.tasks.load("digits", split=(0.5, 0.2, 0.3))
    networks = mgf.models.mlp(tasks.image_shape, latent_dim=4, hidden=(8,))
    return mgf.MetaGAN(*networks, latent_dim=4, inner=mgf.InnerLoop(steps=1)), tasks


def test_evaluation_in_a_notebook_has_a_bar_where_asked_for(notebook: list[Widget]) -> None:
    learner, tasks = learner_and_tasks()

    def features(images: Any) -> Any:
        return images.flatten(1)[:, ::8]

    evaluate(learner, tasks.test, features, samples=2)
    assert notebook == []
    evaluate(learner, tasks.test, features, samples=2, progress=True)
    (bar,) = notebook
    assert (bar.desc, bar.n, bar.total) == ("adapting to held-out classes", 3, 3) and bar.disable
    with pytest.raises(ZeroDivisionError):
        evaluate(learner, tasks.test, features, samples=2, progress=lambda done, total: 1 // 0)


def test_training_in_a_notebook_has_a_bar_where_asked_for(notebook: list[Widget], tmp_path: Path) -> None:
    learner, tasks = learner_and_tasks()
    training = Training(meta_steps=2, tasks=1, shots=2)
    for name, shown in (("quiet", None), ("shown", True)):
        learner, _ = learner_and_tasks()
        Trainer(learner, tasks, RunFolder.create(tmp_path / name), training, progress=shown).run()
    (bar,) = notebook
    assert (bar.n, bar.total) == (2, 2) and "generator" in bar.postfix
