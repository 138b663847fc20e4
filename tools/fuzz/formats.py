"""Formats that the package reads: valid files to begin from, and the functions that read them."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from metagan_fast import checkpoint, tasks
from metagan_fast._utils import json_text
from metagan_fast.cli import runs
from metagan_fast.metrics import Episodes, Evaluation
from metagan_fast.metrics.results import FIGURES
from metagan_fast.tasks.data_sets import archives
from metagan_fast.training import config, pretrained
from metagan_fast.training.report import tables
from metagan_fast.training.report.curves import read_series
from metagan_fast.training.run_folder import RunFolder

_ALL = (1.0, 0.0, 0.0)
_STEP = 4


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        file: its path below a folder that `prepare` has filled.
        seeds: valid files.
        read: reads the file, as users do.
        prepare: writes what else the folder needs.
    """

    file: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda folder: None

    def path(self, folder: Path) -> Path:
        """Prepare a folder and return the file's place in it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.prepare(folder)
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _idx(array: np.ndarray[Any, Any]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _pixels() -> np.ndarray[Any, Any]:
    return np.arange(4 * 5 * 5, dtype=np.uint8).reshape(4, 5, 5)


def _write_labels(folder: Path) -> None:
    (folder / "labels").write_bytes(_idx(np.array([0, 1, 0, 1], np.uint8)))


def _read_idx(path: Path) -> None:
    tasks.load(path, labels=path.parent / "labels", split=_ALL)


def _npz() -> list[bytes]:
    labels, names = [0, 1, 0, 1], np.array(["a", "b", "a", "b"])
    variants: list[dict[str, Any]] = [
        {"images": _pixels(), "labels": labels},
        {"images": _pixels(), "labels": names, "groups": np.array(["g"] * 4), "parts": np.array(["train"] * 4)},
    ]
    files = []
    for arrays in variants:
        for save in (np.savez, np.savez_compressed):
            buffer = io.BytesIO()
            save(buffer, **arrays)
            files.append(buffer.getvalue())
    return files


def _images() -> list[bytes]:
    files = []
    colours = Image.fromarray(np.arange(7 * 9 * 3, dtype=np.uint8).reshape(7, 9, 3))
    for mode in ("RGB", "L", "RGBA", "P", "1", "I;16"):
        image = colours.convert("I").convert("I;16") if mode == "I;16" else colours.convert(mode)
        for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"):
            buffer = io.BytesIO()
            try:
                image.save(buffer, kind)
            except (OSError, ValueError, KeyError):  # a kind without this mode
                continue
            files.append(buffer.getvalue())
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):  # animations
        buffer = io.BytesIO()
        colours.save(buffer, kind, save_all=True, append_images=[colours.rotate(90), colours.rotate(180)])
        files.append(buffer.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    colours.save(buffer, "JPEG", exif=exif)
    tiff = io.BytesIO()
    colours.save(tiff, "TIFF", compression="tiff_lzw")
    return [*files, buffer.getvalue(), tiff.getvalue()]


def _checkpoints() -> list[bytes]:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b.bfloat16": torch.ones(2).bfloat16(), "step": torch.tensor(3)}
    metadata = {"seed": 1, "names": ["a", "ü"], "rate": 0.1}
    unchecked = safetensors.torch.save(tensors, {"metagan_fast": json.dumps({"format": 1, "metadata": metadata})})
    return [checkpoint.to_bytes(tensors, metadata), unchecked, checkpoint.to_bytes({}, {})]


def _settings() -> dict[str, Any]:
    changes = {
        "model": {"name": "mlp", "hidden": [8]},
        "latent_dim": 4,
        "data": {"source": "digits"},
        "inner": {"steps": 1},
    }
    return config.resolve(config.merge(config.from_preset("quick"), changes))


def _records() -> list[bytes]:
    record = {
        "settings": _settings(),
        "image_shape": [1, 8, 8],
        "split": {"train": ["0"]},
        "versions": config.versions(),
    }
    return [json.dumps(record, indent=1).encode(), (pretrained.folder("glyphs") / "config.json").read_bytes()]


def _write_checkpoint(folder: Path) -> None:
    learner = config.build_learner(_settings(), [1, 8, 8])
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    RunFolder(run).save(_STEP, *learner.state(), keep=1)


def _read_run(path: Path) -> None:
    _, record, learner = runs.open_run(path.parent)
    tables.settings(record["settings"])
    assert learner.step == 0


def _metrics() -> list[bytes]:
    lines = [{"step": n, "loss_generator": 0.1 * n, "validation_kid": -1e-3, "penalty": None} for n in range(1, 6)]
    return ["".join(json.dumps(line) + "\n" for line in lines).encode(), b""]


def _read_metrics(path: Path) -> None:
    folder = RunFolder(path.parent)
    series = read_series(folder.read_metrics())
    tables.curves(series)
    tables.metrics(series)
    folder.forget_metrics_after(_STEP)


def _evaluations() -> list[bytes]:
    figures = {"classifier": {name: {"mean": 0.5, "low": 0.4, "high": 0.6} for name in FIGURES}}
    rows = [
        {
            "method": method,
            "shots": shots,
            "steps": steps,
            "figures": figures,
            "kid_per_class": {"classifier": [0.5, 0.1]},
        }
        for method, steps in (("adapted", 1), ("adapted", 5), ("copies", None))
        for shots in (4, 8)
    ]
    difference = {"classifier": {"copies": {"mean": -0.1, "low": -0.2, "high": 0.0}}}
    content = {
        "classes": ["a", "b"],
        "rows": rows,
        "differences": difference,
        "settings": {"samples": 16, "draws": 3},
        "split": "test",
        "meta_step": _STEP,
    }
    return [json.dumps(content).encode()]


def _read_evaluation(path: Path) -> None:
    content = RunFolder(path.parent).read_evaluation()
    tables.evaluation(content, _STEP, path.parent)
    found = Evaluation.from_dict(content)
    found.table()
    found.class_table()


def _episodes() -> list[bytes]:
    divisions = [[[0, 1], [2, 3], [4, 5]], [[5, 4], [3, 2], [1, 0]]]
    return [json.dumps({"classes": ["a", "b"], "draws": [divisions, divisions]}).encode()]


def _read_episodes(path: Path) -> None:
    found = Episodes.from_dict(json_text.parse(path.read_bytes()))
    assert found.digest and found.shots >= 0 and len(found.first(1).draws) == 1


def _packages(debian: bool) -> list[bytes]:
    def packed(mode: str, kind: int) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode, format=kind) as tar:  # type: ignore[call-overload]
            for name in ("package/icons.json", "package/" + "n" * 120, "../up", "/absolute"):
                info = tarfile.TarInfo(name)
                info.size = 5
                tar.addfile(info, io.BytesIO(b"hello"))
            link = tarfile.TarInfo("package/link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        return buffer.getvalue()

    files = [packed(f"w:{how}", kind) for how in ("", "gz", "xz") for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    if not debian:
        return files
    entries = []
    for data in files:
        body = b""
        for name, content in (("debian-binary", b"2.0\n"), ("data.tar.xz", data)):
            body += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
            body += b"\n" * (len(content) % 2)
        entries.append(b"!<arch>\n" + body)
    return entries


def _read_package(path: Path) -> None:
    for _ in archives.read_files(path, lambda name: True):
        pass


FORMATS = {
    "idx": Format("images", lambda: [_idx(_pixels())], _read_idx, _write_labels),
    "gz": Format("images.gz", lambda: [gzip.compress(_idx(_pixels()), mtime=0)], _read_idx, _write_labels),
    "npz": Format("a.npz", _npz, lambda path: tasks.load(path, split=_ALL)),
    "image": Format("a/1.png", _images, lambda path: tasks.load(path.parents[1], split=_ALL)),
    "checkpoint": Format("a.safetensors", _checkpoints, checkpoint.read),
    "config": Format("run/config.json", _records, _read_run, _write_checkpoint),
    "metrics": Format("metrics.jsonl", _metrics, _read_metrics),
    "evaluation": Format("evaluation.json", _evaluations, _read_evaluation),
    "episodes": Format("episodes.json", _episodes, _read_episodes),
    "tgz": Format("a.tgz", lambda: _packages(debian=False), _read_package),
    "deb": Format("a.deb", lambda: _packages(debian=True), _read_package),
}
"""Formats by name."""
