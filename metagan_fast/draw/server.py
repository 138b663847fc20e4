"""Addresses of the page, and the server that answers them on this machine alone.

| address | answer |
|---|---|
| `GET /`, `/base.css`, `/page.css`, `/page.js` | the page |
| `GET /settings` | JSON: facts about the GAN and limits |
| `POST /adapt?steps=&latent=` | body: examples; server-sent events: `begin`, then `step` after each inner step |
| `POST /continue?adaptation=&after=&steps=&latent=` | the same events for an adaptation's further steps |
| `GET /images?adaptation=&step=&latent=` | bytes of the new images |
| `GET /between?...&first=&second=` | bytes of the images between two |
| `GET /sheet.png?...&invert=`, `/images.zip?...` | downloads |
| `POST /prepare?height=&width=` | body: a picture; JSON: the example made of it |

Images are bytes, channels first. Adaptation 0 is the initialisation as it is. Nothing is written to a disk.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from torch import Tensor

from .._utils.styles import BASE_STYLE
from . import guard
from .studio import IMAGES, LARGEST_LATENT, LARGEST_SIDE, MOST_EXAMPLES, Adaptation, Studio, as_pixels

Result = TypeVar("Result")

_PAGE = Path(__file__).parent / "page"
_FILES = {
    "": _PAGE / "page.html",
    "base.css": BASE_STYLE,
    "page.css": _PAGE / "page.css",
    "page.js": _PAGE / "page.js",
}
_CONNECTIONS = 64


class Page:
    """The page's application.

    Args:
        studio: the GAN; it is used from one thread.
        token: first part of every path.
        limits: on requests.

    Attributes:
        app: the ASGI application.
    """

    def __init__(self, studio: Studio, token: str, limits: guard.Limits | None = None) -> None:
        self._studio = studio
        self._limits = limits or guard.Limits()
        self._worker = ThreadPoolExecutor(1, "draw")  # the GAN's only thread: steps of several streams take turns
        self.app = Starlette(
            routes=[
                *(Route(f"/{name}", _file(path)) for name, path in _FILES.items()),
                Route("/settings", self._settings),
                Route("/adapt", self._adapt, methods=["POST"]),
                Route("/continue", self._continue, methods=["POST"]),
                Route("/images", self._images),
                Route("/between", self._between),
                Route("/sheet.png", self._sheet),
                Route("/images.zip", self._archive),
                Route("/prepare", self._prepare, methods=["POST"]),
            ],
            middleware=[Middleware(guard.Guard, token=token, limits=self._limits)],
            exception_handlers={ValueError: _refused, FloatingPointError: _refused},
        )

    async def _settings(self, request: Request) -> Response:
        return JSONResponse(self._studio.settings())

    async def _adapt(self, request: Request) -> Response:
        steps, latent = self._whole(request, "steps", self._studio.most_steps), _latent(request)
        most = MOST_EXAMPLES * self._studio.byte_count
        examples = await guard.read_body(request, most, self._limits)
        key, adaptation = await self._run(self._studio.begin, examples)
        return self._events(key, adaptation, range(min(1, steps), steps + 1), latent)

    async def _continue(self, request: Request) -> Response:
        steps, latent = self._whole(request, "steps", self._studio.most_steps), _latent(request)
        key, after = self._whole(request, "adaptation"), self._whole(request, "after", steps)
        return self._events(key, await self._find(request), range(after + 1, steps + 1), latent)

    def _events(self, key: int, adaptation: Adaptation, steps: range, latent: float) -> Response:
        async def events() -> AsyncIterator[bytes]:
            with anyio.move_on_after(self._limits.stream_seconds):
                yield _event("begin", {"adaptation": key})
                try:
                    for step in steps:
                        images = await self._run(self._studio.images, adaptation, step, latent)
                        encoded = base64.b64encode(as_pixels(images)).decode()
                        yield _event("step", {"step": step, "images": encoded})
                except FloatingPointError as error:
                    yield _event("problem", {"message": str(error)})

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _images(self, request: Request) -> Response:
        return Response(as_pixels(await self._new_images(request)), media_type="application/octet-stream")

    async def _between(self, request: Request) -> Response:
        adaptation = await self._find(request)
        chosen = (self._whole(request, name, IMAGES - 1) for name in ("first", "second"))
        images = await self._run(self._studio.between, adaptation, self._step(request), _latent(request), *chosen)
        return Response(as_pixels(images), media_type="application/octet-stream")

    async def _sheet(self, request: Request) -> Response:
        invert = bool(self._whole(request, "invert", 1))
        images = await self._new_images(request)
        content = await self._run(lambda: self._studio.sheet(images, invert=invert))
        return _download("new-images.png", "image/png", content)

    async def _archive(self, request: Request) -> Response:
        invert = bool(self._whole(request, "invert", 1))
        adaptation, images = await self._find(request), await self._new_images(request)
        content = await self._run(lambda: self._studio.archive(adaptation, images, invert=invert))
        return _download("new-images.zip", "application/zip", content)

    async def _prepare(self, request: Request) -> Response:
        height, width = (self._whole(request, name, LARGEST_SIDE, least=1) for name in ("height", "width"))
        channels = self._studio.image_shape[0]
        picture = await guard.read_body(request, channels * height * width, self._limits)
        pixels, inverted, evened = await self._run(self._studio.prepare, picture, height, width)
        return JSONResponse(
            {"pixels": base64.b64encode(pixels).decode(), "inverted": inverted, "evened": evened},
        )

    async def _new_images(self, request: Request) -> Tensor:
        adaptation = await self._find(request)
        return await self._run(self._studio.images, adaptation, self._step(request), _latent(request))

    async def _find(self, request: Request) -> Adaptation:
        try:
            return await self._run(self._studio.find, self._whole(request, "adaptation"))
        except KeyError:
            raise HTTPException(410, "this adaptation is no longer kept: adapt again") from None

    def _step(self, request: Request) -> int:
        return self._whole(request, "step", self._studio.most_steps)

    def _whole(self, request: Request, name: str, most: int = 2**53, *, least: int = 0) -> int:
        """Return a whole number of the query, `least` to `most`; HTTPException 400 without one."""
        text = request.query_params.get(name, "")
        if not (text.isascii() and text.isdecimal() and len(text) < 17 and least <= int(text) <= most):
            raise HTTPException(400, f"expected {name} to be a whole number from {least} to {most}, got {text[:40]!r}")
        return int(text)

    async def _run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run a computation in the GAN's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)


def open_socket(port: int) -> socket.socket:
    """Return a listening socket of this machine alone; port 0 takes a free one.

    Raises:
        OSError: the port is in use.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise OSError(f"port {port} cannot be used ({error.strerror}): leave out --port to take a free one") from error
    listener.listen()
    return listener


def serve(page: Page, listener: socket.socket) -> None:
    """Answer requests until Ctrl-C."""
    config = uvicorn.Config(
        page.app,
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        h11_max_incomplete_event_size=16 << 10,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run([listener])


def _file(path: Path) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        return FileResponse(path)

    return answer


def _latent(request: Request) -> float:
    text = request.query_params.get("latent", "")
    try:
        latent = float(text)
    except ValueError:
        latent = math.nan
    if not 0 <= latent <= LARGEST_LATENT:
        raise HTTPException(400, f"expected latent to be a number from 0 to {LARGEST_LATENT}, got {text[:40]!r}")
    return latent


def _event(name: str, content: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n".encode()


def _download(name: str, kind: str, content: bytes) -> Response:
    return Response(content, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})


async def _refused(request: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), 400)
