"""Report in a real browser: pictures, errors, contrast and width, on a desktop and a phone, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

import browser
from evaluations import made_up_evaluation
from metagan_fast.cli import main
from metagan_fast.training.run_folder import RunFolder

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of an evaluated run that differs from the default and has a long class name."""
    out = tmp_path_factory.mktemp("browser") / ("a_long_name_without_a_space_" * 4)
    arguments = ["--preset", "quick", "--split", "0.5", "0.3", "0.2", "--steps", "6", "--validate-every", "2"]
    assert main(["train", *arguments, "--out", str(out)]) == 0
    evaluation = {**made_up_evaluation().to_dict(), "split": "test", "meta_step": 6}
    RunFolder(out).write_evaluation(evaluation)
    assert main(["report", str(out)]) == 0
    return out / "report.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 768, 360])
def test_the_report_is_whole(chromium: browser.Browser, page: Path, width: int, dark: bool) -> None:
    visit = chromium.visit(page, width=width, dark=dark)
    assert visit.problems() == []
    assert visit.viewport == width
    assert len(visit.images) > 30 and all(image["alt"] for image in visit.images)
    assert visit.requests == [page.as_uri()]
    red, green, blue = (int(text) for text in visit.background.removeprefix("rgb(").removesuffix(")").split(","))
    assert (max(red, green, blue) < 60) == dark


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<img src="data:image/png;base64,AAAA" alt="nothing"/>', "broken image: nothing"),
        ('<img src="missing.png" alt="missing"/>', "broken image: missing"),
        ("<script>undefinedFunction()</script>", "script error"),
        ('<p style="width: 2000px">wide</p>', "content of 2000 px in 360 px"),
        ('<p style="color: #aaa">pale</p>', "faint text: pale"),
    ],
)
def test_a_page_with_a_fault_is_seen(chromium: browser.Browser, tmp_path: Path, body: str, problem: str) -> None:
    page = tmp_path / "page.html"
    head = '<meta charset="utf-8"/><meta name="viewport" content="width=device-width"/><title>x</title>'
    page.write_text(
        f"<!DOCTYPE html><html><head>{head}<style>body {{ margin: 0 }} p {{ margin: 0 }}</style></head>"
        f"<body><p>text</p>{body}</body></html>"
    )
    assert any(problem in found for found in chromium.visit(page, width=360).problems())
