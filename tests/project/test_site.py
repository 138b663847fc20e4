"""The documentation site builds without a warning, is complete, loads nothing from elsewhere and reads well."""

from __future__ import annotations

import argparse
import importlib
import inspect
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import browser
from support import ROOT

DOCS = ROOT / "docs"
NOTEBOOKS = sorted(path.stem for path in DOCS.glob("notebooks/*.ipynb"))
PUBLIC = ("", ".losses", ".functional", ".optim", ".tasks", ".models", ".metrics", ".plots", ".schedules")
"""Modules of which every public name is on a page."""

LOADS = {("img", "src"), ("script", "src"), ("link", "href"), ("source", "srcset"), ("iframe", "src")}
"""Attributes whose address a browser loads by itself."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, notebooks included, with warnings as errors; return its folder."""
    if not DOCS.exists():
        pytest.skip("docs is not part of this source tree")
    pytest.importorskip("sphinx", reason="needs the extra `docs`")
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(target / "cache")]
    result = subprocess.run(
        [*command, str(DOCS), str(target / "html")], cwd=target, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return target / "html"


class Addresses(HTMLParser):
    """Anchors of a page, links on it, and addresses that it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)
            elif (tag, name) in LOADS and not value.startswith("data:"):
                self.loads.append(value)


@cache
def addresses(page: Path) -> Addresses:
    return Addresses(page.read_text(encoding="utf-8"))


def broken(page: Path, links: list[str]) -> Iterator[str]:
    """Yield the links of a page within the site that lead to no file or to no anchor."""
    for link in links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page.resolve()
        if not target.is_file():
            yield f"{page.name}: {link}: no such file"
        elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in addresses(target).anchors:
            yield f"{page.name}: {link}: no such anchor"


@pytest.mark.slow
def test_every_link_within_the_site_leads_somewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    checked = [link for page in pages for link in addresses(page).links if not urlsplit(link).scheme]
    assert len(checked) > 1000
    assert [error for page in pages for error in broken(page, addresses(page).links + addresses(page).loads)] == []


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    outside = [
        f"{page.name}: {address}"
        for page in site.rglob("*.html")
        for address in addresses(page).loads
        if urlsplit(address).scheme or urlsplit(address).netloc
    ]
    for style in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')]+)", style.read_text(encoding="utf-8"))
        outside += [f"{style.name}: {address}" for address in found]
    assert outside == []


@pytest.mark.slow
def test_the_reference_has_every_public_name(site: Path) -> None:
    from sphinx.util.inventory import InventoryFile

    listed = InventoryFile.load(io.BytesIO((site / "objects.inv").read_bytes()), "", lambda base, path: path)
    names = {name for kind, found in listed.items() if kind.startswith("py:") for name in found}
    missing = []
    for end in PUBLIC:
        module = importlib.import_module(f"metagan_fast{end}")
        defined = [n for n, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", [name for name in defined if not name.startswith("_")]):
            value = getattr(module, name)
            homes = {f"{home}.{name}" for home in (module.__name__, "metagan_fast", getattr(value, "__module__", ""))}
            if not inspect.ismodule(value) and not homes & names:
                missing.append(f"{module.__name__}.{name}")
    assert missing == []


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    from metagan_fast.benchmarks.command import _parser

    from metagan_fast import cli

    def nested(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
        yield name, parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command, inner in action.choices.items():
                    yield from nested(f"{name} {command}", inner)

    yield from nested("metagan-fast", cli.parser())
    yield "metagan-fast bench", _parser()


@pytest.mark.slow
def test_the_reference_has_every_option(site: Path) -> None:
    anchors = addresses(site / "reference/command-line.html").anchors
    missing = [
        f"{name} {option}"
        for name, parser in parsers()
        for action in parser._actions
        for option in action.option_strings
        if f"cmdoption-{name.replace(' ', '-')}-{option.lstrip('-')}" not in anchors
    ]
    assert missing == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_shown_with_its_outputs(site: Path, name: str) -> None:
    page = (site / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
    assert page.count('class="cell_output') >= 4
    assert "Traceback" not in page
    assert re.search(r"<img[^>]*(?:_images/|data:image)", page) or name == "migrate"


def test_notebooks_are_stored_without_outputs() -> None:
    for name in NOTEBOOKS:
        cells = json.loads((DOCS / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        assert [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


# In a browser

PAGES = (
    *("index", "tutorial/first-gan", "notebooks/first-steps", "gallery", "data", "evaluation", "migrate/higher"),
    *("reference/metagan", "reference/functional", "reference/command-line", "changelog", "engine"),
)


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_reads_well(site: Path, chromium: browser.Browser, page: str, width: int, dark: bool) -> None:
    visit = chromium.visit(site / f"{page}.html", width=width, dark=dark)
    assert visit.problems() == []
    assert [address for address in visit.requests if not address.startswith("file:")] == []
    light = sum(int(channel) for channel in re.findall(r"\d+", visit.background)[:3]) > 382
    assert light != dark


FOCUS = """(() => {
    const e = document.activeElement, s = getComputedStyle(e), box = e.getBoundingClientRect();
    return {text: e.textContent.trim(), name: e.getAttribute('name'), outline: s.outlineStyle !== 'none',
            shown: box.width > 0 && box.bottom > 0 && box.top < innerHeight};
})()"""


@pytest.mark.browser
def test_the_keyboard_reaches_content_and_search(site: Path, chromium: browser.Browser) -> None:
    with chromium.open((site / "index.html").as_uri(), width=1280) as page:
        page.press("Tab")
        assert page.evaluate(FOCUS)["text"] == "Skip to content"
        page.wait_until(f"{FOCUS}.shown")  # it slides in
        page.press("Enter")
        page.wait_until("location.hash === '#furo-main-content'")
        for _ in range(30):
            page.press("Tab")
            focus = page.evaluate(FOCUS)
            assert focus["outline"], f"the focus on {focus['text']!r} is not visible"
        assert page.evaluate("document.querySelector('input[name=q]').tabIndex") == 0


@pytest.mark.browser
def test_search_works_without_a_server(site: Path, chromium: browser.Browser) -> None:
    with chromium.open((site / "index.html").as_uri(), width=1280) as page:
        page.evaluate("document.querySelector('.sidebar-drawer input[name=q]').focus()")
        page.call("Input.insertText", text="reptile_interpolate")
        page.press("Enter")
        page.wait_until("location.pathname.endsWith('/search.html')")
        found = page.wait_until("[...document.querySelectorAll('#search-results li a')].map(a => a.href)[0]")
        assert "functional" in found
        time.sleep(0.2)  # for late requests
        visit = page.visit()
        assert visit.errors == []
        assert [address for address in visit.requests if not address.startswith("file:")] == []
