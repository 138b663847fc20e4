"""Export of an adapted generator to a file that other programs run: torch.export's `.pt2`, or ONNX."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import checkpoint

METADATA_FILE = "metadata.json"
"""Name under which a `.pt2` file holds its metadata, for `extra_files` of `torch.export.load`."""

_EXAMPLES = 2  # latents of the trace; a single one would be taken for the only size
_NOISY = "torch.onnx._internal.exporter._registration"  # logs that torchvision is not installed


class Format(NamedTuple):
    """File format: the libraries that write it, and the content for a module, its latents and the metadata."""

    needs: tuple[str, ...]
    content: Callable[[nn.Module, torch.Tensor, Mapping[str, Any]], bytes]


def _pt2(module: nn.Module, latents: torch.Tensor, metadata: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    program = torch.export.export(module, (latents,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(metadata)})
    return file.getvalue()


def _onnx(module: nn.Module, latents: torch.Tensor, metadata: Mapping[str, Any]) -> bytes:
    program = torch.onnx.export(
        module,
        (latents,),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["latents"],
        output_names=["images"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    for name, value in metadata.items():
        model.metadata_props.add(key=name, value=json.dumps(value))
    content: bytes = model.SerializeToString()
    return content


FORMATS: Mapping[str, Format] = {".pt2": Format((), _pt2), ".onnx": Format(("onnx", "onnxscript"), _onnx)}
"""Formats by the ending of the file's name."""


def check(path: str | os.PathLike[str]) -> Format:
    """Return a file's format.

    Raises:
        ValueError: another ending, or a library is missing; the message says what to do.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"expected a file whose name ends in {' or '.join(FORMATS)} to export to, got {path}")
    missing = [name for name in FORMATS[suffix].needs if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"writing {suffix} needs the extra `onnx`, and {' and '.join(missing)} is not installed: "
            "pip install 'metagan_fast[onnx]', or export to .pt2"
        )
    return FORMATS[suffix]


def export(generator: nn.Module, latent_dim: int, path: str | os.PathLike[str]) -> None:
    """Write a generator; see `AdaptedGAN.export`."""
    made = check(path)
    module = _portable(generator)
    like = next(module.parameters())
    latents = torch.zeros(_EXAMPLES, latent_dim, dtype=like.dtype)
    with _quiet(), torch.random.fork_rng([]):
        with torch.no_grad():
            image_shape = list(module(latents).shape[1:])
        metadata = {"library": "metagan_fast", "latent_dim": latent_dim, "image_shape": image_shape, "range": [-1, 1]}
        try:
            content = made.content(module, latents, metadata)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"cannot export {type(generator).__name__} to {path}: {reason}") from error
    checkpoint.write_bytes(path, content)


def _portable(generator: nn.Module) -> nn.Module:
    """Return a copy on the CPU that normalises by the statistics of the batch, as `AdaptedGAN.sample` does."""
    module = copy.deepcopy(generator).cpu().train().requires_grad_(False)
    for each in module.modules():
        if isinstance(each, _BatchNorm):  # keeps no statistics, which an exported program would write
            each.track_running_stats = False
            each.running_mean = each.running_var = each.num_batches_tracked = None
    return module


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop remarks of the exporters on training mode, on their own code and on libraries that are not needed."""
    noisy = logging.getLogger(_NOISY)
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        noisy.setLevel(level)
