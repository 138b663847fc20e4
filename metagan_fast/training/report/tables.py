"""Sections of a report that hold numbers and facts: curves, metrics, evaluation, settings, data, versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from ...display.markup import Markup, element, join, number, plural, saved, table
from ...metrics.results import Evaluation
from ...metrics.tables import meanings, tables
from ...tasks import NAMES, TaskDistribution, embedded
from ...tasks.showing import PARTS, part_row
from .. import config as configuration
from .curves import Series, chart

_TITLES = {
    "kid": "KID of held-out classes",
    "loss_discriminator": "Discriminator loss",
    "loss_generator": "Generator loss",
    "gradient_norm": "Norm of the meta-gradient",
    "query_loss_discriminator": "Discriminator loss, query images",
    "query_loss_generator": "Generator loss, query images",
}
_VALIDATION = "validation_"
_GROUPS = {
    "data": "Data",
    "model": "Networks",
    "loss": "Loss",
    "inner": "Inner loop",
    "meta": "Meta-learning",
    "training": "Outer loop",
    "": "Run",
}
_MOST_NAMES = 300  # classes named of each part
_DOT = "\N{MIDDLE DOT}"
_DASH = "\N{EN DASH}"


def curves(series: Mapping[str, Series]) -> list[Markup]:
    """Return the charts of all metrics."""
    names = _metric_names(series)
    if not names:
        return [_no_metrics()]
    last_step = max(each.steps[-1] for each in series.values())
    charts = [chart(_title(name), series.get(name), series.get(_VALIDATION + name), last_step) for name in names]
    key = [
        element("span", "training; where meta-steps are averaged, the middle 90 % are shaded", class_="training"),
        element("span", "validation, on held-out classes", class_="validation"),
    ]
    return [
        element("p", "Over meta-steps, with the last values."),
        element("p", *key, class_="key"),
        element("div", *charts, class_="charts"),
    ]


def metrics(series: Mapping[str, Series]) -> list[Markup]:
    """Return the table of last and first values."""
    names = _metric_names(series)
    if not names:
        return [_no_metrics()]
    rows = [[_title(name), *(_ends(series.get(key)) for key in (name, _VALIDATION + name))] for name in names]
    last = max(each.steps[-1] for each in series.values())
    caption = f"Last values, and the first ones, up to meta-step {last:,}; losses are of the last inner step"
    return [table(caption, ["Metric", "Training", "Validation"], rows, class_="numbers"), saved("metrics.jsonl")]


def _no_metrics() -> Markup:
    return element("p", "The run has no metrics: ", element("code", "metrics.jsonl"), " is missing or empty.")


def _metric_names(series: Mapping[str, Series]) -> list[str]:
    """Return the names of metrics, without the prefix of validation, those with titles first."""
    found = dict.fromkeys(name.removeprefix(_VALIDATION) for name in series)
    return [*(name for name in _TITLES if name in found), *(name for name in found if name not in _TITLES)]


def _title(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " ").capitalize())


def _ends(series: Series | None) -> str:
    """Return the last value above the first one."""
    if series is None:
        return _DASH
    return join(number(series.values[-1]), element("span", f"from {number(series.values[0])}", class_="quiet under"))


def evaluation(content: Mapping[str, Any], step: int, path: Path) -> list[Markup]:
    """Return the tables of `evaluation.json`, or how to get it; `step` is the run's, `path` its folder."""
    command = element("code", f"metagan-fast evaluate {quote(str(path))}")
    if not content:
        return [element("p", "The run has not been evaluated. ", command, " does so, on the test classes.")]
    try:
        return _evaluation_tables(Evaluation.from_dict(content), content["split"], content["meta_step"], step)
    except (KeyError, TypeError, ValueError):
        text = " of the run cannot be read, or is of an earlier version. "
        return [element("p", element("code", "evaluation.json"), text, command, " writes it anew.", class_="note")]


def _evaluation_tables(result: Evaluation, split: str, done: int, step: int) -> list[Markup]:
    settings = result.settings
    parts = []
    if done != step:
        parts.append(element("p", f"From before the latest training, at meta-step {done:,}.", class_="note"))
    facts = (
        f"{len(result.classes)} {split} classes after {done:,} meta-steps: {result.shots[0]} shots, {result.steps[0]} "
        f"inner steps, {settings['samples']} samples a class, {plural(settings['draws'], 'draw')}. In brackets 95 % "
        "intervals of a bootstrap over classes."
    )
    parts.append(element("p", facts))
    parts += [*tables(result), meanings()]
    parts += [saved("evaluation.json"), saved("report/evaluation.png")]
    return parts


# Facts


def settings(own_settings: Mapping[str, Any]) -> list[Markup]:
    """Return the settings by section; those that differ from the default preset are marked."""
    default = configuration.flatten(configuration.resolve(configuration.from_preset("default")))
    own = configuration.flatten(own_settings)
    groups = []
    sections = [*_GROUPS, *(key.rpartition(".")[0] for key in own)]
    for section, title in {name: _GROUPS.get(name, _title(name)) for name in sections}.items():
        rows = []
        for key, value in own.items():
            place, _, name = key.rpartition(".")
            if place != section:
                continue
            changed = key not in default or default[key] != value
            before = f"default: {_value(default[key])}" if key in default else "not in the default"
            mark = element("span", before, class_="changed") if changed else None
            cell = element("td", element("span", _value(value)), mark)
            parts = [each for word in name.split("_") for each in ("_", element("wbr"), word)][2:]
            rows.append(element("tr", element("th", *parts, scope="row"), cell, class_="differs" if changed else None))
        if rows:
            whole = element("table", element("caption", title), element("tbody", *rows), class_="settings")
            groups.append(element("div", whole, class_="card"))
    text = "Settings that differ from the default preset\N{RIGHT SINGLE QUOTATION MARK}s are marked, with its value."
    return [element("p", text), element("div", *groups, class_="groups")]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _DASH if value is None else str(value)


def data(source: str, image_shape: Sequence[int], parts: Mapping[str, TaskDistribution]) -> list[Markup]:
    """Return the source, the parts of the split, their classes and the licence."""
    rows: list[list[str]] = []
    names = []
    for part, distribution in parts.items():
        classes = distribution.classes
        rows.append(part_row(part, distribution))
        if classes:
            more = "" if len(classes) <= _MOST_NAMES else f" and {len(classes) - _MOST_NAMES:,} more"
            summary = element("summary", f"Classes of the {part} part")
            names.append(element("details", summary, element("p", f" {_DOT} ".join(classes[:_MOST_NAMES]) + more)))
    channels, height, width = image_shape
    colours = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    licence = _licence(source)
    place = " (in the package)" if licence else ""
    size = f"{height}\N{MULTIPLICATION SIGN}{width} pixels, {colours}"
    found = [
        element("p", "Source: ", element("code", source), f"{place}; {size}. No class is in two parts."),
        table("Classes and images of each part", PARTS, rows, class_="numbers"),
        *names,
    ]
    if licence:
        found.append(element("details", element("summary", "Origin and licence"), element("pre", licence)))
    return found


def _licence(source: str) -> str | None:
    """Return the licence note of a data set in the package; None for other data."""
    path = embedded.FOLDER / f"LICENSE.{source}.txt"
    return path.read_text(encoding="utf-8").strip() if source in NAMES and path.is_file() else None


def software(versions: Mapping[str, str]) -> list[Markup]:
    """Return the versions that results depend on."""
    rows = [[name, element("code", version)] for name, version in versions.items()]
    return [table("Of the last training", ["Package", "Version"], rows, class_="numbers")]
