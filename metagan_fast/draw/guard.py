"""Rules for every request: who may ask, how often and how much, and the policy that answers carry."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost")
"""Names of this machine; a request for another is a foreign page's, whose name was pointed here."""

_POLICY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """Limits on requests.

    Attributes:
        rate, burst: requests a second in the long run, and at once.
        body_seconds: time in which a request's body must arrive.
        stream_seconds: time after which an event stream ends.
    """

    rate: float = 100.0
    burst: int = 200
    body_seconds: float = 10.0
    stream_seconds: float = 300.0


class RateLimit:
    """Token bucket: `burst` requests at once, `rate` a second in the long run."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._seen = float(burst), clock()

    def allows(self) -> bool:
        """Return whether one more request may run now, and count it."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._seen) * self._rate)
        self._seen = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Guard:
    """ASGI middleware that answers only this machine's own page.

    A request needs a local host name (else 421), no origin but the page's (403) and the token as the first part of its
    path (404, as for any unknown path); more than `limits.rate` of these a second get 429. Answers carry a policy by
    which the page loads nothing from elsewhere and no other page embeds it.

    Args:
        app: the application; it sees paths without the token.
        token: the secret of the address.
        limits: how often requests may come.
    """

    def __init__(self, app: ASGIApp, token: str, limits: Limits) -> None:
        self._app = app
        self._token = token.encode()
        self._requests = RateLimit(limits.rate, limits.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        token, _, rest = scope["path"].removeprefix("/").partition("/")
        refusal = self._refusal(Headers(scope=scope), token)
        app: ASGIApp = self._app
        if refusal is not None:
            app = refusal
        else:
            scope = {**scope, "path": f"/{rest}"}

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_POLICY)
            await send(message)

        await app(scope, receive, send_with_policy)

    def _refusal(self, headers: Headers, token: str) -> PlainTextResponse | None:
        host = headers.get("host", "")
        if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
            return PlainTextResponse(f"expected one of the hosts {', '.join(HOSTS)}", 421)
        if headers.get("origin", f"http://{host}") != f"http://{host}":
            return PlainTextResponse("only the page itself may ask", 403)
        if not secrets.compare_digest(token.encode("utf-8", "replace"), self._token):
            return PlainTextResponse("not found: use the whole address that metagan-fast draw printed", 404)
        if not self._requests.allows():
            return PlainTextResponse("too many requests: wait a second", 429, {"Retry-After": "1"})
        return None


async def read_body(request: Request, most: int, limits: Limits) -> bytes:
    """Return a request's body.

    Raises:
        HTTPException: 413 for more than `most` bytes, announced or sent; 408 if they do not arrive in time.
    """
    too_large = HTTPException(413, f"expected at most {most} bytes")
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > most:
        raise too_large
    parts, size = [], 0
    try:
        with anyio.fail_after(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise HTTPException(408, f"expected the whole request within {limits.body_seconds:g} seconds") from None
    return b"".join(parts)
