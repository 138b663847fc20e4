"""The GAN behind the page: adapts to drawings step by step, and draws new images from any latents."""

from __future__ import annotations

import io
import itertools
import math
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..display import image_grids
from ..learner import MetaGAN
from ..noise import draw_sample_latents
from ..tasks.contrast import evened, is_grey, is_opposite
from ..tasks.images import fit, to_float

IMAGES = 16
"""New images at a time."""

MOST_EXAMPLES = 8
BETWEEN = 9  # images from one latent to another, both included
LARGEST_LATENT = 8  # end of the page's slider
LARGEST_SIDE = 1024  # of a picture to prepare, in pixels

_STEPS = 40  # inner steps that the page offers, unless the run takes more
_MEMORY = 512 << 20  # bytes of generators kept


class Adaptation:
    """Adaptation to one set of examples, taken as far as anyone has asked; without examples there are no steps.

    Attributes:
        examples: `[n, channels, height, width]` in [-1, 1].
    """

    def __init__(self, learner: MetaGAN, examples: Tensor, most_steps: int) -> None:
        self.examples = examples
        self._generators = [learner.generator_parameters.clone()[None]]
        self._ahead = learner.adaptation(examples, steps=most_steps) if len(examples) else iter(())

    @property
    def bytes(self) -> int:
        """Memory of its generators."""
        return sum(generator.nbytes for generator in self._generators)

    def generator(self, step: int) -> Tensor:
        """Return the generator's parameters after `step` inner steps, `[1, numel]`; take the steps if need be.

        Raises:
            FloatingPointError: the networks diverged.
        """
        while len(self._generators) <= step:
            adapted = next(self._ahead, None)
            if adapted is None:
                raise FloatingPointError("the adaptation ended before this step")
            self._generators.append(adapted.generator)
        return self._generators[step]


class Studio:
    """A learner with the few adaptations that pages have asked for last; not safe for several threads.

    Args:
        learner: the GAN; it is not changed.
        record: the record of its run.
        name: of the run, as the page shows it.

    Attributes:
        image_shape: channels, height and width of its images.
        most_steps: inner steps that may be taken.
        byte_count: bytes of an image.
    """

    def __init__(self, learner: MetaGAN, record: Mapping[str, Any], name: str) -> None:
        self._learner = learner
        self._name = name
        self._contrast: float | None = record.get("contrast")
        self._invert: bool = record["settings"]["data"]["invert"]
        self._adaptations: OrderedDict[int, Adaptation] = OrderedDict()
        self._keys = itertools.count(1)
        self.image_shape: tuple[int, int, int] = tuple(record["image_shape"])
        self.byte_count = math.prod(self.image_shape)
        affordable = _MEMORY // learner.generator_parameters.nbytes
        self.most_steps = max(learner.inner.steps, min(_STEPS, affordable))
        self._latents = lru_cache(maxsize=2 * LARGEST_LATENT)(self._draw_latents)

    def settings(self) -> dict[str, Any]:
        """Return facts that the page needs."""
        channels, height, width = self.image_shape
        return {
            "name": self._name,
            "channels": channels,
            "height": height,
            "width": width,
            "contrast": self._contrast,
            "steps": self._learner.inner.steps,
            "mostSteps": self.most_steps,
            "mostExamples": MOST_EXAMPLES,
            "images": IMAGES,
            "between": BETWEEN,
            "largestLatent": LARGEST_LATENT,
            "largestSide": LARGEST_SIDE,
        }

    def warm_up(self) -> None:
        """Run every computation once, so that the first drawing need not wait for memory."""
        blank = bytes(self.byte_count)
        key, adaptation = self.begin(blank)
        self.images(adaptation, 1, 0.5)
        self.between(adaptation, 1, 0.0, 0, 1)
        del self._adaptations[key]

    def begin(self, pixels: bytes) -> tuple[int, Adaptation]:
        """Start an adaptation and return it with its key.

        Args:
            pixels: 1 to `MOST_EXAMPLES` images, each channels, height and width in that order, a byte a value.

        Raises:
            ValueError: another number of bytes.
        """
        count, rest = divmod(len(pixels), self.byte_count)
        if rest or not 1 <= count <= MOST_EXAMPLES:
            raise ValueError(
                f"expected 1 to {MOST_EXAMPLES} images of {self.byte_count} bytes each, got {len(pixels)} bytes"
            )
        examples = _as_images(pixels, (count, *self.image_shape))
        key = next(self._keys)
        adaptation = self._adaptations[key] = Adaptation(self._learner, examples, self.most_steps)
        while len(self._adaptations) > 1 and sum(a.bytes for a in self._adaptations.values()) > _MEMORY:
            self._adaptations.popitem(last=False)
        return key, adaptation

    def find(self, key: int) -> Adaptation:
        """Return an adaptation by its key; KeyError if it is no longer kept. Key 0 is the initialisation."""
        if key == 0:
            return Adaptation(self._learner, torch.empty(0, *self.image_shape), 0)
        self._adaptations.move_to_end(key)
        return self._adaptations[key]

    def images(self, adaptation: Adaptation, step: int, latent: float) -> Tensor:
        """Return new images `[IMAGES, channels, height, width]` in [-1, 1] after `step` inner steps.

        Each image's latent turns with `latent` from one standard normal to the next: a whole number is the seed.
        """
        return self._learner.generate(adaptation.generator(step), self._latents_at(latent)[None])[0]

    def between(self, adaptation: Adaptation, step: int, latent: float, first: int, second: int) -> Tensor:
        """Return `BETWEEN` images on the way from one of the new images to another, both included."""
        latents = self._latents_at(latent)
        way = torch.linspace(0, 1, BETWEEN, dtype=torch.float64).tolist()
        between = torch.stack([_turned(latents[first], latents[second], share) for share in way])
        return self._learner.generate(adaptation.generator(step), between[None])[0]

    def archive(self, adaptation: Adaptation, images: Tensor, *, invert: bool) -> bytes:
        """Return a zip file of the images, their grid and the examples, PNG files each."""
        sign = -1 if invert else 1
        files = image_grids.sample_files(sign * images)
        files |= {f"examples/{n}.png": image_grids.png(sign * x) for n, x in enumerate(adaptation.examples)}
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name), content)  # no date: equal images give equal files
        return data.getvalue()

    def sheet(self, images: Tensor, *, invert: bool) -> bytes:
        """Return the images in a grid, a PNG file."""
        return image_grids.grid_png(image_grids.sample_grid(-images if invert else images), images.shape[-1])

    def prepare(self, pixels: bytes, height: int, width: int) -> tuple[bytes, bool, bool]:
        """Return a picture as an example, with the contrast and the background of the run's data.

        Args:
            pixels: `[channels, height, width]`, a byte a value.
            height, width: of the picture, 1 to `LARGEST_SIDE`.

        Returns:
            The example's bytes, whether light and dark were exchanged, whether the background was evened out.

        Raises:
            ValueError: a side out of range, or another number of bytes.
        """
        channels, *size = self.image_shape
        if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
            raise ValueError(f"expected sides of 1 to {LARGEST_SIDE} pixels, got {width} x {height}")
        if len(pixels) != channels * height * width:
            raise ValueError(f"expected {channels * height * width} bytes, got {len(pixels)}")
        planes = np.frombuffer(pixels, np.uint8).reshape(channels, height, width)
        resized = [np.asarray(fit(Image.fromarray(plane), (size[0], size[1]))) for plane in planes]
        example = to_float(torch.from_numpy(np.stack(resized)))[None]
        example = -example if self._invert else example
        inverted = is_opposite(example, self._contrast)
        example = -example if inverted else example
        grey = is_grey(example, self._contrast)
        if grey and self._contrast is not None:
            example = evened(example, self._contrast)
        return as_pixels(example), inverted, grey

    def _latents_at(self, latent: float) -> Tensor:
        seed = math.floor(latent)
        return _turned(self._latents(seed), self._latents(seed + 1), latent - seed)

    def _draw_latents(self, seed: int) -> Tensor:
        like = self._learner.generator_parameters
        kind: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        return draw_sample_latents(1, IMAGES, self._learner.latent_dim, seed=seed, **kind)[0]


def as_pixels(images: Tensor) -> bytes:
    """Return the bytes of images in [-1, 1]."""
    return image_grids.to_bytes(images).contiguous().numpy().tobytes()


def _as_images(pixels: bytes, shape: tuple[int, ...]) -> Tensor:
    return to_float(torch.from_numpy(np.frombuffer(pixels, np.uint8).reshape(shape).copy()))


def _turned(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Return a point of the arc between latents; each is standard normal, too."""
    angle = share * math.pi / 2
    return math.cos(angle) * first + math.sin(angle) * second
