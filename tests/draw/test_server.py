"""Page of `metagan-fast draw`: its answers are the library's, and downloads hold them."""

from __future__ import annotations

import base64
import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import metagan_fast as mgf
from metagan_fast.draw import studio as studios
from metagan_fast.draw.studio import BETWEEN, IMAGES, MOST_EXAMPLES, as_pixels
from metagan_fast.noise import draw_sample_latents
from small_studio import BYTES, SHAPE, client, drawings, events, images_of, learner, sampled, studio

PIXELS = as_pixels(drawings())


def test_the_page_and_its_files_are_whole() -> None:
    page = client()
    html = page.get("").text
    for name, kind in (("base.css", "text/css"), ("page.css", "text/css"), ("page.js", "text/javascript")):
        assert name in html and "://" not in html
        assert page.get(name).headers["content-type"].startswith(kind)
    found = page.get("settings").json()
    assert [found[name] for name in ("channels", "height", "width")] == list(SHAPE)
    assert (found["name"], found["steps"], found["contrast"]) == ("tiny", 5, 1.5)


def test_each_step_shows_what_the_library_samples() -> None:
    page = client(gan := learner())
    (name, begun), *steps = events(page.post("adapt?steps=3&latent=2", content=PIXELS))
    assert (name, begun["adaptation"] > 0) == ("begin", True)
    assert [(name, content["step"]) for name, content in steps] == [("step", 1), ("step", 2), ("step", 3)]
    for step in steps:
        assert images_of(step) == sampled(gan, step[1]["step"], seed=2)
    whole = events(page.post("adapt?steps=0&latent=0", content=PIXELS))
    assert images_of(whole[1]) == sampled(gan, 0)


def test_an_adaptation_goes_on_where_it_was() -> None:
    page = client(gan := learner())
    key = events(page.post("adapt?steps=1&latent=0", content=PIXELS))[0][1]["adaptation"]
    _, *more = events(page.post(f"continue?adaptation={key}&after=1&steps=3&latent=0"))
    assert [content["step"] for _, content in more] == [2, 3]
    assert images_of(more[-1]) == sampled(gan, 3)
    assert page.get(f"images?adaptation={key}&step=2&latent=1").content == sampled(gan, 2, seed=1)
    assert page.get("images?adaptation=0&step=0&latent=0").content == sampled(gan, 0)


def test_latents_turn_on_an_arc() -> None:
    gan = learner()
    first, second = (draw_sample_latents(1, IMAGES, 4, seed=seed)[0].double() for seed in (1, 2))
    angle = 0.25 * math.pi / 2
    with torch.no_grad():
        expected = gan.adapt(drawings(), steps=2).generator(
            (math.cos(angle) * first + math.sin(angle) * second).float()
        )
    page = client(gan)
    key = events(page.post("adapt?steps=2&latent=0", content=PIXELS))[0][1]["adaptation"]
    found = np.frombuffer(page.get(f"images?adaptation={key}&step=2&latent=1.25").content, np.uint8)
    differences = found.astype(int) - np.frombuffer(as_pixels(expected), np.uint8).astype(int)
    assert abs(differences).max() <= 1  # a rounding to whole numbers

    place = f"adaptation={key}&step=2&latent=1"
    between, ends = page.get(f"between?{place}&first=3&second=7").content, page.get(f"images?{place}").content
    assert len(between) == BETWEEN * BYTES
    for part, index in ((between[:BYTES], 3), (between[-BYTES:], 7)):
        differences = np.frombuffer(part, np.uint8).astype(int) - list(ends[index * BYTES : (index + 1) * BYTES])
        assert abs(differences).max() <= 1
    assert between[4 * BYTES : 5 * BYTES] not in (between[:BYTES], between[-BYTES:])


@pytest.mark.parametrize("invert", [0, 1])
def test_downloads_hold_the_images(invert: int) -> None:
    page = client(gan := learner())
    key = events(page.post("adapt?steps=2&latent=0", content=PIXELS))[0][1]["adaptation"]
    expected = np.frombuffer(sampled(gan, 2), np.uint8).reshape(IMAGES, 8, 8).astype(int)
    query = f"adaptation={key}&step=2&latent=0&invert={invert}"
    archive, sheet = page.get(f"images.zip?{query}"), page.get(f"sheet.png?{query}")
    assert all("attachment" in answer.headers["content-disposition"] for answer in (archive, sheet))
    files = zipfile.ZipFile(io.BytesIO(archive.content))
    names = [f"{n:02}.png" for n in range(IMAGES)]
    assert files.namelist() == [*names, "grid.png", *(f"examples/{n}.png" for n in range(3))]
    found = np.stack([np.asarray(Image.open(files.open(name))) for name in names]).astype(int)
    wanted = 255 - expected if invert else expected
    assert abs(found - wanted).max() <= invert  # halves are rounded to even, so not the same way when negated
    example = np.asarray(Image.open(files.open("examples/0.png"))).astype(int)
    drawn = np.frombuffer(PIXELS, np.uint8)[:BYTES].reshape(8, 8).astype(int)
    assert abs(example - (255 - drawn if invert else drawn)).max() <= invert
    assert files.read("grid.png") == sheet.content and Image.open(io.BytesIO(sheet.content)).size[0] > 4 * 8


def photograph(paper: int, ink: int) -> bytes:
    picture = np.full((40, 40), paper, np.uint8)
    picture[5:35, 15:25] = ink
    return picture.tobytes()


def prepared(contrast: float | None, picture: bytes) -> dict[str, Any]:
    gan = learner()
    pixels, inverted, evened = studio(gan, contrast).prepare(picture, 40, 40)
    return {"pixels": np.frombuffer(pixels, np.uint8).reshape(8, 8), "inverted": inverted, "evened": evened}


def test_pictures_become_like_the_data() -> None:
    plain = prepared(1.5, photograph(0, 255))
    assert (plain["inverted"], plain["evened"]) == (False, False)
    assert plain["pixels"][4, 4] > 200 and plain["pixels"][0, 0] == 0
    dark_on_light = prepared(1.5, photograph(255, 0))
    assert (dark_on_light["inverted"], dark_on_light["evened"]) == (True, False)
    assert abs(dark_on_light["pixels"].astype(int) - plain["pixels"]).max() <= 1
    grey = prepared(1.5, photograph(150, 20))
    assert (grey["inverted"], grey["evened"]) == (True, True)
    assert grey["pixels"][4, 4] > 200 and grey["pixels"][0, 0] == 0
    unclear = prepared(None, photograph(150, 20))
    assert (unclear["inverted"], unclear["evened"]) == (False, False)
    assert unclear["pixels"][0, 0] == 150


def test_a_picture_is_prepared_over_the_wire() -> None:
    answer = client().post("prepare?height=40&width=40", content=photograph(255, 0)).json()
    assert answer["inverted"] and not answer["evened"]
    assert base64.b64decode(answer["pixels"]) == prepared(1.5, photograph(255, 0))["pixels"].tobytes()


def test_divergence_is_an_event() -> None:
    *_, (name, content) = events(client(learner(lr=1e30)).post("adapt?steps=5&latent=0", content=PIXELS))
    assert name == "problem" and "NaN or infinite" in content["message"]


def test_old_adaptations_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    gan = learner()
    monkeypatch.setattr(studios, "_MEMORY", 8 * gan.generator_parameters.nbytes)
    small = studio(gan)
    assert small.most_steps == 8
    (first, adaptation), (second, _) = small.begin(PIXELS), small.begin(PIXELS)
    adaptation.generator(7)
    third, _ = small.begin(PIXELS)
    with pytest.raises(KeyError):
        small.find(first)
    assert small.find(second) and small.find(third)


@pytest.mark.usefixtures("own_folder")
def test_nothing_is_written() -> None:
    page = client()
    key = events(page.post("adapt?steps=1&latent=0", content=PIXELS))[0][1]["adaptation"]
    page.get(f"images.zip?adaptation={key}&step=1&latent=0&invert=0")
    assert list(Path().iterdir()) == []


def test_the_most_examples_are_taken() -> None:
    answer = client().post("adapt?steps=1&latent=0", content=bytes(MOST_EXAMPLES * BYTES))
    assert len(events(answer)) == 2


def test_colours_and_oblong_images_are_kept() -> None:
    generator, discriminator = mgf.models.mlp((3, 4, 6), latent_dim=4, hidden=(16,))
    record = {"settings": {"data": {"invert": False}}, "image_shape": [3, 4, 6], "contrast": None}
    colour = studios.Studio(mgf.MetaGAN(generator, discriminator, latent_dim=4), record, "colour")
    picture = np.zeros((3, 20, 30), np.uint8)
    picture[0] = 200
    picture[2, :10] = 100
    pixels, inverted, evened = colour.prepare(picture.tobytes(), 20, 30)
    assert (inverted, evened) == (False, False)
    planes = np.frombuffer(pixels, np.uint8).reshape(3, 4, 6)
    assert (planes[0] == 200).all() and (planes[1] == 0).all()
    assert (planes[2, 0] > 90).all() and (planes[2, 3] < 10).all()
    _, adaptation = colour.begin(pixels)
    sheet = Image.open(io.BytesIO(colour.sheet(colour.images(adaptation, 1, 0.0), invert=False)))
    assert sheet.mode == "RGB" and sheet.size[0] > sheet.size[1]
