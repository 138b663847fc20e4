"""A studio of a tiny GAN, and requests to its page, for the tests of the page."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx2
import torch
from starlette.testclient import TestClient
from torch import Tensor

import metagan_fast as mgf
from metagan_fast.draw.guard import Limits
from metagan_fast.draw.server import Page
from metagan_fast.draw.studio import Studio, as_pixels

SHAPE = (1, 8, 8)
BYTES = 64
TOKEN = "a-token"
LIGHT_ON_DARK = 1.5


def learner(lr: float = 0.01) -> mgf.MetaGAN:
    generator, discriminator = mgf.models.mlp(SHAPE, latent_dim=4, hidden=(16,))
    return mgf.MetaGAN(generator, discriminator, latent_dim=4, inner=mgf.InnerLoop("sgd", lr=lr, steps=5))


def studio(gan: mgf.MetaGAN, contrast: float | None = LIGHT_ON_DARK) -> Studio:
    record = {"settings": {"data": {"invert": False}}, "image_shape": list(SHAPE), "contrast": contrast}
    return Studio(gan, record, "tiny")


def client(gan: mgf.MetaGAN | None = None, limits: Limits | None = None, token: str = TOKEN) -> TestClient:
    """Return a client whose paths begin after the token."""
    page = Page(studio(gan or learner()), TOKEN, limits)
    return TestClient(page.app, base_url=f"http://127.0.0.1:8000/{token}/", raise_server_exceptions=False)


def drawings(count: int = 3) -> Tensor:
    """Return random images that survive the way to bytes and back."""
    whole = torch.randint(0, 256, (count, *SHAPE), generator=torch.Generator().manual_seed(2))
    return whole / 127.5 - 1


def events(answer: httpx2.Response) -> list[tuple[str, dict[str, Any]]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for event in answer.text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def images_of(event: tuple[str, dict[str, Any]]) -> bytes:
    return base64.b64decode(event[1]["images"])


def sampled(gan: mgf.MetaGAN, steps: int, seed: int = 0) -> bytes:
    """Return the bytes that a user of the library would get for the drawings."""
    return as_pixels(gan.adapt(drawings(), steps=steps).sample(16, seed=seed))
