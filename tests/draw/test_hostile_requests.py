"""Requests that the page must refuse: foreign, guessed, huge, malformed, too many, too slow."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from metagan_fast.cli import main
from metagan_fast.draw.guard import Limits, RateLimit
from metagan_fast.draw.server import Page, open_socket
from metagan_fast.draw.studio import LARGEST_SIDE, MOST_EXAMPLES
from small_studio import BYTES, TOKEN, client, learner, studio

PLACE = "adaptation=0&step=0&latent=0"


@pytest.mark.parametrize("token", ["", "b-token", TOKEN[:-1], f"{TOKEN}x", "%C3%A9", "x" * 10_000, f"x/../{TOKEN}x"])
def test_another_token_finds_nothing(token: str) -> None:
    for path in ("", "settings", "page.js"):
        answer = client(token=token or "/").get(path)
        assert answer.status_code == 404 and "tiny" not in answer.text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil", ""])
def test_a_name_pointed_here_is_refused(host: str) -> None:
    assert client().get("settings", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "https://127.0.0.1:8000", "http://127.0.0.1:9999", "http://localhost:8000"],
)
def test_another_origin_is_refused(origin: str) -> None:
    page = client()
    for answer in (
        page.get("settings", headers={"Origin": origin}),
        page.post("adapt?steps=1&latent=0", content=bytes(BYTES), headers={"Origin": origin}),
        page.options("adapt", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}),
    ):
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]
    own = page.get("settings", headers={"Origin": "http://127.0.0.1:8000"})
    assert own.status_code == 200


def test_answers_forbid_embedding_and_outside_requests() -> None:
    page = client()
    for answer in (page.get(""), page.get("missing"), page.get("images"), client(token="other").get("")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"


def in_parts(total: int) -> Iterator[bytes]:
    """Yield a body without an announced length."""
    for _ in range(total // 1024 + 1):
        yield bytes(1024)


@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("adapt?steps=1&latent=0", MOST_EXAMPLES * BYTES),
        ("prepare?height=40&width=40", 1600),
        (f"prepare?height={LARGEST_SIDE}&width={LARGEST_SIDE}", LARGEST_SIDE**2),
    ],
)
def test_huge_bodies_are_refused(path: str, most: int) -> None:
    page = client()
    assert page.post(path, content=bytes(most + 1)).status_code == 413
    assert page.post(path, content=in_parts(most + 2048)).status_code == 413
    assert page.post(path, content=b"", headers={"Content-Length": "9" * 30}).status_code == 413
    assert page.post(path, content=b"", headers={"Content-Length": "-1"}).status_code == 413


@pytest.mark.parametrize(
    "path",
    [
        *(f"adapt?steps={steps}&latent=0" for steps in ("", "-1", "1.5", "1e9", "41", "9" * 400, "%D9%A1", "x" * 5000)),
        *(f"adapt?steps=1&latent={latent}" for latent in ("", "nan", "inf", "-0.1", "8.01", "1e400", "()")),
        "adapt",
        "continue?adaptation=0&after=3&steps=2&latent=0",
        "prepare?height=0&width=8",
        f"prepare?height=1&width={LARGEST_SIDE + 1}",
    ],
)
def test_malformed_numbers_are_refused(path: str) -> None:
    answer = client().post(path, content=bytes(BYTES))
    assert answer.status_code == 400 and answer.text.startswith("expected ") and len(answer.text) < 200


@pytest.mark.parametrize(
    "path",
    [
        "images?adaptation=0&step=41&latent=0",
        "images?adaptation=0&step=3&latent=0",
        "images?adaptation=x&step=0&latent=0",
        f"between?{PLACE}&first=0&second=16",
        f"between?{PLACE}",
        f"sheet.png?{PLACE}&invert=2",
    ],
)
def test_malformed_queries_are_refused(path: str) -> None:
    assert client().get(path).status_code == 400


@pytest.mark.parametrize("size", [0, 1, BYTES - 1, BYTES + 1, 2 * BYTES + 5])
def test_bodies_that_are_no_whole_images_are_refused(size: int) -> None:
    answer = client().post("adapt?steps=1&latent=0", content=bytes(size))
    assert answer.status_code == 400 and f"got {size} bytes" in answer.text
    assert client().post("prepare?height=40&width=40", content=bytes(size)).status_code == 400


def test_unknown_addresses_methods_and_adaptations() -> None:
    page = client()
    assert page.get("images?adaptation=77&step=0&latent=0").status_code == 410
    for path in ("missing", "page.html", "../studio.py", "%2e%2e/studio.py", "//etc/passwd"):
        assert page.get(path).status_code == 404
    assert page.get("adapt?steps=1&latent=0").status_code == 405
    assert page.delete("settings").status_code == 405


def test_too_many_requests_wait() -> None:
    page = client(limits=Limits(rate=0.001, burst=5))
    codes = [page.get("settings").status_code for _ in range(7)]
    assert codes == [200] * 5 + [429] * 2
    assert page.get("settings").headers["retry-after"] == "1"


def test_guesses_do_not_use_up_the_rate() -> None:
    page = client(limits=Limits(rate=0.001, burst=1))
    for _ in range(3):
        assert page.get("http://127.0.0.1:8000/guess/").status_code == 404
    assert page.get("settings").status_code == 200


def test_the_rate_recovers() -> None:
    now = 0.0
    limit = RateLimit(rate=2, burst=3, clock=lambda: now)
    assert [limit.allows() for _ in range(4)] == [True, True, True, False]
    now = 1.0
    assert [limit.allows() for _ in range(3)] == [True, True, False]
    now = 100.0
    assert [limit.allows() for _ in range(4)] == [True, True, True, False]


# Clients that do not go on


def ask(page: Page, path: str, received: list[dict[str, Any]], patience: float = 20.0) -> list[dict[str, Any]]:
    """Return what the application sends to a client that sends some messages and no more."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if received:
            return received.pop(0)
        await asyncio.sleep(3600)
        return {}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    name, _, query = path.partition("?")
    scope = {
        "type": "http", "method": "POST", "path": f"/{TOKEN}/{name}", "query_string": query.encode(),
        "headers": [(b"host", b"127.0.0.1")], "asgi": {"version": "3.0", "spec_version": "2.3"},
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(page.app(scope, receive, send), patience))  # type: ignore[arg-type]
    return sent


def test_a_slow_body_is_given_up() -> None:
    page = Page(studio(learner()), TOKEN, Limits(body_seconds=0.1))
    begun = time.monotonic()
    sent = ask(page, "adapt?steps=1&latent=0", [{"type": "http.request", "body": b"x", "more_body": True}])
    assert sent[0]["status"] == 408 and time.monotonic() - begun < 10


def test_a_stream_ends_with_its_client() -> None:
    page = Page(studio(learner()), TOKEN)
    gone = [{"type": "http.request", "body": bytes(BYTES), "more_body": False}, {"type": "http.disconnect"}]
    steps = [m for m in ask(page, "adapt?steps=40&latent=0", gone) if b"event: step" in m.get("body", b"")]
    assert len(steps) < 40


def test_a_stream_ends_after_its_time() -> None:
    page = Page(studio(learner()), TOKEN, Limits(stream_seconds=0))
    received = [{"type": "http.request", "body": bytes(BYTES), "more_body": False}]
    sent = ask(page, "adapt?steps=40&latent=0", received)
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert len([m for m in sent if b"event: step" in m.get("body", b"")]) < 40


# The socket and the command


def test_the_socket_is_of_this_machine_alone() -> None:
    with open_socket(0) as listener:
        address, port = listener.getsockname()
        assert address == "127.0.0.1" and port > 0
        with pytest.raises(OSError, match=f"port {port} cannot be used"):
            open_socket(port)
        with socket.create_connection((address, port), timeout=5):
            pass


def test_the_command_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith(("metagan_fast.draw.", "uvicorn"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("metagan_fast.draw.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["draw"]) == 2
    error = capsys.readouterr().err
    assert "uvicorn is not installed: pip install 'metagan_fast[web]'" in error and error.count("\n") == 1
