"""`metagan-fast draw` in a real browser: draw, see new images, download; by mouse, by touch and by keys alone."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import browser
import metagan_fast as mgf

pytestmark = pytest.mark.browser

STEPS = mgf.pretrained("glyphs").inner.steps
LOADED = "document.querySelector('#sheet')?.href"
LAST = "performance.getEntriesByName('last step').length"
STATUS = "document.querySelector('#status').textContent"
NEW = "[...document.querySelectorAll('#new canvas')].map(c => [...c.getContext('2d').getImageData(0, 0, 32, 32).data])"
EXAMPLES = "document.querySelectorAll('#sheets li:not(.empty)').length"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run the command with the package's GAN, in an empty folder that must stay empty."""
    folder = tmp_path_factory.mktemp("draw")
    command = [sys.executable, "-m", "metagan_fast", "draw"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        found = re.fullmatch(r"draw at (http://127\.0\.0\.1:\d+/[\w-]{22}/) .*\n", process.stdout.readline())
        assert found is not None, process.stderr.read()
        yield found[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    assert list(folder.iterdir()) == []


def new_images(page: browser.Page) -> np.ndarray:
    """Return the grey values of the new images, `[images, 32, 32]`."""
    return np.array(page.evaluate(NEW)).reshape(-1, 32, 32, 4)[..., 0]


def draw_line(page: browser.Page, slant: float = 0.0) -> None:
    page.drag([page.point("#pad", 0.5 + 0.3 * place, 0.5 + slant * place) for place in (-1, 0, 1)])


def assert_only_own_requests(page: browser.Page, address: str) -> None:
    visit = page.visit()
    assert visit.problems() == []
    assert len(visit.requests) > 5
    assert not [request for request in visit.requests if not request.startswith(address)]


def test_drawings_become_new_images(chromium: browser.Browser, address: str, tmp_path: Path) -> None:
    with chromium.open(address, width=1200, downloads=tmp_path) as page:
        page.wait_until(LOADED)
        before = new_images(page)
        draw_line(page)
        page.wait_until(LAST)
        after = new_images(page)
        assert page.evaluate(STATUS) == f"Step {STEPS} of {STEPS}" and page.evaluate(EXAMPLES) == 1
        line, elsewhere = np.s_[:, 14:18, 8:24], np.s_[:, :8]
        assert after[line].mean() > 120 > before[line].mean()
        assert after[elsewhere].mean() < before[elsewhere].mean()

        link = renewed_link(page, "")
        page.click("#sheets li:nth-child(2) button")
        draw_line(page, slant=0.1)
        page.wait_until(LAST)
        assert page.evaluate(EXAMPLES) == 2
        two = new_images(page)
        assert (two != after).any()

        link = renewed_link(page, link)
        page.click("#undo")
        page.wait_until(f"{LAST} && {EXAMPLES} === 1")
        assert (new_images(page) == after).all()  # equal drawings, equal images

        shown = page.evaluate("getComputedStyle(document.querySelector('#new canvas')).filter")
        assert shown == "invert(1)"  # light strokes, shown as ink
        renewed_link(page, link)
        page.click("#archive")
        page.click("#sheet")
        files = {name: downloaded(tmp_path / name) for name in ("new-images.zip", "new-images.png")}
        archive = zipfile.ZipFile(io.BytesIO(files["new-images.zip"]))
        saved = np.stack([np.asarray(Image.open(archive.open(f"{n:02}.png"))) for n in range(16)])
        assert abs(saved.astype(int) - (255 - after)).max() <= 1
        assert archive.read("grid.png") == files["new-images.png"]
        assert_only_own_requests(page, address)


def downloaded(path: Path) -> bytes:
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} was not downloaded"
        time.sleep(0.05)
    return path.read_bytes()


def set_slider(page: browser.Page, selector: str, value: float) -> None:
    page.evaluate(
        f"(() => {{ const e = document.querySelector('{selector}'); e.value = {value};"
        "e.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def renewed_link(page: browser.Page, before: str) -> str:
    """Return the download link of an adaptation's last step, once it is another; the page renews it after `LAST`."""
    link = "document.querySelector('#sheet').href"
    page.wait_until(f"{link} !== {json.dumps(before)} && {link}.includes('step={STEPS}&')")
    return str(page.evaluate(link))


def settled(page: browser.Page, query: str) -> np.ndarray:
    """Return the new images once the download link, renewed last, has a query."""
    page.wait_until(f"document.querySelector('#sheet').href.includes('{query}')")
    return new_images(page)


def test_sliders_and_interpolation(chromium: browser.Browser, address: str) -> None:
    with chromium.open(address, width=1200) as page:
        page.wait_until(LOADED)
        draw_line(page)
        page.wait_until(LAST)
        adapted = settled(page, f"step={STEPS}&latent=0&")
        set_slider(page, "#steps", STEPS + 3)  # goes on
        further = settled(page, f"step={STEPS + 3}&latent=0&")
        set_slider(page, "#steps", 2)  # goes back
        two = settled(page, "step=2&latent=0&")
        assert (adapted != further).any() and (two != adapted).any()
        set_slider(page, "#steps", STEPS)
        assert (settled(page, f"step={STEPS}&latent=0&") == adapted).all()
        set_slider(page, "#latent", 0.5)
        assert (settled(page, f"step={STEPS}&latent=0.5&") != adapted).any()

        way = "document.querySelector('#between').toDataURL()"
        before = page.evaluate(way)
        page.click("#new button:nth-child(6)")
        page.wait_until(f"{way} !== {json.dumps(before)}")
        chosen = page.evaluate("[...document.querySelectorAll('#new button[aria-pressed=true]')].map(b => b.ariaLabel)")
        assert chosen == ["Image 6, chosen as 2", "Image 16, chosen as 1"]
        assert_only_own_requests(page, address)


def test_a_photograph_is_pasted_and_dropped(chromium: browser.Browser, address: str) -> None:
    pixels = np.full((200, 300), 160, np.uint8)  # dark ink on grey paper
    pixels[90:110, 80:220] = 30
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format="PNG")
    photo = (
        f"const bytes = Uint8Array.from(atob('{base64.b64encode(data.getvalue()).decode()}'), c => c.charCodeAt(0));"
        "const data = new DataTransfer(); data.items.add(new File([bytes], 'photo.png', {type: 'image/png'}));"
    )
    notes = "const data = new DataTransfer(); data.items.add(new File(['text'], 'notes.txt'));"
    paste = "document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}))"
    drop = "document.dispatchEvent(new DragEvent('drop', {dataTransfer: data}))"
    with chromium.open(address, width=1200) as page:
        page.wait_until(LOADED)
        page.evaluate(f"(() => {{ {photo} {paste} }})()")
        page.wait_until(LAST)
        assert page.evaluate(EXAMPLES) == 1
        after = new_images(page)
        assert after[:, 14:18, 8:24].mean() > 120 > 60 > after[:, :8].mean()
        page.evaluate(f"(() => {{ {photo} {drop} }})()")
        page.wait_until(f"{EXAMPLES} === 2 && {LAST}")
        page.evaluate(f"(() => {{ {notes} {drop} }})()")
        page.wait_until(f"{STATUS}.includes('notes.txt cannot be used')")
        assert_only_own_requests(page, address)


def test_the_keyboard_is_enough(chromium: browser.Browser, address: str) -> None:
    focused = "document.activeElement.id || document.activeElement.ariaLabel"
    with chromium.open(address, width=1200) as page:
        page.wait_until(LOADED)
        order = []
        for _ in range(40):
            page.press("Tab")
            order.append(page.evaluate(focused))
        controls = {"pad", "pen", "eraser", "width", "Sheet 2, empty", "add", "Image 3", "steps", "latent", "sheet"}
        assert controls <= {*order}
        page.click("h1")
        page.press("Tab")
        assert page.evaluate(focused) == "pad"
        page.press(*["ArrowLeft"] * 4, " ", *["ArrowRight"] * 8, " ")
        page.wait_until(LAST)
        assert new_images(page)[:, 14:18, 8:24].mean() > 120
        while page.evaluate(focused) != "steps":
            page.press("Tab")
        page.press("ArrowLeft")
        settled(page, f"step={STEPS - 1}&")
        page.press("z", modifiers=2)
        page.wait_until(f"{STATUS} === 'Before adaptation' && {EXAMPLES} === 0")
        assert_only_own_requests(page, address)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_draws_by_touch(chromium: browser.Browser, address: str, dark: bool) -> None:
    with chromium.open(address, width=360, dark=dark) as page:
        page.call("Emulation.setTouchEmulationEnabled", enabled=True)
        page.wait_until(LOADED)
        page.touch([page.point("#pad", x, 0.5) for x in (0.2, 0.4, 0.6, 0.8)])
        page.wait_until(LAST)
        assert page.evaluate("scrollY") < 100  # the finger draws and does not scroll
        assert new_images(page)[:, 14:18, 8:24].mean() > 120
        visit = page.visit()
        assert visit.problems() == [] and visit.viewport == 360
        red, green, blue = (int(text) for text in re.findall(r"\d+", visit.background))
        assert (max(red, green, blue) < 60) == dark


def test_a_foreign_page_learns_nothing(chromium: browser.Browser, address: str, tmp_path: Path) -> None:
    """Neither by fetch, nor in a frame, nor as a script or a picture, though it knows the address."""
    page = tmp_path / "foreign.html"
    page.write_text(
        f"<!DOCTYPE html><title>x</title><p>x</p><iframe src='{address}'></iframe>"
        f"<script src='{address}page.js'></script>"
    )
    with chromium.open(page.as_uri(), width=800) as foreign:
        for options in ("{}", "{method: 'POST', body: new Uint8Array(1024)}"):
            asked = f"fetch('{address}adapt?steps=1&latent=0', {options}).then(() => 'read', () => 'refused')"
            assert foreign.evaluate(asked) == "refused"
        assert foreign.visit().errors  # the frame and the script were refused, too


def test_an_error_in_the_console_is_seen(chromium: browser.Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!DOCTYPE html><title>x</title><p>x</p><script>console.error('no')</script>")
    with chromium.open(page.as_uri(), width=800) as opened:
        assert opened.visit().problems() == ["console: error"]
