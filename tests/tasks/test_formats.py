"""Loading users' images: class folders, IDX files, .npz files; conversions; errors."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metagan_fast import tasks
from metagan_fast.tasks import folders
from metagan_fast.tasks.images import convert

EVERYTHING = {"split": (1.0, 0.0, 0.0)}


def write_image(path: Path, value: int = 0, size: tuple[int, int] = (4, 4), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], value).save(path)


def write_idx(path: Path, array: np.ndarray[Any, Any]) -> None:
    data = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def numbered(count: int, *shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Make images; image n is filled with the value n."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8).reshape(-1, *[1] * len(shape)), (count, *shape)).copy()


def values(distribution: tasks.TaskDistribution, name: str) -> list[int]:
    images = distribution.images(name)
    assert (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


def refusal(place: object, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        tasks.load(place, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestFolders:
    def test_folders_in_one_level_are_classes(self, tmp_path: Path) -> None:
        for index, name in enumerate(["cat", "dog", "emu"]):
            for image in range(3):
                write_image(tmp_path / name / f"{image}.png", 10 * index + image)
        (tmp_path / "cat" / "notes.txt").write_text("no image")
        (tmp_path / ".hidden").mkdir()
        train = tasks.load(tmp_path, **EVERYTHING).train
        assert train.classes == ("cat", "dog", "emu")
        assert train.groups is None
        assert values(train, "dog") == [10, 11, 12]

    def test_two_levels_are_groups_of_classes(self, tmp_path: Path) -> None:
        for group, name in [("Greek", "c1"), ("Greek", "c2"), ("Latin", "c1")]:
            write_image(tmp_path / group / name / "a.png")
        train = tasks.load(tmp_path, **EVERYTHING).train
        assert train.classes == ("Greek/c1", "Greek/c2", "Latin/c1")
        assert train.groups == ("Greek", "Greek", "Latin")

    def test_grey_and_colour(self, tmp_path: Path) -> None:
        write_image(tmp_path / "a" / "1.png", 7)
        write_image(tmp_path / "b" / "1.png", 9)
        assert tasks.load(tmp_path, **EVERYTHING).image_shape == (1, 4, 4)
        Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "b" / "2.png")
        both = tasks.load(tmp_path, **EVERYTHING).train
        assert both.image_shape == (3, 4, 4)
        assert both.images("b")[:, :, 0, 0].tolist() == [[9, 9, 9], [255, 0, 0]]
        grey = tasks.load(tmp_path, channels=1, **EVERYTHING).train
        assert values(grey, "b") == [9, 76]  # the luma of red

    def test_transparency_is_white_and_16_bits_become_8(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a" / "1.png")
        Image.fromarray(np.full((4, 4), 0x8001, np.uint16)).save(tmp_path / "a" / "2.png")
        assert values(tasks.load(tmp_path, channels=1, **EVERYTHING).train, "a") == [255, 128]

    def test_sixteen_bit_graymaps(self, tmp_path: Path) -> None:
        """Pillow widens them to 32 bits, as its versions before 11 do with PNG; 12 bits are stretched to 16."""
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "1.pgm").write_bytes(b"P5 2 2 65535\n" + struct.pack(">4H", *[0x8001] * 4))
        (tmp_path / "a" / "2.pgm").write_bytes(b"P5 2 2 4095\n" + struct.pack(">4H", *[4095] * 4))
        loaded = tasks.load(tmp_path, **EVERYTHING)
        assert loaded.image_shape == (1, 2, 2)
        assert values(loaded.train, "a") == [128, 255]
        Image.new("I", (2, 2), 70000).save(tmp_path / "a" / "3.tif")
        assert f"cannot read the image {tmp_path / 'a' / '3.tif'}: its pixels have 32 bits" in refusal(tmp_path)

    def test_lab_becomes_grey_and_colour(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        Image.new("LAB", (4, 4), (128, 128, 128)).save(tmp_path / "a" / "1.tif")  # L* = 50 is 119 in sRGB
        for channels in (1, 3):
            images = tasks.load(tmp_path, channels=channels, **EVERYTHING).train.images("a")
            assert images.shape == (1, channels, 4, 4)
            assert (images.int() - 119).abs().max() <= 1

    def test_an_image_is_turned_though_its_exif_cannot_be_written_again(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        entries = (0x0103, 4, 70000), (0x0112, 3, 6)  # a compression beyond its 16 bits; turned by 90 degrees
        body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
        exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)
        upright = np.zeros((16, 8), np.uint8)
        upright[:8] = 255
        lying = Image.fromarray(np.rot90(upright))  # counter-clockwise, as 6 says: turn it clockwise to view it
        lying.save(tmp_path / "a" / "1.jpg", exif=exif, quality=100)
        images = tasks.load(tmp_path, **EVERYTHING).train.images("a")
        assert images.shape == (1, 1, 16, 8)
        assert (images[0, 0].int().numpy() - upright).__abs__().max() <= 2

    def test_whatever_stops_an_image_names_it(self, tmp_path: Path) -> None:
        write_image(tmp_path / "1.png")

        def fail(image: Image.Image, size: tuple[int, int]) -> Image.Image:
            raise struct.error("argument out of range")

        with pytest.raises(ValueError, match=rf"cannot read the image {tmp_path}/1\.png: argument out of range"):
            folders.read_files([tmp_path / "1.png"], (2, 2), 1, fail)

    def test_resizing_crops_and_is_antialiased(self, tmp_path: Path) -> None:
        stripes = np.zeros((64, 128), np.uint8)
        stripes[:, ::2] = 254
        stripes[:, :32] = stripes[:, 96:] = 255  # cropped away
        (tmp_path / "a").mkdir()
        Image.fromarray(stripes).save(tmp_path / "a" / "1.png")
        images = tasks.load(tmp_path, image_size=8, **EVERYTHING).train.images("a")
        assert images.shape == (1, 1, 8, 8)
        assert (images[..., 1:-1].int() - 127).abs().max() <= 2  # no moiré, nothing of the white margin

    def test_errors_name_the_file(self, tmp_path: Path) -> None:
        assert f"folder for each class in {tmp_path}, found nothing" in refusal(tmp_path)
        write_image(tmp_path / "a" / "1.png")
        assert f"folder for each class in {tmp_path / 'a'}, found images" in refusal(tmp_path / "a")
        (tmp_path / "b").mkdir()
        assert f"class folder {tmp_path / 'b'} holds no images" in refusal(tmp_path)
        (tmp_path / "b" / "1.png").write_bytes(b"not an image")
        assert str(tmp_path / "b" / "1.png") in refusal(tmp_path)
        whole = (tmp_path / "a" / "1.png").read_bytes()
        (tmp_path / "b" / "1.png").write_bytes(whole[: len(whole) // 2 + 8])
        assert str(tmp_path / "b" / "1.png") in refusal(tmp_path)
        write_image(tmp_path / "b" / "1.png", size=(5, 4))
        message = refusal(tmp_path)
        assert "1.png is 4 x 4 but" in message and "1.png is 5 x 4" in message and "image_size" in message
        write_image(tmp_path / "b" / "below" / "1.png")
        assert "holds images (1.png) and folders (below)" in refusal(tmp_path)

    def test_min_images_leaves_small_classes_out(self, tmp_path: Path) -> None:
        for name, count in [("few", 1), ("many", 3)]:
            for image in range(count):
                write_image(tmp_path / name / f"{image}.png")
        assert tasks.load(tmp_path, min_images=3, **EVERYTHING).train.classes == ("many",)
        assert "no class has min_images=4 images; the largest has 3" in refusal(tmp_path, min_images=4)
        with pytest.raises(ValueError, match=f"{tmp_path.name}.*'few' has 1 image"):
            tasks.load(tmp_path, **EVERYTHING).train.sample(shots=2)


class TestIdx:
    def test_a_folder_of_pairs_compressed_or_not(self, tmp_path: Path) -> None:
        write_idx(tmp_path / "train-images-idx3-ubyte.gz", numbered(4, 2, 3))
        write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.array([7, 0, 7, 3], np.uint8))
        write_idx(tmp_path / "t10k-images-idx3-ubyte", numbered(2, 2, 3))
        write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([3, 3], np.uint8))
        train = tasks.load(tmp_path, **EVERYTHING).train
        assert train.classes == ("0", "3", "7")
        assert train.image_shape == (1, 2, 3)
        assert values(train, "7") == [0, 2]
        assert values(train, "3") == [0, 1, 3]  # the files in the order of their names

    def test_a_file_beside_its_unpacked_twin_is_read_once(self, tmp_path: Path) -> None:
        """The folder is as torchvision leaves `MNIST/raw`; unpacked files may have a dot in their name."""
        for suffix in ("", ".gz"):
            write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", numbered(4, 2, 3))
            write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", np.array([7, 0, 7, 3], np.uint8))
        write_idx(tmp_path / "t10k-images.idx3-ubyte", numbered(2, 2, 3))
        write_idx(tmp_path / "t10k-labels.idx1-ubyte", np.array([3, 3], np.uint8))
        write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", numbered(2, 2, 3))
        train = tasks.load(tmp_path, **EVERYTHING).train
        assert train.counts == (1, 3, 2)
        assert values(train, "3") == [0, 1, 3]

    def test_a_file_that_holds_nothing_is_counted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_idx(tmp_path / "t10k-images-idx3-ubyte", numbered(2, 2, 3))
        write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([3, 3], np.uint8))
        (tmp_path / "train-images-idx3-ubyte").touch()  # an interrupted download
        assert tasks.load(tmp_path, **EVERYTHING).train.counts == (2,)
        assert caplog.messages == [f"{tmp_path}: left out 1 file of another kind (train-images-idx3-ubyte)"]

    def test_sets_with_labels_of_their_own_are_never_merged(self, tmp_path: Path) -> None:
        """EMNIST's label 1 is "1" in `digits` and "A" in `letters`."""
        for index, name in enumerate(["emnist-digits", "emnist-letters", "emnist-mnist", "mnist"]):
            for part in ("train", "test"):
                write_idx(tmp_path / f"{name}-{part}-images-idx3-ubyte", numbered(2, 2, 2) + np.uint8(10 * index))
                write_idx(tmp_path / f"{name}-{part}-labels-idx1-ubyte.gz", np.array([1, 2], np.uint8))
        said = refusal(tmp_path)
        assert "of emnist-digits, emnist-letters, emnist-mnist or mnist" in said and "subset='emnist-digits'" in said
        for subset in ("letters", "emnist-letters"):
            train = tasks.load(tmp_path, subset=subset, **EVERYTHING).train
            assert values(train, "1") == [10, 10]
        assert values(tasks.load(tmp_path, subset="mnist", **EVERYTHING).train, "1") == [30, 30]
        expected = "expected subset to be emnist-digits, emnist-letters, emnist-mnist or mnist, got 'byclass'"
        assert expected in refusal(tmp_path, subset="byclass")
        one = tmp_path / "emnist-letters-test-images-idx3-ubyte"
        assert values(tasks.load(one, **EVERYTHING).train, "2") == [11]

    def test_a_file_by_name(self, tmp_path: Path) -> None:
        write_idx(tmp_path / "pictures", numbered(2, 2, 2))
        write_idx(tmp_path / "names.gz", np.array([1, 2], np.uint8))
        train = tasks.load(tmp_path / "pictures", labels=tmp_path / "names.gz", **EVERYTHING).train
        assert train.classes == ("1", "2")
        assert "labels=FILE" in refusal(tmp_path / "pictures")

    def test_errors_name_the_file(self, tmp_path: Path) -> None:
        images, labels = tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "train-labels-idx1-ubyte.gz"
        write_idx(images, numbered(4, 2, 2))
        assert str(labels) in refusal(tmp_path)
        write_idx(labels, np.zeros(3, np.uint8))
        assert "has 4 images" in refusal(tmp_path) and "has 3 labels" in refusal(tmp_path)
        labels.write_bytes(labels.read_bytes()[:-9])
        assert f"cannot read {labels}" in refusal(tmp_path)
        labels.write_bytes(b"\0\0\x0d\x01\0\0\0\0")
        assert f"{labels} is not an IDX file" in refusal(tmp_path)
        labels.write_bytes(b"\0\0\x08\x01\0\0")
        assert f"{labels} is truncated" in refusal(tmp_path)
        labels.write_bytes(b"\0\0\x08\x01\0\0\0\x04\1\2\3")
        assert f"{labels} is damaged: its header promises 4 bytes, it has 3" in refusal(tmp_path)


class TestNpz:
    @pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (1, 4, 5), (4, 5, 3), (3, 4, 5)])
    def test_layouts(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        np.savez(tmp_path / "a.npz", images=numbered(3, *shape), labels=["x", "y", "x"])
        loaded = tasks.load(tmp_path / "a.npz", **EVERYTHING)
        assert loaded.image_shape == (3 if 3 in shape else 1, 4, 5)
        assert values(loaded.train, "x") == [0, 2]

    def test_groups_keep_equal_labels_apart(self, tmp_path: Path) -> None:
        groups, labels = np.array(["g", "h", "g", "h"]), np.array([10, 10, 2, 10])
        np.savez_compressed(tmp_path / "a.npz", images=numbered(4, 2, 2), labels=labels, groups=groups)
        train = tasks.load(tmp_path / "a.npz", **EVERYTHING).train
        assert train.classes == ("g/2", "g/10", "h/10")
        assert train.groups == ("g", "g", "h")
        assert values(train, "h/10") == [1, 3]

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"x": np.zeros(3)}, "expected the arrays images and labels, found 'x'"),
            (
                {"images": np.zeros((2, 4, 4)), "labels": np.zeros(2, int)},
                "must be uint8 in 0..255, got float64",
            ),
            ({"images": np.zeros((2, 4), np.uint8), "labels": np.zeros(2, int)}, "got [2, 4]"),
            ({"images": numbered(2, 4, 4), "labels": np.zeros(3, int)}, "expected labels of shape [2]"),
            ({"images": numbered(2, 4, 4), "labels": np.zeros(2)}, "integers or strings, got float64"),
            ({"images": numbered(0, 4, 4), "labels": np.zeros(0, int)}, "no images"),
        ],
    )
    def test_refused_arrays(self, tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
        np.savez(tmp_path / "a.npz", **arrays)
        said = refusal(tmp_path / "a.npz")
        assert message in said and "a.npz" in said

    def test_a_corrupt_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        np.savez(path, images=numbered(3, 4, 4), labels=[0, 1, 2])
        path.write_bytes(path.read_bytes()[:200])
        assert f"cannot read {path}" in refusal(path)
        path.write_bytes(b"")
        assert f"cannot read {path}" in refusal(path)


class TestLoad:
    def test_unknown_names_and_paths(self, tmp_path: Path) -> None:
        assert "did you mean 'glyphs'?" in refusal("glyph")
        assert "the names are glyphs, glyphs-latin, digits, system-fonts" in refusal("nothing-like-it")
        assert "no data set or path" in refusal(tmp_path / "absent")
        (tmp_path / "a.csv").write_text("1,2")
        assert f"cannot tell what {tmp_path / 'a.csv'} is" in refusal(tmp_path / "a.csv")
        assert "name too long" in refusal("x" * 5000).lower()

    def test_unknown_options(self) -> None:
        with pytest.raises(TypeError, match="'labels'; it takes no options"):
            tasks.load("digits", labels="x")
        with pytest.raises(TypeError, match="'font'; it takes fonts, characters, min_drawings"):
            tasks.load("system-fonts", font="x")
        assert "channels must be 1 or 3" in refusal("digits", channels=2)
        assert "expected image_size to be at least 1" in refusal("digits", image_size=0)

    def test_conversions(self) -> None:
        plain, other = (tasks.load("digits", **options) for options in ({}, {"invert": True, "channels": 3}))
        assert other.image_shape == (3, 8, 8)
        assert torch.equal(
            255 - other.train.images(plain.train.classes[0])[:, 1:2],
            plain.train.images(plain.train.classes[0]),
        )
        assert tasks.load("digits", image_size=(32, 16)).image_shape == (1, 32, 16)
        red = np.zeros((1, 3, 2, 2), np.uint8)
        red[:, 0] = 255
        assert convert(red, None, 1).tolist() == [[[[76, 76], [76, 76]]]]

    def test_the_split_comes_back_from_its_record(self) -> None:
        first = tasks.load("digits", seed=5)
        again = tasks.load("digits", seed=9, split=first.split_record())
        for part in ("train", "validation", "test"):
            assert getattr(first, part).classes == getattr(again, part).classes
        assert again.split_record() == first.split_record()
        by_hand = tasks.load("digits", seed=9, split={"test": ["3"]}).split_record()
        assert (by_hand["data"], by_hand["seed"], by_hand["shares"]) == ("digits", 9, None)
        assert not torch.equal(first.train.sample().support, again.train.sample().support)
        assert "not among the 10 classes of digits" in refusal("digits", split={"test": ["A"]})

    def test_rotations_stay_in_their_part(self) -> None:
        plain, turned = tasks.load("digits"), tasks.load("digits", rotations=True)
        assert turned.split_record() == plain.split_record()
        for part in ("train", "validation", "test"):
            bases = getattr(plain, part).classes
            assert set(getattr(turned, part).classes) == {f"{c}{t}" for c in bases for t in ("", "@90", "@180", "@270")}
        name = plain.train.classes[2]
        quarter = turned.train.images(f"{name}@90")
        assert torch.equal(quarter, plain.train.images(name).rot90(1, (2, 3)))
        assert torch.equal(turned.train.images(f"{name}@270"), plain.train.images(name).rot90(3, (2, 3)))
        assert "square" in refusal("digits", rotations=True, image_size=(8, 6))


class TestReadImages:
    def test_a_folder_or_files(self, tmp_path: Path) -> None:
        for value in (0, 255):
            write_image(tmp_path / f"{value}.png", value)
        images = tasks.read_images(tmp_path, image_size=2)
        assert images.shape == (2, 1, 2, 2) and images.dtype == torch.float32
        assert images[:, 0, 0, 0].tolist() == [-1, 1]
        assert tasks.read_images([tmp_path / "255.png"], invert=True, channels=3)[:, :, 0, 0].tolist() == [[-1, -1, -1]]

    def test_errors(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f"found no images in {tmp_path}"):
            tasks.read_images(tmp_path)
        with pytest.raises(ValueError, match="channels must be 1 or 3, got 4"):
            tasks.read_images(tmp_path, channels=4)
        with pytest.raises(ValueError, match=r"cannot read .*absent"):
            tasks.read_images(tmp_path / "absent")
