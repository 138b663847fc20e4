"""Page of a report: one HTML file without scripts that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from ..._utils.styles import BASE_STYLE
from ...display.image_grids import strip
from ...display.markup import Markup, element, inline, plural, saved
from ...tasks import TaskDistribution
from . import tables
from .curves import read_series
from .pictures import HeldOut, SampleRows

_STYLES = BASE_STYLE, Path(__file__).with_name("page.css")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the page loads nothing


@dataclass(frozen=True)
class Contents:
    """Everything that a page shows.

    Attributes:
        path: the run's folder.
        record: content of `config.json`.
        step: meta-steps done.
        parameters: of generator and discriminator.
        executor: of the inner loops, in words.
        lines: of `metrics.jsonl`.
        samples: rows of the sample grids, and whole grids by meta-step.
        held_out: images of adapted generators.
        parts: the data, by part of the split.
        evaluation: content of `evaluation.json`; empty without one.
    """

    path: Path
    record: Mapping[str, Any]
    step: int
    parameters: tuple[int, int]
    executor: str
    lines: Sequence[Mapping[str, Any]]
    samples: tuple[Sequence[SampleRows], Mapping[int, bytes]]
    held_out: HeldOut
    parts: Mapping[str, TaskDistribution]
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.path.absolute().name

    @property
    def settings(self) -> Mapping[str, Any]:
        """The run's settings."""
        settings: Mapping[str, Any] = self.record["settings"]
        return settings

    @property
    def total(self) -> int:
        """Meta-steps of the whole run."""
        return int(self.settings["training"]["meta_steps"])


def render(contents: Contents) -> str:
    """Return the page; equal contents give equal text but for the time in the footer."""
    versions = contents.record["versions"]
    metrics = read_series(contents.lines)
    sections = {
        "Adaptation to held-out classes": _adaptation(contents.held_out),
        "Samples over training": _samples(contents),
        "Interpolations": _interpolations(contents.held_out),
        "Curves": tables.curves(metrics),
        "Metrics": tables.metrics(metrics),
        "Evaluation": tables.evaluation(contents.evaluation, contents.step, contents.path),
        "Settings": tables.settings(contents.settings),
        "Data": tables.data(contents.settings["data"]["source"], contents.record["image_shape"], contents.parts),
        "Software": tables.software(versions),
    }
    keys = {heading: heading.split()[0].lower() for heading in sections}
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="generator", content=f"metagan_fast {versions['metagan_fast']}"),  # `RunFolder` reads it
        element("title", f"{contents.name} \N{MIDDLE DOT} training report"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("style", Markup("".join(style.read_text(encoding="utf-8") for style in _STYLES))),
    )
    links = [element("li", element("a", heading, href=f"#{key}")) for heading, key in keys.items()]
    main = [
        element("section", element("h2", heading, id=key), *parts, aria_labelledby=key)
        for (heading, parts), key in zip(sections.items(), keys.values(), strict=True)
    ]
    body = element(
        "body",
        element("a", "Skip to the content", href="#content", class_="skip"),
        element("header", *_masthead(contents), element("nav", element("ul", *links), aria_label="Sections")),
        element("main", *main, id="content", tabindex=-1),
        element("footer", *_footer(versions)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


# Masthead


def _masthead(contents: Contents) -> list[Markup]:
    settings = contents.settings
    data, training = settings["data"], settings["training"]
    channels, height, width = contents.record["image_shape"]
    count = f"{contents.step:,}" if contents.step == contents.total else f"{contents.step:,} of {contents.total:,}"
    generator, discriminator = (f"{n / 1e6:.2f} M" if n >= 1e5 else f"{n:,}" for n in contents.parameters)
    facts = {
        "Meta-steps": f"{count}, {plural(training['tasks'], 'task')} each",
        "Algorithm": f"{settings['meta']['algorithm']}, {plural(settings['inner']['steps'], 'inner step')}, "
        f"{plural(training['shots'], 'shot')}",
        "Data": f"{data['source']}, {height}\N{MULTIPLICATION SIGN}{width}{', colour' if channels == 3 else ''}",
        "Networks": f"{settings['model']['name']}, {generator} + {discriminator} parameters",
        "Executor": contents.executor,
    }
    entries = [element("div", element("dt", term), element("dd", value)) for term, value in facts.items()]
    parts = [
        element("p", "Training report", class_="kicker"),
        element("h1", contents.name),
        element("dl", *entries, class_="facts"),
    ]
    if contents.step < contents.total:
        note = f"The run stopped after meta-step {contents.step:,} of {contents.total:,}. It goes on with "
        command = element("code", f"metagan-fast train --resume --out {quote(str(contents.path))}")
        parts.append(element("p", note, command, class_="note"))
    return parts


def _footer(versions: Mapping[str, str]) -> list[Markup]:
    now = datetime.now(timezone.utc).replace(microsecond=0)
    written = element("time", f"{now:%Y-%m-%d %H:%M} UTC", datetime=now.isoformat())
    return [element("p", f"Written by metagan_fast {versions['metagan_fast']}, ", written, ".")]


# Pictures


def _adaptation(held_out: HeldOut) -> list[Markup]:
    cards = []
    for name, support, rows in zip(held_out.classes, held_out.support, held_out.generated, strict=True):
        strips = [_Strip("examples", strip(support), f"Examples of class {name}", "support")]
        for steps, images in zip(held_out.steps, rows, strict=True):
            alt = f"Class {name} as generated after {plural(steps, 'inner step')}"
            kind = "trained" if steps == held_out.trained_steps else None
            strips.append(_Strip(plural(steps, "step"), strip(images), alt, kind))
        cards.append(_card(name, strips))
    columns = held_out.generated.shape[2]
    shown = len(held_out.support[0])
    return [
        element(
            "p",
            f"{plural(len(held_out.classes), 'class', 'classes')} {_origin(held_out.part)}. On top the "
            f"{plural(held_out.shots, 'example')} to which the GAN adapts"
            f"{'' if shown == held_out.shots else f' ({shown} shown)'}, below them {columns} generated images after "
            "each number of inner steps; 0 steps are the initialisation. A column keeps its latent. Training takes ",
            element("strong", plural(held_out.trained_steps, "inner step")),
            ".",
        ),
        element("div", *cards, class_="cards"),
        saved("report/adaptation.png"),
    ]


def _samples(contents: Contents) -> list[Markup]:
    rows, grids = contents.samples
    if not rows and not grids:
        return [element("p", "The run has no sample grids: it made no validation, or has no validation classes.")]
    cards = []
    for name, support, generated in rows:
        strips = [_Strip("examples", support, f"Examples of class {name}", "support")]
        strips += [
            _Strip(f"{step:,}", png, f"Class {name} as generated at meta-step {step:,}")
            for step, png in generated.items()
        ]
        cards.append(_card(name, strips))
    figures = [
        element(
            "figure",
            inline(png, f"Examples of held-out classes above generated images, at meta-step {step:,}"),
            element("figcaption", f"meta-step {step:,}"),
        )
        for step, png in grids.items()
    ]
    inner = plural(contents.settings["inner"]["steps"], "inner step")
    text = (
        f"Validation classes as training goes on: examples, and images generated after {inner} on them from the "
        "initialisation of each meta-step."
    )
    return [
        element("p", text),
        element("div", *cards, class_="cards") if cards else Markup(),
        element("div", *figures, class_="grids") if figures else Markup(),
        saved("samples/"),
    ]


class _Strip(NamedTuple):
    """Row of images with its label."""

    label: str
    png: bytes
    alt: str
    kind: str | None = None


def _card(name: str, strips: Sequence[_Strip]) -> Markup:
    """Return labelled rows of images of a class."""
    rows = [
        element("tr", element("th", row.label, scope="row"), element("td", inline(row.png, row.alt)), class_=row.kind)
        for row in strips
    ]
    caption = element("caption", element("span", "class ", class_="quiet"), name)
    return element("div", element("table", caption, element("tbody", *rows), class_="strips"), class_="card")


def _interpolations(held_out: HeldOut) -> list[Markup]:
    rows = [
        element(
            "tr",
            element("th", name, scope="row"),
            element("td", inline(strip(images), f"Class {name}: {len(images)} images from one latent to another")),
        )
        for name, images in zip(held_out.classes, held_out.interpolated, strict=True)
    ]
    text = (
        f"From one latent to another in the generator adapted to a class by "
        f"{plural(held_out.trained_steps, 'inner step')}. Smooth changes speak for a generator that has learned the "
        "class, jumps for one that stores single images."
    )
    caption = element("caption", "Interpolations, a row a class", class_="hidden")
    whole = element("table", caption, element("tbody", *rows), class_="strips")
    return [
        element("p", text),
        element("div", whole, class_="card wide"),
        saved("report/interpolation.png"),
    ]


def _origin(part: str) -> str:
    return "of the training data (no class is held out)" if part == "training" else f"of the {part} part, never trained"
