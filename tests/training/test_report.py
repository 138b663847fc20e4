"""Report of a run: its sections, pictures and numbers, odd names, damaged and missing files."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import signal
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import metagan_fast as mgf
from evaluations import made_up_evaluation
from metagan_fast.cli import main, train
from metagan_fast.cli.runs import open_run
from metagan_fast.display import image_grids, markup
from metagan_fast.metrics.results import METHODS
from metagan_fast.noise import draw_sample_latents
from metagan_fast.tasks import TaskBatch
from metagan_fast.training import report
from metagan_fast.training.report import curves, page, pictures
from metagan_fast.training.run_folder import RunFolder
from metagan_fast.training.trainer import Trainer

SPLIT = ["--split", "0.5", "0.3", "0.2"]  # of ten classes
TINY = ["--preset", "quick", "--model", "hidden=[8]", "--inner-steps", "3", "--tasks", "2", *SPLIT]
SECTIONS = [
    "Adaptation to held-out classes",
    "Samples over training",
    "Interpolations",
    "Curves",
    "Metrics",
    "Evaluation",
    "Settings",
    "Data",
    "Software",
]
STEPS = (0, 1, 2, 3, 5, 10, 20)  # the run's own 3 among them


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "run"
    assert main(["train", *TINY, "--steps", "4", "--validate-every", "2", "--out", str(path)]) == 0
    return path


@pytest.fixture
def copy_of_run(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy", symlinks=True))


def parsed(run: Path) -> ET.Element:
    """Parse a report as XML, whose parser accepts no error."""
    return ET.fromstring((run / "report.html").read_text(encoding="utf-8"))


def text_of(element: ET.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def section(root: ET.Element, heading: str) -> ET.Element:
    (found,) = (each for each in root.iter("section") if each[0].text == heading)
    return found


def images(element: ET.Element) -> list[Image.Image]:
    found = []
    for image in element.iter("img"):
        kind, _, data = image.attrib["src"].partition(",")
        assert kind == "data:image/png;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        picture.load()
        assert picture.size == (int(image.attrib["width"]), int(image.attrib["height"]))
        found.append(picture)
    return found


def opened(run: Path) -> tuple[RunFolder, mgf.MetaGAN, mgf.tasks.Tasks]:
    folder, record, learner = open_run(run)
    return folder, learner, train.load_data(record["settings"], record["split"])


def without_time(text: str) -> str:
    return re.sub(r"<time.*?</time>", "", text)


def test_a_run_ends_with_its_report(run: Path) -> None:
    root = parsed(run)
    assert [text_of(heading) for heading in root.iter("h2")] == SECTIONS
    assert [text_of(heading) for heading in root.iter("h1")] == ["run"]
    assert root.attrib["lang"] == "en"
    links = [link.attrib["href"] for link in root.iter("a")]
    assert set(links) == {"#content", *(f"#{heading.attrib['id']}" for heading in root.iter("h2"))}
    assert all(text_of(table.find("caption")) for table in root.iter("table"))  # type: ignore[arg-type]
    assert all(image.attrib["alt"] for image in root.iter("img"))
    assert sorted(path.name for path in (run / "report").iterdir()) == ["adaptation.png", "interpolation.png"]


def test_the_page_needs_no_other_file(run: Path) -> None:
    text = (run / "report.html").read_text()
    assert not re.search(r'(src|href|action|srcset)="(?!data:image/png;base64,|#)', text)
    assert not re.search(r"url\(|@import|<script|<link|<iframe|\son\w+=", text)
    assert (
        "default-src 'none'" in parsed(run).find("head/meta[@http-equiv='Content-Security-Policy']").attrib["content"]
    )  # type: ignore[union-attr]


def test_adaptation_shows_each_number_of_steps(run: Path) -> None:
    """Each row is what the learner makes of the class alone after as many steps."""
    _, learner, tasks = opened(run)
    batch = tasks.validation.sample(tasks=3, shots=4, step=0)
    tables = list(section(parsed(run), SECTIONS[0]).iter("table"))
    assert [text_of(table.find("caption")) for table in tables] == [f"class {name}" for name in batch.classes or ()]  # type: ignore[arg-type]
    labels = ["examples", *(f"{n} step{'' if n == 1 else 's'}" for n in STEPS)]
    for task, table in enumerate(tables):
        latents = draw_sample_latents(1, 4, learner.latent_dim, seed=0, first_task=task)
        stages = [learner.adapt(batch.support[task], steps=n).generator for n in STEPS]
        params = [learner.generator_layout.flatten(generator)[None] for generator in stages]
        expected = [batch.support[task]] + [learner.generate(each, latents)[0] for each in params]
        assert [row[0].text for row in table.iter("tr")] == labels
        for picture, rows in zip(images(table), expected, strict=True):
            shown = np.asarray(picture.convert("LA").resize((4 * 10 - 2, 8), Image.Resampling.NEAREST))
            for column in range(4):
                cell = shown[:, column * 10 : column * 10 + 8]
                assert np.array_equal(cell[..., 0], image_grids.to_bytes(rows[column, 0]).numpy())
                assert (cell[..., 1] == 255).all()
            assert (shown[:, 8:10, 1] == 0).all()


def test_the_picture_of_adaptation_holds_the_same(run: Path) -> None:
    picture = Image.open(run / "report" / "adaptation.png")
    factor, steps = 8, len(STEPS)
    height = 8 + 2 * 2 + steps * 10 - 2
    assert picture.size == (factor * (3 * 38 + 2 * 10), factor * height)
    strips = images(next(section(parsed(run), SECTIONS[0]).iter("table")))
    last = picture.crop((0, picture.height - 8 * factor, 8 * factor, picture.height))
    assert np.array_equal(np.asarray(last), np.asarray(strips[-1].convert("L").crop((0, 0, 8 * factor, 8 * factor))))


def test_interpolations_go_from_one_latent_to_another(run: Path) -> None:
    _, learner, tasks = opened(run)
    made = pictures.held_out(learner, tasks, 4)
    batch = tasks.validation.sample(tasks=3, shots=4, step=0)
    for task in range(3):
        first, second = draw_sample_latents(1, 2, learner.latent_dim, seed=0, first_task=task)[0]
        generator = learner.adapt(batch.support[task]).generator
        middle = (first + second) / 2**0.5  # standard normal, as both ends
        with torch.no_grad():
            expected = generator(torch.stack([first, middle, second]))
        torch.testing.assert_close(made.interpolated[task, [0, 4, 8]], expected)
    strips = images(section(parsed(run), "Interpolations"))
    assert len(strips) == 3 and strips[0].size == (8 * (9 * 10 - 2), 64)


def test_samples_over_training_come_from_the_grids(run: Path) -> None:
    tables = list(section(parsed(run), SECTIONS[1]).iter("table"))
    assert len(tables) == 3
    grids = [Image.open(run / "samples" / f"step-0000000{step}.png") for step in (2, 4)]
    for task, table in enumerate(tables):
        assert [row[0].text for row in table.iter("tr")] == ["examples", "2", "4"]
        left, below = task * (38 + 10) * 8, (8 + 4) * 8
        expected = [(grids[0], 0), (grids[0], below), (grids[1], below)]
        for shown, (grid, top) in zip(images(table), expected, strict=True):
            cut = np.asarray(grid.crop((left, top, left + 38 * 8, top + 64)))
            assert np.array_equal(np.asarray(shown.convert("L")), cut)


def test_grids_of_another_layout_are_shown_whole(copy_of_run: Path) -> None:
    Image.new("L", (50, 40)).save(copy_of_run / "samples" / "step-00000002.png")
    (copy_of_run / "samples" / "step-00000003.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    report.write(*opened(copy_of_run))
    found = section(parsed(copy_of_run), SECTIONS[1])
    assert [text_of(caption) for caption in found.iter("figcaption")] == ["meta-step 2"]
    assert [row[0].text for row in next(found.iter("table")).iter("tr")] == ["examples", "4"]


def test_numbers_settings_data_and_versions(run: Path) -> None:
    root = parsed(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = text_of(section(root, "Metrics"))
    for key, last in (("loss_generator", lines[-2]), ("validation_loss_generator", lines[-1])):
        assert curves.number(last[key]) in metrics
    figures = list(section(root, "Curves").iter("figure"))
    assert len(figures) == 4 and all(figure.find("svg").attrib["aria-label"] for figure in figures)  # type: ignore[union-attr]
    record = json.loads((run / "config.json").read_text())
    shown = {
        (text_of(table.find("caption")), text_of(row[0])): text_of(row[1])  # type: ignore[arg-type]
        for table in section(root, "Settings").iter("table")
        for row in table.iter("tr")
    }
    assert len(shown) == sum(len(value) if isinstance(value, dict) else 1 for value in record["settings"].values())
    assert shown["Inner loop", "steps"] == "3default: 25"
    assert shown["Networks", "hidden"] == "8not in the default"
    assert shown["Outer loop", "keep"] == "3"
    data = text_of(section(root, "Data"))
    assert "digits (in the package)" in data and "Creative Commons Attribution 4.0" in data
    _, _, tasks = opened(run)
    for part in (tasks.train, tasks.validation, tasks.test):
        assert (
            f"{len(part.classes)} \N{EN DASH}" in data.replace("\N{EN DASH}", " \N{EN DASH}")
            and f"{sum(part.counts):,}" in data
        )
    assert torch.__version__ in text_of(section(root, "Software"))


def test_evaluation_enters_the_report(copy_of_run: Path) -> None:
    assert "has not been evaluated" in text_of(section(parsed(copy_of_run), "Evaluation"))
    evaluation = {**made_up_evaluation().to_dict(), "split": "test"}
    folder, learner, tasks = opened(copy_of_run)
    minus = "\N{MINUS SIGN}"
    for content, expected in (
        (evaluation | {"meta_step": 4}, "2 test classes after 4 meta-steps: 4 shots, 10 inner steps"),
        (evaluation | {"meta_step": 3}, "From before the latest training, at meta-step 3."),
        ({"meta_step": 3, "settings": 7}, "evaluation.json of the run cannot be read, or is of an earlier version."),
        ({"meta_step": 3, "classes": [], "scores": {}, "settings": {}}, "cannot be read, or is of an earlier version."),
    ):
        folder.write_evaluation(content)
        (copy_of_run / "report" / "evaluation.png").unlink(missing_ok=True)
        report.write(folder, learner, tasks)
        found = section(parsed(copy_of_run), "Evaluation")
        assert expected in text_of(found)
        assert ("From before" in text_of(found)) == ("From before" in expected)
        assert (copy_of_run / "report" / "evaluation.png").exists() == ("rows" in content)
        if "rows" in content:
            rows = [[text_of(cell) for cell in row] for row in found.iter("tr")]
            method = "adaptedthe meta-trained GAN, adapted to the support images"
            assert [method, "1.2501.000 to 1.500", "1.251.00 to 1.50"] == rows[1][:3]
            assert rows[1][-1] == "1.2"  # FID has no interval
            assert [f"adapted {minus} copies", f"{minus}2.500", f"{minus}3.000 to {minus}2.000"] in rows
            assert ["shots", "5 steps", "10 steps", *list(METHODS)[1:]] in rows
            assert ["4", *["1.250"] * (1 + len(METHODS))] in rows


def test_the_same_run_gives_the_same_bytes_and_stays_as_it_is(copy_of_run: Path, run: Path) -> None:
    folder, learner, tasks = opened(copy_of_run)
    before = {
        path: path.read_bytes() for path in copy_of_run.rglob("*") if path.is_file() and "report" not in str(path)
    }
    state = learner.generator_parameters.clone()
    report.write(folder, learner, tasks)
    name = f">{copy_of_run.name}<", f">{run.name}<"
    first, second = (without_time((each / "report.html").read_text()) for each in (copy_of_run, run))
    for old, new in (name, (str(copy_of_run), str(run)), (f"<title>{copy_of_run.name} ", f"<title>{run.name} ")):
        first = first.replace(old, new)
    assert first == second
    for picture in ("adaptation.png", "interpolation.png"):
        assert (copy_of_run / "report" / picture).read_bytes() == (run / "report" / picture).read_bytes()
    assert torch.equal(learner.generator_parameters, state) and learner.step == 4
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize("name", ["<b>\"x&'", "\x01\x1b[31m", "<script>"])
def test_odd_names_are_text(tmp_path: Path, name: str) -> None:
    """As the run's folder, the data's and the classes'."""
    for index in range(6):
        folder = tmp_path / f"data {name}" / f"{name} {index}"
        folder.mkdir(parents=True)
        for shade in range(12):
            Image.new("L", (8, 8), 20 * shade + index).save(folder / f"{shade}.png")
    data = str(tmp_path / f"data {name}")
    out = tmp_path / f"run {name}"
    assert main(["train", *TINY, "--data", data, "--steps", "1", "--out", str(out)]) == 0
    root = parsed(out)
    shown = re.sub("[\x00-\x08\x0b\x0e-\x1f]", "\N{REPLACEMENT CHARACTER}", name)
    assert text_of(next(root.iter("h1"))) == f"run {shown}"
    assert sorted(text_of(caption) for caption in section(root, SECTIONS[0]).iter("caption"))[0].startswith(
        f"class {shown} "
    )
    assert f"Source: {data}".replace(name, shown) in text_of(section(root, "Data"))
    assert not list(root.iter("b")) and not list(root.iter("script"))


@pytest.mark.slow
def test_a_long_run_gives_a_short_page(copy_of_run: Path) -> None:
    line = {"loss_discriminator": 1.25, "loss_generator": -0.5, "penalty": 0.125, "gradient_norm": 3.0}
    total = 100_000
    with open(copy_of_run / "metrics.jsonl", "w") as file:
        for step in range(1, total + 1):
            file.write(json.dumps({"step": step} | {name: v + step % 97 / 100 for name, v in line.items()}) + "\n")
            if step % 100 == 0:
                file.write(json.dumps({"step": step, "validation_loss_generator": 0.25}) + "\n")
    grid = copy_of_run / "samples" / "step-00000004.png"
    for step in range(100, total + 1, 100):
        shutil.copy(grid, copy_of_run / "samples" / f"step-{step:08d}.png")
    report.write(*opened(copy_of_run))
    assert (copy_of_run / "report.html").stat().st_size < 1_000_000
    root = parsed(copy_of_run)
    rows = [row[0].text for row in next(section(root, SECTIONS[1]).iter("table")).iter("tr")]
    for path in section(root, "Curves").iter("path"):
        places = [float(x) for x in re.findall(r"[ML]([-\d.]+) ", path.attrib["d"])]
        assert len(places) <= 240 and 0 < min(places) < 60 and 340 < max(places) <= 360
    assert len(rows) == 1 + 8 and (rows[1], rows[-1]) == ("2", f"{total:,}")


def test_large_grids_are_fewer(tmp_path: Path) -> None:
    for step in range(10):
        (tmp_path / f"step-{step:08d}.png").write_bytes(bytes(900_000))
    chosen = pictures._chosen(sorted(tmp_path.iterdir()))
    assert [int(path.stem[-2:]) for path in chosen] == [0, 5, 9]


@pytest.mark.parametrize(
    "content", [None, "", '{"step": 1, "loss_gen', '{"step": 1, "loss_generator": NaN}\n[]\n"x"\n']
)
def test_missing_metrics_and_samples(copy_of_run: Path, content: str | None) -> None:
    (copy_of_run / "metrics.jsonl").unlink()
    shutil.rmtree(copy_of_run / "samples")
    if content is not None:
        (copy_of_run / "metrics.jsonl").write_text(content)
    assert main(["report", str(copy_of_run)]) == 0
    root = parsed(copy_of_run)
    assert "The run has no metrics" in text_of(section(root, "Curves"))
    assert "The run has no metrics" in text_of(section(root, "Metrics"))
    assert "no sample grids" in text_of(section(root, SECTIONS[1]))
    assert len(images(section(root, SECTIONS[0]))) == 3 * (1 + len(STEPS))


@pytest.mark.parametrize(
    ("split", "origin"),
    [("0.8 0 0.2", "2 classes of the test part, never trained"), ("1 0 0", "4 classes of the training data")],
)
def test_runs_without_validation_classes(tmp_path: Path, split: str, origin: str) -> None:
    assert main(["train", *TINY, "--split", *split.split(), "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    root = parsed(tmp_path / "run")
    assert text_of(section(root, SECTIONS[0])).removeprefix(SECTIONS[0]).startswith(origin)
    assert "no sample grids" in text_of(section(root, SECTIONS[1]))


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Trainer._meta_step

    def interrupted(self: Trainer, batch: TaskBatch) -> dict[str, float]:
        if self.learner.step == 2:
            signal.raise_signal(signal.SIGINT)
        return whole(self, batch)

    monkeypatch.setattr(Trainer, "_meta_step", interrupted)
    out = tmp_path / "run"
    assert main(["train", *TINY, "--steps", "9", "--out", str(out)]) == 130
    monkeypatch.undo()
    assert f"stopped after meta-step 3 of 9. It goes on with metagan-fast train --resume --out {out}" in text_of(
        parsed(out)
    )
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert "stopped after" not in text_of(parsed(out))


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_report_that_fails_does_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(page, "render", fail)
    assert main(["train", *TINY, "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    (record,) = caplog.records
    assert record.message.startswith(f"cannot write the report {tmp_path / 'run' / 'report.html'} (")
    assert RunFolder(tmp_path / "run").latest()[1]["step"] == 1
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_report_of_the_user_stays(copy_of_run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (copy_of_run / "report.html").write_text("<p>mine</p>")
    assert main(["train", "--resume", "--steps", "5", "--out", str(copy_of_run)]) == 0
    assert "report.html exists and is no report of a run: move it" in caplog.text
    assert main(["report", str(copy_of_run)]) == 2
    assert main(["train", *TINY, "--steps", "1", "--overwrite", "--out", str(copy_of_run)]) == 0
    assert (copy_of_run / "report.html").read_text() == "<p>mine</p>"


def test_overwriting_removes_the_report(copy_of_run: Path) -> None:
    (copy_of_run / "report" / "notes.png").write_text("mine")
    (copy_of_run / ".report.html.12.tmp").touch()
    (copy_of_run / "report" / ".adaptation.png.12.tmp").touch()
    RunFolder.create(copy_of_run, overwrite=True)
    assert [path.name for path in (copy_of_run / "report").iterdir()] == ["notes.png"]
    assert not {path.name for path in copy_of_run.iterdir()} & {"report.html", ".report.html.12.tmp"}


def test_large_networks_show_one_class(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, learner, tasks = opened(run)
    monkeypatch.setattr(pictures, "_SLOW", pictures.size(learner.generator))
    assert len(pictures.held_out(learner, tasks, 4).classes) == 1


@pytest.mark.parametrize("shots", [1, 12])
def test_few_and_many_shots(run: Path, shots: int) -> None:
    _, learner, tasks = opened(run)
    made = pictures.held_out(learner, tasks, shots)
    columns = {1: 4, 12: 8}[shots]
    assert made.generated.shape[:3] == (3, len(STEPS), columns)
    assert made.support.shape[1] == min(shots, 8)
    assert made.adaptation.shape[2] == 3 * (columns * 10 - 2) + 2 * 10


@given(
    st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.sampled_from([(4, 4), (6, 3), (80, 50)]), st.booleans()
)
def test_rows_lie_where_a_task_grid_has_them(
    tasks: int, shots: int, rows: int, size: tuple[int, int], one: bool
) -> None:
    support = torch.rand(tasks, shots, 1, *size) * 2 - 1
    generated = torch.rand(tasks, rows * shots, 1, *size) * 2 - 1
    whole = Image.open(io.BytesIO(image_grids.grid_png(image_grids.task_grid(support, generated), size[1])))
    shown = 1 if one else shots
    boxes = image_grids.task_grid_rows(size, tasks, shots, rows, shown)
    for task, found in enumerate(boxes):
        expected = [support[task], *generated[task].unflatten(0, (rows, shots))]
        for box, images_of_row in zip(found, expected, strict=True):
            row = image_grids.grid_png(image_grids.grid(images_of_row[None, :shown]), size[1])
            assert np.array_equal(np.asarray(whole.crop(box)), np.asarray(Image.open(io.BytesIO(row))))


# Parts


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=500), st.integers(1, 200))
def test_bins_hold_every_value_once(values: list[float], most: int) -> None:
    series = curves.Series(tuple(range(len(values))), tuple(values))
    bins = curves.binned(series, most)
    assert len(bins) == min(most, len(values))
    start = 0
    for bin in bins:
        held = next(n for n in range(1, 501) if math.isclose(bin.step, start + (n - 1) / 2))
        part = values[start : start + held]
        assert sum(bin.low <= value <= bin.high for value in part) >= 0.9 * held
        assert bin.low in part and bin.high in part
        assert min(part) - 1e-6 <= bin.mean <= max(part) + 1e-6
        start += held
    assert start == len(values)
    if len(bins) == len(values):
        assert [(bin.step, bin.mean) for bin in bins] == list(zip(series.steps, values, strict=True))


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_round_and_few(low: float, width: float) -> None:
    high = low + width
    found = curves.ticks(low, high)
    slack = 1e-6 * width + 1e-9 * abs(low)
    assert 1 <= len(found) <= 12
    assert all(low - slack <= value <= high + slack for value in found)


@pytest.mark.parametrize("values", [(0.0,), (3.0, 3.0), (1e300, -1e300), (1e-300, 2e-300), tuple([0.0] * 300)])
def test_charts_of_odd_values(values: tuple[float, ...]) -> None:
    series = curves.Series(tuple(range(1, len(values) + 1)), values)
    figure = ET.fromstring(curves.chart("Loss", series, series, len(values)))
    drawn = " ".join(path.attrib["d"] for path in figure.iter("path"))
    numbers = [float(text) for text in re.findall(r"-?[\d.]+", drawn)]
    assert "nan" not in drawn and all(0 <= number <= 360 for number in numbers)


def test_an_outlier_in_a_band_leaves_the_curve_its_height() -> None:
    values = [1.0 + index % 2 for index in range(1200)]
    values[600] = 100.0  # in a bin of ten, which it lifts to 11
    series = curves.Series(tuple(range(1200)), tuple(values))
    figure = ET.fromstring(curves.chart("Loss", series, None, 1200))
    band, line = (path.attrib["d"] for path in figure.iter("path"))
    heights = {
        name: [float(y) for y in re.findall(r"[\d.]+ ([\d.]+)", path)]
        for name, path in (("band", band), ("line", line))
    }
    assert min(heights["band"]) == curves._TOP  # cut off
    assert min(heights["line"]) < max(heights["line"]) - 0.8 * (curves._HEIGHT - curves._TOP - curves._BOTTOM)


@given(st.text())
def test_markup_escapes(text: str) -> None:
    made = markup.element("p", text, title=text)
    root = ET.fromstring(made)
    legal = markup._ILLEGAL.sub("\ufffd", text).replace("\r\n", "\n").replace("\r", "\n")
    assert (root.text or "") == legal
    assert not list(root)
