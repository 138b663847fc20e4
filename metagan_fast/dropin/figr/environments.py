"""FIGR's `environnements.py`: MNIST, Omniglot and FIGR-8 read from disk, sampled one class (task) at a time."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...tasks import TaskDistribution, draws, folders, idx
from ...tasks.images import ImageSet
from ...training.output_folder import OutputFolder

logger = logging.getLogger(__name__)

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Default device of images, as in FIGR."""


class MetaEnv:
    """A data set whose classes are tasks, some held out for validation.

    A draw is a function of the seed and the number of earlier draws, so a resumed run continues with the same tasks.

    Args:
        height, length: image size in pixels; images are stretched to it by Pillow's bilinear filter.
        seed: seed of the split and the drawn tasks.
        root: folder of the data, `./data` in FIGR.
        validation_task: names of the classes held out, for example an earlier run's; None: as many as FIGR holds out,
            drawn from the seed.
        device: device of the images; None: this module's `device`.

    Attributes:
        channels: image channels, 1.
        training_task, validation_task: sets of class names.
        draws: number of tasks drawn from each set.

    Raises:
        FileNotFoundError: the data are missing; the message says how to get them.
        ValueError: the data cannot be read, or there are too few classes to hold some out.
    """

    channels: int = 1
    name: ClassVar[str]
    held_out: ClassVar[int]
    places: ClassVar[tuple[str, ...]]  # below `root`; the first that exists is read
    help: ClassVar[str]

    def __init__(
        self,
        height: int = 32,
        length: int = 32,
        *,
        seed: int = 0,
        root: str | Path = "./data",
        validation_task: Collection[str] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.height = height
        self.length = length
        self.device = torch.device(device) if device is not None else globals()["device"]
        self.draws = {"training": 0, "validation": 0}
        images = self._read(self._find(Path(root)))
        chosen = self._hold_out(images.classes, seed) if validation_task is None else set(validation_task)
        unknown = chosen - set(images.classes)
        if unknown:
            raise ValueError(f"validation_task names {min(unknown)!r}, which is no class of {self.name} in {root}")
        self.all_tasks = set(images.classes)
        self.validation_task = chosen
        self.training_task = self.all_tasks - chosen
        self._sets = {
            part: TaskDistribution(images.select(n for n in images.classes if n in names), seed=seed, name=self.name)
            for part, names in (("training", self.training_task), ("validation", self.validation_task))
        }

    def sample_training_task(self, batch_size: int = 4) -> tuple[Tensor, str]:
        """Draw a class to train on and `batch_size` different images of it.

        Returns:
            `[batch_size, 1, height, length]` in [0, 1], and the name of the class.

        Raises:
            ValueError: a class has too few images, or there are no classes.
        """
        return self._sample("training", batch_size)

    def sample_validation_task(self, batch_size: int = 4) -> tuple[Tensor, str]:
        """Draw a held-out class; returns and raises as `sample_training_task`."""
        return self._sample("validation", batch_size)

    def _sample(self, part: str, batch_size: int) -> tuple[Tensor, str]:
        tasks = self._sets[part]
        fewest = min(tasks.counts, default=0)
        if fewest < batch_size:
            name = tasks.classes[tasks.counts.index(fewest)] if tasks.counts else None
            raise ValueError(
                f"{self.name}: "
                + (f"class {name!r} has {fewest} images" if tasks.counts else f"there are no classes for {part}")
                + f", but batch_size={batch_size}; lower --batch_size or change the data"
            )
        batch = tasks.sample(tasks=1, shots=batch_size, step=self.draws[part])
        self.draws[part] += 1
        assert batch.classes is not None
        return ((batch.support[0] + 1) / 2).to(self.device), batch.classes[0]

    def _find(self, root: Path) -> Path:
        for place in self.places:
            if (root / place).exists():
                return root / place
        expected = " or ".join(str(root / place) for place in self.places)
        raise FileNotFoundError(f"{self.name} is not there: expected {expected}; {self.help}")

    def _hold_out(self, classes: Collection[str], seed: int) -> set[str]:
        if len(classes) <= self.held_out:
            raise ValueError(
                f"{self.name} has {len(classes)} classes, of which {self.held_out} are held out for validation: none "
                "is left to train on; add classes or name fewer with validation_task"
            )
        drawn = draws.words(seed, draws.Stream.SPLIT, 0, (len(classes),))
        names = sorted(classes)
        return {names[i] for i in np.argsort(drawn, kind="stable")[: self.held_out]}

    def _read(self, path: Path) -> ImageSet:
        """Read all images, class by class and without groups: FIGR draws all classes with equal probability."""
        images = folders.read(path, (self.height, self.length), self.channels, _stretch)
        images.left_out.log(str(path))
        return replace(images, groups=None)

    # Resuming

    def state(self) -> dict[str, Any]:
        """Return the number of draws and the classes held out."""
        return {"draws": dict(self.draws), "validation_task": sorted(self.validation_task)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore a result of `state`.

        Raises:
            ValueError: the state belongs to a run that held out other classes.
        """
        if set(state["validation_task"]) != self.validation_task:
            raise ValueError(
                f"the saved run held out other classes of {self.name} than this one, which would train on its own "
                "validation classes; use the same data and --seed, or the saved run's validation_task"
            )
        self.draws = dict(state["draws"])


class MnistMetaEnv(MetaEnv):
    """MNIST's training images with digit 9 held out; see `MetaEnv`."""

    name = "MNIST"
    held_out = 1
    places = tuple(
        f"{folder}/train-images-idx3-ubyte{suffix}" for folder in ("MNIST/raw", "raw") for suffix in ("", ".gz")
    )
    help = (
        "put train-images-idx3-ubyte and train-labels-idx1-ubyte (or their .gz) there, as torchvision's "
        "MNIST('./data', download=True) does"
    )

    def __init__(self, height: int = 28, length: int = 28, **settings: Any) -> None:
        super().__init__(height, length, **settings)

    def _hold_out(self, classes: Collection[str], seed: int) -> set[str]:
        return {"9"}

    def _read(self, path: Path) -> ImageSet:
        found = idx.read(path)
        size = self.height, self.length
        images = np.stack([np.asarray(_stretch(Image.fromarray(image), size)) for image in found.images[:, 0]])
        return ImageSet(images[:, None], found.counts, found.classes)


class OmniglotMetaEnv(MetaEnv):
    """Omniglot's background characters with 20 held out; see `MetaEnv`. Classes are named `alphabet/character`."""

    name = "Omniglot"
    held_out = 20
    places = ("omniglot-py/images_background",)
    help = (
        "unpack images_background.zip of github.com/brendenlake/omniglot there, as torchvision's "
        "Omniglot('./data', download=True) does"
    )


class FIGR8MetaEnv(MetaEnv):
    """FIGR-8's icons with 50 classes held out; see `MetaEnv`.

    The class names of both sets are written to `validation_task.pkl` and `training_task.pkl` in the working directory,
    as by FIGR. Files of these names from another program, such as FIGR, are kept, and a log line says so.
    """

    name = "FIGR-8"
    held_out = 50
    places = ("FIGR-8/Data",)
    help = "download FIGR-8 from github.com/marcdemers/FIGR-8 and unzip it there: a folder of images for each class"

    def __init__(self, height: int = 32, length: int = 32, **settings: Any) -> None:
        super().__init__(height, length, **settings)
        sets = {f"{name}.pkl": pickle.dumps(getattr(self, name)) for name in ("validation_task", "training_task")}
        try:
            OutputFolder(".", "metagan_fast.dropin.figr").write(sets)
        except FileExistsError as error:  # possibly FIGR's, the only record of what its run held out
            logger.warning("%s; this run goes on without writing its own", error)


def _stretch(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to (height, width) as torchvision's Resize does for FIGR."""
    height, width = size
    return image.resize((width, height), Image.Resampling.BILINEAR)
