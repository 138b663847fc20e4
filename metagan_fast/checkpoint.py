"""Checkpoint files: named tensors and JSON metadata, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ._utils import coerce

FORMAT_VERSION = 1

# Single metadata key: safetensors writes several in random order, and equal states must give equal bytes.
_KEY = "metagan_fast"


# Errors of code that reads malformed contents; RuntimeError is PyTorch's.
_DAMAGE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class CheckpointError(ValueError):
    """Failure to write or read a checkpoint; the message is one line and names the file."""


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and metadata to one safetensors file, atomically.

    The bytes go to a temporary file beside `path`, reach the disk, and only then take its name, so a crash or
    a full disk leaves the previous file as it was. Equal contents give equal bytes. Needs memory for two more
    copies of the tensors.

    Args:
        path: the file; its folder must exist.
        tensors: any shapes, devices and dtypes; stored contiguous, aliases as separate tensors.
        metadata: anything `json` can write, with string keys.

    Raises:
        CheckpointError: if the folder is missing or not writable, or the disk is full.
        TypeError: if `metadata` is not JSON.
    """
    write_bytes(path, to_bytes(tensors, metadata))


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """Return the content of the file that `write` writes."""
    header = json.dumps({"format": FORMAT_VERSION, "metadata": dict(metadata)}, sort_keys=True)
    copies = {name: _snapshot(tensor) for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, {_KEY: header})


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file that `write` wrote.

    Returns:
        The tensors, on the CPU, and the metadata.

    Raises:
        CheckpointError: if the file is missing, truncated, of another program or of a newer version.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_KEY)
            if header is None:
                raise CheckpointError(f"{path} is a safetensors file, but not a metagan_fast checkpoint")
            document = json.loads(header)
            version = coerce.count("format", document["format"], least=1)
            if version > FORMAT_VERSION:
                raise CheckpointError(
                    f"{path} has checkpoint format {version}, this version reads up to {FORMAT_VERSION}; "
                    "upgrade metagan_fast"
                )
            metadata = document["metadata"]
            if not isinstance(metadata, dict):
                raise TypeError(f"its metadata are {type(metadata).__name__}")
            # Copies, so that no tensor refers to the mapped file.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, metadata  # noqa: SIM118
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (safetensors.SafetensorError, *_DAMAGE) as error:
        raise CheckpointError(
            f"{path} is truncated or not a metagan_fast checkpoint ({error}); use an earlier checkpoint"
        ) from error


@contextlib.contextmanager
def contents_of(source: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors from malformed contents, raised in a `with` block, into a one-line CheckpointError that names it."""
    try:
        yield
    except _DAMAGE as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        reason = reason if len(reason) <= 300 else f"{reason[:300]} ..."  # quoted contents may be long
        raise CheckpointError(f"cannot load {source}: {reason}") from error


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically, as `write` does.

    Raises:
        CheckpointError: as `write`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"cannot save {path}: {error.strerror or error}; free space or choose another folder "
            "(a previous file of that name is untouched)"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _snapshot(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where folders can be synced."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
