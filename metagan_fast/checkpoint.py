"""Checkpoint files: named tensors and JSON metadata, written whole or not at all, checked when read.

A file is a safetensors file whose header holds one JSON document in `_KEY`: `format`, `metadata`, `tensors` (the CRC-32
of each tensor's dtype, shape and bytes, by name) and `checksum` (that of the document itself, with this field zeros).
CRC-32 finds every change of up to 32 neighbouring bits, and others but for one in 2^32.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ._utils import coerce

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1

# Limits on what is parsed before anything is checked: bytes of the safetensors header, characters of the document.
_LONGEST_HEADER = 64 << 20
_LONGEST_DOCUMENT = 16 << 20

_UNKNOWN = "0" * 8  # a checksum not yet computed
_PLAIN = {"format", "metadata"}  # keys of documents before checksums
_CHECKED = {"checksum", "format", "metadata", "tensors"}

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
        CheckpointError: if the folder is missing or not writable, the disk is full, or `metadata` take over 16 MiB.
        TypeError: if `metadata` is not JSON.
    """
    write_bytes(path, to_bytes(tensors, metadata))


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """Return the content of the file that `write` writes."""
    copies = {name: _snapshot(tensor) for name, tensor in tensors.items()}
    content = {
        "checksum": _UNKNOWN,
        "format": FORMAT_VERSION,
        "metadata": dict(metadata),
        "tensors": {name: _tensor_checksum(tensor) for name, tensor in copies.items()},
    }
    document = json.dumps(content, sort_keys=True)
    if len(document) > _LONGEST_DOCUMENT:
        raise CheckpointError(
            f"expected metadata of at most {_LONGEST_DOCUMENT:,} characters, got {len(document):,}; "
            "store long lists as tensors"
        )
    return safetensors.torch.save(copies, {_KEY: document.replace(_UNKNOWN, _checksum(document.encode()), 1)})


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file that `write` wrote, and check that it is unchanged.

    Files of versions without checksums are read unchecked, with a log line at debug level.

    Returns:
        The tensors, on the CPU, and the metadata.

    Raises:
        CheckpointError: if the file is missing, truncated, changed in any bit, of another program or of a newer
            version.
    """
    path = Path(path)
    try:
        _check_header_length(path)
        with safetensors.safe_open(path, framework="pt") as file:
            document = (file.metadata() or {}).get(_KEY)
            if document is None:
                raise CheckpointError(f"{path} is a safetensors file, but not a metagan_fast checkpoint")
            checksums, metadata = _parsed(document, path)
            # Copies, so that no tensor refers to the mapped file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if checksums is not None:
            _check_tensors(tensors, checksums, path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (safetensors.SafetensorError, *_DAMAGE) as error:
        raise CheckpointError(
            f"{path} is truncated or not a metagan_fast checkpoint ({error}); use an earlier checkpoint"
        ) from error
    if checksums is None:
        logger.debug("%s was written without checksums: damage in its tensors would not be noticed", path)
    return tensors, metadata


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


def _checksum(data: bytes | memoryview, before: int = 0) -> str:
    return f"{zlib.crc32(data, before):08x}"


def _tensor_checksum(tensor: Tensor) -> str:
    described = f"{tensor.dtype} {list(tensor.shape)} ".encode()
    return _checksum(tensor.reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(described))


def _check_header_length(path: Path) -> None:
    """Refuse a header of more bytes than the file or the limit has, before the library allocates it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_LONGEST_HEADER, os.fstat(file.fileno()).st_size):
            raise ValueError(f"its header would take {length:,} bytes")


def _parsed(document: str, path: Path) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return the tensors' checksums, None in files without, and the metadata."""
    if len(document) > _LONGEST_DOCUMENT:
        raise ValueError(f"its metadata take {len(document):,} characters")
    content = json.loads(document)
    version = coerce.count("format", content["format"], least=1)
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {version}, this version reads up to {FORMAT_VERSION}; upgrade metagan_fast"
        )
    metadata = content["metadata"]
    if not isinstance(metadata, dict):
        raise TypeError(f"its metadata are {type(metadata).__name__}")
    if content.keys() == _PLAIN:
        return None, metadata
    if content.keys() != _CHECKED or not isinstance(content["tensors"], dict):
        raise ValueError(f"its header has the parts {', '.join(content)}")
    if _checksum(document.replace(content["checksum"], _UNKNOWN, 1).encode()) != content["checksum"]:
        raise CheckpointError(_damaged(path, "metadata"))
    return content["tensors"], metadata


def _check_tensors(tensors: Mapping[str, Tensor], checksums: Mapping[str, Any], path: Path) -> None:
    for name in sorted(tensors.keys() | checksums.keys()):
        if name not in tensors or name not in checksums or _tensor_checksum(tensors[name]) != checksums[name]:
            raise CheckpointError(_damaged(path, f"tensor {name!r}"))


def _damaged(path: Path, part: str) -> str:
    return f"{path} is damaged: the checksum of its {part} does not match; use an earlier checkpoint or another copy"


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where folders can be synced."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
