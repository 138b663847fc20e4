"""The stand-in for FIGR's data sets."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from figr_cases import drawing, write_figr8
from metagan_fast.dropin import figr
from support import assert_close

pytestmark = pytest.mark.usefixtures("own_folder")


def write_omniglot() -> None:
    for number in range(24):
        folder = Path(f"data/omniglot-py/images_background/Alphabet{number % 3}/character{number // 3:02}")
        folder.mkdir(parents=True)
        for i in range(4):
            drawing(100 * number + i).convert("1").save(folder / f"{number:04}_{i}.png")


def write_mnist(folder: str = "data/MNIST/raw", compressed: bool = False) -> None:
    Path(folder).mkdir(parents=True)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 5)
    images = np.stack([np.asarray(drawing(number, 28, 28)) for number in range(50)])
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        content = header + array.tobytes()
        path = Path(folder, f"train-{name}-ubyte")
        if compressed:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
        else:
            path.write_bytes(content)


def test_figr8_holds_out_fifty_classes_by_the_seed() -> None:
    write_figr8(60)
    env, again, other = (figr.FIGR8MetaEnv(16, 8, seed=seed) for seed in (1, 1, 2))
    assert len(env.validation_task) == 50 and len(env.training_task) == 10
    assert not env.validation_task & env.training_task and env.all_tasks == env.validation_task | env.training_task
    assert env.validation_task == again.validation_task != other.validation_task
    for name in ("validation_task", "training_task"):
        assert pickle.loads(Path(f"{name}.pkl").read_bytes()) == getattr(other, name)
    kept = figr.FIGR8MetaEnv(16, 8, seed=3, validation_task=env.validation_task)
    assert kept.training_task == env.training_task


def test_images_are_figrs() -> None:
    write_figr8()
    env = figr.FIGR8MetaEnv(16, 8)
    batch, task = env.sample_training_task(4)
    files = sorted(Path("data/FIGR-8/Data", task).iterdir())
    pixels = [np.asarray(Image.open(file).resize((8, 16), Image.Resampling.BILINEAR)) for file in files]
    expected = torch.tensor(np.stack(pixels)).float().div(255).unsqueeze(1)
    assert batch.shape == (4, 1, 16, 8) and batch.dtype == torch.float32
    order = [(expected - image).flatten(1).norm(dim=1).argmin().item() for image in batch]
    assert sorted(order) == [0, 1, 2, 3]
    assert_close(batch, expected[order], "float32-rounding")


def test_the_sets_that_figr_wrote_stay(caplog: pytest.LogCaptureFixture) -> None:
    """They are the only record of the classes that FIGR's run held out."""
    write_figr8(60)
    theirs = pickle.dumps({"icon 00"})
    Path("validation_task.pkl").write_bytes(theirs)
    figr.FIGR8MetaEnv(16, 8)
    assert Path("validation_task.pkl").read_bytes() == theirs and not Path("training_task.pkl").exists()
    assert "validation_task.pkl exists and `metagan_fast.dropin.figr` did not write it" in caplog.text


def test_omniglot_holds_out_twenty_characters_across_alphabets() -> None:
    write_omniglot()
    env = figr.OmniglotMetaEnv(16, 8)
    assert len(env.validation_task) == 20 and len(env.training_task) == 4
    drawn = {env.sample_training_task(2)[1] for _ in range(40)}
    assert drawn == env.training_task
    assert {env.sample_validation_task(2)[1] for _ in range(20)} <= env.validation_task


@pytest.mark.parametrize("write", [write_mnist, lambda: write_mnist("data/raw", True)], ids=["torchvision", "old, gz"])
def test_mnist_holds_out_nine(write: Callable[[], None]) -> None:
    write()
    env = figr.MnistMetaEnv()
    assert env.validation_task == {"9"} and env.training_task == set("012345678")
    batch, task = env.sample_validation_task(5)
    assert task == "9" and batch.shape == (5, 1, 28, 28)
    expected = torch.tensor(np.stack([np.asarray(drawing(number, 28, 28)) for number in range(45, 50)])) / 255
    assert_close(batch.flatten(1).sum(1).sort()[0], expected.flatten(1).sum(1).sort()[0], "float32-rounding")


def test_draws_go_on_where_they_stood() -> None:
    write_figr8(70)
    env = figr.FIGR8MetaEnv(16, 8)
    drawn = [env.sample_training_task(2) for _ in range(6)]
    assert len({task for _, task in drawn}) > 1
    resumed = figr.FIGR8MetaEnv(16, 8)
    for _ in range(3):
        resumed.sample_training_task(2)
    state, resumed = resumed.state(), figr.FIGR8MetaEnv(16, 8)
    resumed.load_state(state)
    images, task = resumed.sample_training_task(2)
    assert task == drawn[3][1] and torch.equal(images, drawn[3][0])
    with pytest.raises(ValueError, match="held out other classes"):
        figr.FIGR8MetaEnv(16, 8, seed=1).load_state(state)


@pytest.mark.parametrize(
    ("env", "place"),
    [
        (figr.MnistMetaEnv, r"data/MNIST/raw/train-images-idx3-ubyte .*download=True"),
        (figr.OmniglotMetaEnv, r"data/omniglot-py/images_background; .*images_background.zip"),
        (figr.FIGR8MetaEnv, r"data/FIGR-8/Data; download FIGR-8 from github.com/marcdemers/FIGR-8"),
    ],
)
def test_missing_data_say_what_to_do(env: type[figr.MetaEnv], place: str) -> None:
    with pytest.raises(FileNotFoundError, match=place):
        env(16, 8)


def test_data_that_are_too_few_say_so() -> None:
    write_figr8(50, images=3)
    with pytest.raises(ValueError, match="50 are held out for validation: none is left"):
        figr.FIGR8MetaEnv(16, 8)
    env = figr.FIGR8MetaEnv(16, 8, validation_task={"icon 00"})
    with pytest.raises(ValueError, match=r"class 'icon 01' has 3 images, but batch_size=4; lower --batch_size"):
        env.sample_training_task(4)
    with pytest.raises(ValueError, match="'no icon', which is no class"):
        figr.FIGR8MetaEnv(16, 8, validation_task={"no icon"})
