"""Headless Chromium, driven by the DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Moves the pipe to descriptors 3 and 4, where the browser expects it, and becomes the browser.
_START = """
import fcntl, os, sys
pipe = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for source, place in zip(pipe, (3, 4)):
    os.dup2(source, place, inheritable=True)
os.execvp(sys.argv[3], sys.argv[3:])
"""

_KEYS = {
    "Tab": ("Tab", 9, ""),
    "Enter": ("Enter", 13, "\r"),
    " ": ("Space", 32, " "),
    "ArrowLeft": ("ArrowLeft", 37, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    "ArrowRight": ("ArrowRight", 39, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    "z": ("KeyZ", 90, ""),
}
"""Code, number and text of the keys that tests press."""

_STATE = """(() => {
    const channels = text => text.match(/[\\d.]+/g).map(Number);
    const luminance = rgb => {
        const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const [r, g, b] = rgb.slice(0, 3).map(v => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const background = element => {
        for (; element; element = element.parentElement) {
            const found = channels(getComputedStyle(element).backgroundColor);
            if (found.length === 3 || found[3] > 0) return found;
        }
        return [255, 255, 255];
    };
    const contrast = element => {
        const style = getComputedStyle(element);
        const colour = element instanceof SVGElement ? style.fill : style.color;
        const [high, low] = [luminance(channels(colour)), luminance(background(element))].sort((a, b) => b - a);
        return (high + 0.05) / (low + 0.05);
    };
    const ownText = element => [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    const texts = [...document.body.querySelectorAll("*")].filter(e => e.checkVisibility() && ownText(e));
    return {
        images: [...document.images].map(i => ({alt: i.alt, complete: i.complete, width: i.naturalWidth})),
        width: document.documentElement.scrollWidth,
        viewport: document.documentElement.clientWidth,  // innerWidth grows with wide content on a phone
        background: getComputedStyle(document.body).backgroundColor,
        contrast: Math.min(...texts.map(contrast)),
        faint: texts.filter(element => contrast(element) < 4.5).map(element => element.textContent.slice(0, 40)),
    };
})()"""


class Visit(NamedTuple):
    """State of a page after loading."""

    images: list[dict[str, Any]]  # alt, complete, width in pixels of the file
    width: int  # of the content
    viewport: int
    background: str
    contrast: float  # lowest of any text
    faint: list[str]  # texts of a contrast below 4.5
    errors: list[str]  # script errors, failed loads, violations of the page's policy
    requests: list[str]  # addresses asked for, without those of inline data
    screenshot: bytes  # PNG of the whole page

    def problems(self) -> list[str]:
        """Return what is wrong: errors, broken images, sideways overflow, faint texts."""
        broken = [f"broken image: {i['alt']}" for i in self.images if not (i["complete"] and i["width"])]
        wide = [f"content of {self.width} px in {self.viewport} px"] if self.width > self.viewport else []
        return [*self.errors, *broken, *wide, *(f"faint text: {text}" for text in self.faint)]


def find() -> str | None:
    """Return the path of an installed Chromium or Chrome, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """An open page, with what has gone wrong in it and what it has asked for since it was opened."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser, self.target, self._session = browser, target, session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol."""
        return self._browser.call(method, self._session, **parameters)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript, awaited if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", expression))
        return answer["result"].get("value")

    def wait_until(self, expression: str, seconds: float = 60.0) -> Any:
        """Return an expression's value once it is true; TimeoutError if it is not in time."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            if time.monotonic() > end:
                raise TimeoutError(f"after {seconds:.0f} s not true: {expression}")
            time.sleep(0.02)
        return value

    def visit(self) -> Visit:
        """Return the page's state."""
        state = self.evaluate(_STATE)
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        errors, requests = [], []
        for event in self._browser.events(self._session):
            details = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                thrown = details["exceptionDetails"]
                errors.append(f"script error: {thrown.get('exception', {}).get('description', thrown['text'])}")
            elif event["method"] == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
                errors.append(f"console: {details['type']}")
            elif event["method"] == "Log.entryAdded" and details["entry"]["level"] == "error":
                errors.append(details["entry"]["text"])
            elif event["method"] == "Network.requestWillBeSent" and not details["request"]["url"].startswith("data:"):
                requests.append(details["request"]["url"])
        return Visit(**state, errors=errors, requests=requests, screenshot=base64.b64decode(shot))

    # Input

    def point(self, selector: str, x: float = 0.5, y: float = 0.5) -> tuple[float, float]:
        """Return a point of an element's box, by shares of its width and height, scrolled into view."""
        box = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'nearest', behavior: 'instant'});"
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
        )
        return box[0] + x * box[2], box[1] + y * box[3]

    def click(self, selector: str) -> None:
        """Click the middle of an element."""
        self.drag([self.point(selector)])

    def drag(self, points: Sequence[tuple[float, float]]) -> None:
        """Press the mouse at the first point, move it through the others and release it."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [*points, points[-1]], strict=True):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def touch(self, points: Sequence[tuple[float, float]]) -> None:
        """Move a finger through points."""
        for number, (x, y) in enumerate(points):
            kind = "touchMove" if number else "touchStart"
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, *keys: str, modifiers: int = 0) -> None:
        """Press keys by their names; modifiers: 1 Alt, 2 Control, 4 Meta, 8 Shift."""
        for key in keys:
            details: dict[str, Any] = {"key": key, "modifiers": modifiers}
            if key in _KEYS:
                code, number, text = _KEYS[key]
                details |= {"code": code, "windowsVirtualKeyCode": number}
                details |= {"text": text} if text else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", **details)
            details.pop("text", None)
            self.call("Input.dispatchKeyEvent", type="keyUp", **details)


class Browser:
    """A running browser."""

    def __init__(self, process: subprocess.Popen[bytes], read: int, write: int) -> None:
        self._process, self._read, self._write = process, read, write
        self._buffer = b""
        self._calls = 0
        self._events: list[dict[str, Any]] = []

    def visit(self, page: Path, *, width: int, height: int = 900, dark: bool = False) -> Visit:
        """Load a file and return its state."""
        with self.open(page.absolute().as_uri(), width=width, height=height, dark=dark) as opened:
            return opened.visit()

    @contextlib.contextmanager
    def open(
        self, address: str, *, width: int, height: int = 900, dark: bool = False, downloads: Path | None = None
    ) -> Iterator[Page]:
        """Load an address and close the page at the end; files are downloaded to a folder, or nowhere."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        if downloads is not None:
            self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        self._events.clear()
        page.call("Page.navigate", url=address)
        self._wait_for("Page.loadEventFired", session)
        try:
            yield page
        finally:
            self.call("Target.closeTarget", targetId=target)

    def events(self, session: str) -> list[dict[str, Any]]:
        """Return the events of a page so far."""
        return [event for event in self._events if event.get("sessionId") == session]

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol, of the browser or of a page's session."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while (answer := self._receive()).get("id") != self._calls:
            self._events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _wait_for(self, method: str, session: str) -> None:
        def has_come() -> bool:
            return any(e.get("method") == method and e.get("sessionId") == session for e in self._events)

        while not has_come():
            self._events.append(self._receive())

    def _receive(self, seconds: float = 60.0) -> dict[str, Any]:
        """Return the next message; TimeoutError without one, EOFError if the browser has ended."""
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"the browser sent nothing for {seconds:.0f} s")
            data = os.read(self._read, 1 << 16)
            if not data:
                raise EOFError("the browser has ended")
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        return answer


@contextlib.contextmanager
def running(program: str) -> Iterator[Browser]:
    """Start a browser with an empty profile and end it."""
    to_browser, from_browser = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--disable-background-networking", "--hide-scrollbars", f"--user-data-dir={profile}"]
        theirs = (to_browser[0], from_browser[1])
        process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, theirs), program, "--remote-debugging-pipe", *options],
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for descriptor in theirs:
            os.close(descriptor)
        try:
            yield Browser(process, from_browser[0], to_browser[1])
        finally:
            os.close(to_browser[1])  # the browser ends with its pipe
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(from_browser[0])
