"""Data in memory: arrays, tensors, PIL images and map-style data sets, against the same images in folders."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from metagan_fast import tasks
from metagan_fast.tasks import arrays
from metagan_fast.tasks.images import to_float

EVERYTHING: dict[str, Any] = {"split": (1.0, 0.0, 0.0)}
CLASSES = ("cat", "dog", "emu", "fox", "gnu", "hen")
LABELS = [name for name in CLASSES for _ in range(4)]


def pixels(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw images that hold black and white, as their range tells floats in [-1, 1] from floats in [0, 1]."""
    drawn = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    drawn.reshape(len(drawn), -1)[:, :2] = (0, 255)
    return drawn


def assert_same(first: tasks.Tasks, second: tasks.Tasks) -> None:
    for part in ("train", "validation", "test"):
        one, other = getattr(first, part), getattr(second, part)
        assert (one.classes, one.groups, one.counts) == (other.classes, other.groups, other.counts)
        for name in one.classes:
            assert torch.equal(one.images(name), other.images(name))
    assert torch.equal(first.train.sample(shots=2, step=5).support, second.train.sample(shots=2, step=5).support)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(images: Any, labels: Any = None, *more: Any, **options: Any) -> str:
    """Return the error of `from_arrays`; without labels all images are of one class."""
    return refusal(lambda: tasks.from_arrays(images, [0] * len(images) if labels is None else labels, *more, **options))


def refused_dataset(dataset: Any, **options: Any) -> str:
    return refusal(lambda: tasks.from_dataset(dataset, **options))


def only(images: Any, **options: Any) -> torch.Tensor:
    """Return the pixels of images of one class."""
    return tasks.from_arrays(images, [0] * len(images), **EVERYTHING, **options).train.images("0")


class TestPixels:
    @pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (1, 4, 5), (4, 5, 3), (3, 4, 5)])
    @pytest.mark.parametrize("kind", ["array", "tensor", "list", "objects"])
    def test_layouts(self, shape: tuple[int, ...], kind: str) -> None:
        given = pixels(3, *shape)
        channels_first = given[:, None] if given.ndim == 3 else given
        if shape[-1] in (1, 3):
            channels_first = given.transpose(0, 3, 1, 2)
        images: Any = {"array": given, "tensor": torch.from_numpy(given), "list": list(given)}.get(kind)
        if images is None:
            images = np.empty(3, object)
            images[:] = list(given)
        found = only(images)
        assert found.dtype == torch.uint8
        assert found.tolist() == channels_first.tolist()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_floats_are_the_levels_that_they_came_from(self, dtype: torch.dtype) -> None:
        given = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
        for images in (given.to(torch.float64) / 255, to_float(given).to(torch.float64)):
            for each in (images.to(dtype), images.to(dtype).numpy(), [images[0].to(dtype)]):
                assert only(each)[:, 0].tolist() == given.tolist()

    def test_bfloat16_rounds_to_the_nearest_level(self) -> None:
        images = torch.tensor([[[0.0, 0.5, 1.0]]], dtype=torch.bfloat16)
        assert only(images).flatten().tolist() == [0, 128, 255]

    def test_masks_and_other_ranges(self) -> None:
        mask = np.array([[[0, 1], [1, 0]]])
        assert only(mask.astype(bool)).flatten().tolist() == [0, 255, 255, 0]
        assert only(mask.astype(np.uint8), value_range=(0, 1)).flatten().tolist() == [0, 255, 255, 0]
        assert only(65535 * mask.astype(np.uint16), value_range=(0, 65535)).flatten().tolist() == [0, 255, 255, 0]
        assert only(255.0 * mask, value_range=(0, 255)).flatten().tolist() == [0, 255, 255, 0]
        bright = np.full((1, 2, 2), 0.5)
        assert only(bright).unique().tolist() == [128] and only(bright, value_range=(-1, 1)).unique().tolist() == [191]

    def test_rounding_errors_of_a_transform_are_no_other_range(self) -> None:
        assert only(np.array([[[-1e-4, 1.0001]]], np.float32)).flatten().tolist() == [0, 255]

    def test_gradients_and_views_are_read(self) -> None:
        given = pixels(2, 4, 4)
        images = torch.from_numpy(given / 255).requires_grad_()
        assert only(images)[:, 0].tolist() == given.tolist()
        assert only(given[:, ::-1, ::2])[:, 0].tolist() == given[:, ::-1, ::2].tolist()

    def test_the_given_array_stays_as_it_is(self) -> None:
        given = pixels(2, 4, 4)
        before = given.copy()
        only(given, invert=True)[:] = 7
        assert (given == before).all()

    def test_pil_images_of_several_modes_and_sizes(self) -> None:
        clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
        grey16 = Image.fromarray(np.full((5, 7), 0x8001, np.uint16))
        images = [clear, grey16, Image.new("1", (4, 4), 1), np.full((6, 6), 9, np.uint8)]
        found = only(images, image_size=4)
        assert found.shape == (4, 3, 4, 4)
        assert [image.unique().tolist() for image in found] == [[255], [128], [255], [9]]
        assert only(images[1:], image_size=4).shape == (3, 1, 4, 4)
        assert only(images, image_size=(2, 3), channels=1).shape == (4, 1, 2, 3)
        turned = Image.new("L", (2, 4))
        turned.getexif()[0x0112] = 6
        assert only([turned]).shape == (1, 1, 2, 4)

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (np.zeros((2, 4, 4), np.int64), "got int64: pass value_range=(black, white), such as (0, 255)"),
            (np.zeros((2, 4, 4), complex), "got complex128"),
            (np.full((2, 4, 4), 200.0), "values from 200 to 200, expected floats in [0, 1] or [-1, 1]"),
            (np.linspace(-2.1, 2.6, 32).reshape(2, 4, 4), "or images before their normalization"),
            (np.full((2, 4, 4), np.nan), "values from nan to nan"),
            ([np.ones((2, 2)), np.full((2, 2), -0.5)], "cannot use image 1: values from -0.5 to -0.5, after floats in"),
            (np.zeros((2, 4), np.uint8), "got [2, 4]"),
            (np.zeros((2, 4, 5, 4), np.uint8), "with C 1 or 3, got [4, 5, 4]"),
            (np.zeros((2, 3, 5, 3), np.uint8), "[3, 5, 3] may be [H, W, C] or [C, H, W]"),
            (np.zeros((2, 0, 4), np.uint8), "expected pixels, got the shape [0, 4]"),
            ([np.zeros((4, 4), np.uint8), np.zeros((5, 4), np.uint8)], "give an image_size"),
            ([np.zeros((4, 4), np.uint8), "a.png"], "cannot use image 1: expected an array, a tensor or a PIL image"),
            ([Image.new("F", (4, 4))], "cannot use image 0: its pixels have 32 bits"),
            ([], "arrays holds no images"),
        ],
    )
    def test_refused_images(self, images: Any, message: str) -> None:
        assert message in refused(images)

    def test_refused_options(self) -> None:
        images = pixels(2, 4, 4)
        assert "to be 2 numbers" in refused(images, value_range=3)
        assert "black < white, got (1.0, 0.0)" in refused(images, value_range=(1, 0))
        assert "outside value_range=(0.0, 1.0)" in refused(images, value_range=(0, 1))
        assert "channels must be 1 or 3, got 2" in refused(images, channels=2)
        assert "got a value of type generator" in refusal(
            lambda: tasks.from_arrays((image for image in images), [0, 1])  # type: ignore[arg-type]
        )


class TestLabels:
    @pytest.mark.parametrize(
        "convert",
        [
            lambda numbers: numbers,
            np.array,
            torch.tensor,
            lambda numbers: [np.int16(number) for number in numbers],
            lambda numbers: [torch.tensor(number) for number in numbers],
        ],
    )
    def test_integers_are_sorted_as_numbers(self, convert: Callable[[list[int]], Any]) -> None:
        given = pixels(4, 2, 2)
        train = tasks.from_arrays(given, convert([10, 2, 10, -1]), **EVERYTHING).train
        assert train.classes == ("-1", "2", "10")
        assert train.images("10")[:, 0].tolist() == given[[0, 2]].tolist()

    def test_strings(self) -> None:
        for labels in (["b", "a", "b"], np.array(["b", "a", "b"]), np.array(["b", "a", "b"], object)):
            assert tasks.from_arrays(pixels(3, 2, 2), labels, **EVERYTHING).train.classes == ("a", "b")

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([0, 1], "expected labels of shape [3], one an image, got [2]"),
            (np.eye(3), "one an image, got the shape [3, 3]"),
            (np.int64(3), "one an image, got the shape []"),
            ("abc", "one an image, got a value of type str"),
            ([0.0, 1.0, 2.0], "labels[0]: expected an integer or a string as a label, got 0.0"),
            ([0, True, 2], "labels[1]: expected an integer or a string"),
            ([0, None, 2], "got None"),
            ([0, "1", 2], "labels must be all integers or all strings, got both"),
        ],
    )
    def test_refused_labels(self, labels: Any, message: str) -> None:
        said = refused(pixels(3, 2, 2), labels, name="mine")
        assert message in said and said.startswith("mine: ")


class TestGroups:
    def test_a_mapping_or_one_an_image(self) -> None:
        images, labels = pixels(4, 2, 2), ["b", "a", "c", "b"]
        of_class = {"a": "vowel", "b": "other", "c": "other", "z": "not here"}
        mapped = tasks.from_arrays(images, labels, of_class, **EVERYTHING).train
        listed = tasks.from_arrays(images, labels, [of_class[label] for label in labels], **EVERYTHING).train
        assert mapped.groups == listed.groups == ("vowel", "other", "other")
        numbers = tasks.from_arrays(images, [1, 0, 2, 1], torch.tensor([7, 8, 7, 7]), **EVERYTHING).train
        assert numbers.groups == ("8", "7", "7")

    def test_refused_groups(self) -> None:
        images, labels = pixels(3, 2, 2), ["a", "b", "a"]
        said = refused(images, labels, ["Latin", "Latin", "Greek"])
        assert "got 'Latin' and 'Greek' for 'a'" in said and "such as 'Greek/a'" in said
        assert "groups has no entry for 'b'" in refused(images, labels, {"a": "Latin"})
        assert "expected groups of shape [3]" in refused(images, labels, ["Latin"])
        assert "expected an integer or a string as a group, got None" in refused(images, labels, {"a": "x", "b": None})


class TestSameAsFolders:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        for index, name in enumerate(CLASSES):
            (tmp_path / name).mkdir()
            for image in range(4):
                drawn = pixels(1, 20 + image, 24 - index, 3, seed=10 * index + image)[0]
                Image.fromarray(drawn).save(tmp_path / name / f"{image}.png")
        return tmp_path

    @pytest.fixture
    def images(self, tree: Path) -> list[Image.Image]:
        return [Image.open(tree / name / f"{image}.png") for name in CLASSES for image in range(4)]

    @pytest.mark.parametrize(
        "options",
        [
            {"image_size": 16},
            {"image_size": (8, 12), "channels": 1, "seed": 5, "invert": True},
            {"image_size": 8, "rotations": True, "split": (0.5, 0.25, 0.25), "min_images": 4},
        ],
    )
    def test_classes_pixels_splits_and_batches(
        self, tree: Path, images: list[Image.Image], options: dict[str, Any]
    ) -> None:
        loaded = tasks.load(tree, **options)
        order = np.random.default_rng(0).permutation(len(images)).tolist()
        order.sort(key=lambda index: index % 4)  # within a class the order stays
        for kind in (lambda image: image, np.asarray, lambda image: torch.from_numpy(np.asarray(image) / 255)):
            given = [kind(images[index]) for index in order]
            assert_same(tasks.from_arrays(given, [LABELS[index] for index in order], **options), loaded)

    def test_groups_and_mixed_colours(self, tmp_path: Path) -> None:
        given, labels = [], []
        for group, name in [("Greek", "c1"), ("Greek", "c2"), ("Latin", "c1"), ("Latin", "c9")]:
            (tmp_path / group / name).mkdir(parents=True)
            for image in range(2):
                drawn = pixels(1, 9, 7, *[3] * (image and group == "Latin"), seed=len(given))[0]
                Image.fromarray(drawn).save(tmp_path / group / name / f"{image}.png")
                given.append(drawn)
                labels.append(f"{group}/{name}")
        groups = {label: label.split("/")[0] for label in labels}
        loaded = tasks.load(tmp_path, image_size=6)
        assert loaded.image_shape == (3, 6, 6)
        assert_same(tasks.from_arrays(given, labels, groups, image_size=6), loaded)

    def test_a_split_of_folders_fits(self, tree: Path, images: list[Image.Image]) -> None:
        loaded = tasks.load(tree, image_size=8, seed=3)
        assert loaded.sha256 is None and "sha256" not in loaded.split_record()
        assert_same(tasks.from_arrays(images, LABELS, image_size=8, split=loaded.split_record(), seed=3), loaded)

    def test_a_data_set_of_torchvision(self, tree: Path, images: list[Image.Image]) -> None:
        """Items are (PIL image, int), as those of ImageFolder."""
        numbers = [CLASSES.index(label) for label in LABELS]
        folder = Standin(list(zip(images, numbers, strict=True)), classes=list(CLASSES), targets=numbers)
        loaded = tasks.load(tree, image_size=8)
        own = tasks.from_dataset(folder, image_size=8)
        assert own.name == "Standin"
        assert_same(own, loaded)
        subset = tasks.from_dataset(Subset(Subset(folder, range(12)), [0, 4, 11]), image_size=8, **EVERYTHING)
        assert subset.train.classes == ("cat", "dog", "emu")

    def test_a_data_set_of_hugging_face(self, tree: Path, images: list[Image.Image]) -> None:
        """A datasets.Dataset: items are dicts, `.features[column].names` of a ClassLabel."""
        features = {"img": SimpleNamespace(), "fine_label": SimpleNamespace(names=list(CLASSES))}
        columns = [
            {"img": image, "fine_label": CLASSES.index(label), "zoo": label[0] < "e"}
            for image, label in zip(images, LABELS, strict=True)
        ]
        table = Standin(columns, features=features)
        loaded = tasks.load(tree, image_size=8)
        assert_same(tasks.from_dataset(table, image_column="img", label_column="fine_label", image_size=8), loaded)
        said = refused_dataset(table)
        assert "cannot read item 0: expected a column 'image', found img, fine_label, zoo: pass image_column" in said
        said = refused_dataset(table, image_column="img", label_column="label")
        assert "expected a column 'label'" in said and "pass label_column" in said


class Standin:
    """Map-style data set over a list, with attributes of a library's; counts its readings."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        self.read: list[int] = []
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


def standin(count: int = 6, **attributes: Any) -> Standin:
    return Standin([(image, index % 3) for index, image in enumerate(pixels(count, 4, 4))], **attributes)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield pixels(1, 4, 4)[0], 0


class TestDatasets:
    def test_tensors_lists_and_items_of_more_than_two(self) -> None:
        given, labels = pixels(6, 3, 4, 4), torch.arange(6) % 3
        expected = tasks.from_arrays(given, labels, **EVERYTHING)
        floats = TensorDataset(to_float(torch.from_numpy(given)), labels)
        pairs = list(zip(given, labels, strict=True))
        triples = [[image, label, "more"] for image, label in pairs]
        for dataset in (floats, pairs, triples):
            own = tasks.from_dataset(dataset, **EVERYTHING)
            assert_same(own, expected)
            assert own.sha256 == expected.sha256

    def test_items_are_read_once_in_order(self) -> None:
        dataset = standin()
        tasks.from_dataset(dataset, image_size=8, channels=3)
        assert dataset.read == list(range(6))

    def test_progress_is_logged(self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        caplog.set_level(logging.INFO)
        tasks.from_dataset(standin())
        assert not caplog.messages  # too quick for any
        monkeypatch.setattr(arrays, "time", SimpleNamespace(monotonic=iter(range(0, 100, 4)).__next__))
        tasks.from_dataset(standin(), name="mine")
        assert caplog.messages == ["mine: read 2 of 6 images", "mine: read 5 of 6 images"]

    def test_names_of_classes(self, caplog: pytest.LogCaptureFixture) -> None:
        assert tasks.from_dataset(standin(classes=["c", "b", "a"]), **EVERYTHING).train.classes == ("a", "b", "c")
        changed = standin(classes=["c", "b", "a"], target_transform=abs)
        assert tasks.from_dataset(changed, **EVERYTHING).train.classes == ("0", "1", "2")
        assert tasks.from_dataset(standin(classes=None), **EVERYTHING).train.classes == ("0", "1", "2")
        assert not caplog.messages
        crane = standin(classes=["crane", "crane", "wren"])  # ImageNet has two
        assert tasks.from_dataset(crane, **EVERYTHING).train.classes == ("0", "1", "2")
        assert "no distinct strings; labels name the classes" in caplog.text
        assert "item 2 has the label 2, but there are 2 names" in refused_dataset(standin(classes=["a", "b"]))

    def test_groups(self) -> None:
        columns = [
            {"image": image, "label": "abc"[index % 3], "script": "xxy"[index % 3]}
            for index, image in enumerate(pixels(6, 4, 4))
        ]
        assert tasks.from_dataset(columns, group_column="script", **EVERYTHING).train.groups == ("x", "x", "y")
        named = standin(classes=["a", "b", "c"])
        mapped = tasks.from_dataset(named, {"a": "x", "b": "x", "c": "y"}, **EVERYTHING)
        assert mapped.train.groups == ("x", "x", "y")
        assert "expected groups or group_column, got both" in refused_dataset(columns, groups={}, group_column="script")
        assert "found image, label, script: pass group_column" in refused_dataset(columns, group_column="Script")
        assert "mapping with the column 'script'" in refused_dataset(standin(), group_column="script")

    @pytest.mark.parametrize(
        ("item", "message"),
        [
            (OSError("truncated\nfile"), "Standin: cannot read item 6: OSError: truncated file"),
            ((np.zeros((4, 4)),), "cannot read item 6: expected (image, label) or a mapping of columns"),
            (np.zeros((4, 4)), "got a value of type ndarray"),
            ((np.zeros((4, 4), np.uint8), 1.5), "cannot read item 6: expected an integer or a string as a label"),
            ((np.zeros((4, 4), np.uint8), "1"), "labels must be all integers or all strings"),
            (("a.png", 1), "cannot use item 6: expected an array, a tensor or a PIL image, got a value of type str"),
            ((np.zeros((5, 4), np.uint8), 1), "but item 6 of Standin is 5 x 4 (height x width): give an image_size"),
        ],
    )
    def test_refused_items(self, item: Any, message: str) -> None:
        dataset = standin()
        dataset.items.append(item)
        assert message in refused_dataset(dataset)

    def test_refused_data_sets(self) -> None:
        assert "a mapping of train, test: pass one of them" in refused_dataset({"train": standin(), "test": standin()})
        assert "pass its .dataset" in refused_dataset(DataLoader(standin()))  # type: ignore[arg-type]
        assert "expected a map-style data set" in refused_dataset(Stream())
        assert "list holds no images" in refused_dataset([])


class TestIdentity:
    def test_a_record_fits_the_same_data_only(self) -> None:
        images, labels = pixels(24, 8, 8), LABELS
        first = tasks.from_arrays(images, labels, seed=3)
        record = json.loads(json.dumps(first.split_record()))
        assert record["data"] == "arrays" and record["sha256"] == first.sha256
        again = tasks.from_arrays(list(images), labels, seed=3, split=record)
        assert_same(again, first)
        assert again.split_record() == record
        changed = images.copy()
        changed[5, 0, 3] ^= 1
        others: list[tuple[Any, Any, dict[str, Any]]] = [
            (changed, labels, {}),
            (images[::-1], labels, {}),
            (images, labels, {"invert": True}),
            (images, labels, {"image_size": 4}),
            (images, labels, {"rotations": True}),
            (images, labels, {"groups": dict.fromkeys(CLASSES, "one")}),
            (images, [*labels[:-1], "cat"], {}),
        ]
        for other, names, options in others:
            said = refused(other, names, split=record, **options)
            assert "the split is the record of data with sha256" in said and record["sha256"][:12] in said
        parts = {part: record[part] for part in ("train", "validation", "test")}
        assert tasks.from_arrays(changed, labels, split=parts).train.classes == first.train.classes

    def test_classes_left_out_are_counted(self, caplog: pytest.LogCaptureFixture) -> None:
        own = tasks.from_arrays(pixels(5, 2, 2), [0, 0, 1, 1, 2], min_images=2, **EVERYTHING)
        assert own.train.classes == ("0", "1")
        assert caplog.messages == ["arrays: left out 1 class with fewer than 2 images (2)"]
        assert "too few for the split" in refused(pixels(2, 2, 2), [0, 1])
