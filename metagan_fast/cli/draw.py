"""`metagan-fast draw`: a page on this machine on which a person draws, and a GAN adapts."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import webbrowser
from typing import Any

from .._utils.argument_types import whole
from .runs import add_checkpoint_option, add_run_argument, open_run


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "draw",
        help="open a page to draw a class on, and see the GAN adapt",
        description="Serve a page to this machine alone: draw, paste or drop 1 to 8 images, and see new ones of their "
        "class while the GAN adapts. Ctrl-C ends it; nothing is written unless you download it.",
    )
    add_run_argument(parser, default="glyphs")
    parser.add_argument("--port", type=whole(0, 65535), default=0, help="of the address (default: a free one)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    add_checkpoint_option(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    try:
        from ..draw import server
    except ModuleNotFoundError as error:
        if error.name not in ("anyio", "starlette", "uvicorn"):
            raise
        raise ValueError(
            f"draw needs the extra `web`, and {error.name} is not installed: pip install 'metagan_fast[web]'"
        ) from error
    from ..draw.studio import Studio

    folder, record, learner = open_run(given.run_folder, given.checkpoint)
    studio = Studio(learner, record, folder.path.resolve().name)
    studio.warm_up()
    token = secrets.token_urlsafe(16)
    with server.open_socket(given.port) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/{token}/"
        print(f"draw at {address} (Ctrl-C ends it)", flush=True)
        if given.open:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve(server.Page(studio, token), listener)
    return 0
