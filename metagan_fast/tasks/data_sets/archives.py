"""Pinned packages of registries: downloaded by the registry's own client, compared with their SHA-256, read in place.

No script of a package runs and nothing is installed. Archives are read as data: regular files alone, of bounded size,
by their names in the archive; links and folders are passed over and nothing is written where a name says.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from ..._utils.user_cache import cache_folder

A_CALL = 16  # packages that one call of a client downloads
LARGEST_FILE = 1 << 28  # bytes of one file in an archive
LARGEST_ARCHIVE = 1 << 32  # bytes of all its files
MOST_MEMBERS = 1 << 18  # files, folders and links in it
MOST_MEMORY = 1 << 27  # bytes that unpacking xz may take; its highest level takes 65 MiB

_PART = 1 << 20  # bytes unpacked at once

Progress = Callable[[str, int, int], None]
"""Receiver of (stage, steps done, steps in all)."""


@dataclass(frozen=True)
class Archive:
    """One package at a pinned version.

    Attributes:
        source: "npm" or "debian".
        name, version: of the package.
        sha256: of the archive, in hexadecimal.
        size: of the archive, in bytes.
        licence: SPDX name of the licence that was read in the package; "by file" where its files differ.
        family: sets of one maker, whose drawings resemble each other, share a family.
        author: whom the package names.
    """

    source: str
    name: str
    version: str
    sha256: str
    size: int
    licence: str
    family: str
    author: str

    @property
    def file(self) -> str:
        """Name that the client gives to the archive."""
        if self.source == "debian":
            return f"{self.name}_{self.version.replace(':', '%3a')}_all.deb"
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


def _command(source: str, archives: Sequence[Archive]) -> list[str]:
    """Return the command that downloads archives of one source into the current folder."""
    if source == "debian":
        return ["apt-get", "download", *(f"{archive.name}={archive.version}" for archive in archives)]
    return [
        "npm",
        "pack",
        *(f"{archive.name}@{archive.version}" for archive in archives),
        "--ignore-scripts",
        "--silent",
    ]


def read_pins(path: Path) -> list[Archive]:
    """Read a table of pinned archives."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [Archive(size=int(row.pop("size")), **row) for row in rows]


def fetch(archives: Sequence[Archive], given: Path | None, progress: Progress) -> list[Path]:
    """Return the archives' paths; download what the cache lacks, unless a folder that has them is given.

    A download that was cut short goes on with what is missing.

    Raises:
        ValueError: an archive is missing or another one than pinned, or its client fails; the message says what to do.
    """
    folder = cache_folder() / "archives" if given is None else given
    if given is not None:
        if not given.is_dir():
            raise ValueError(f"expected a folder with the downloaded archives, got {given}")
        absent = [archive.file for archive in archives if not (given / archive.file).is_file()]
        if absent:
            raise ValueError(f"{given} lacks {len(absent)} of {len(archives)} archives: {_some(absent)}")
    else:
        folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / archive.file for archive in archives]
    missing_of: dict[str, list[Archive]] = defaultdict(list)
    for archive, path in zip(archives, paths, strict=True):
        if not path.is_file():
            missing_of[archive.source].append(archive)
        elif _sha256(path) != archive.sha256:
            remedy = "put the pinned one there" if given else "delete it, and it is downloaded anew"
            raise ValueError(f"{path} has another SHA-256 than {archive.name} {archive.version} should: {remedy}")
    done = len(archives) - sum(map(len, missing_of.values()))
    progress("packages", done, len(archives))
    for source, missing in missing_of.items():
        for start in range(0, len(missing), A_CALL):
            batch = missing[start : start + A_CALL]
            _download(source, batch, folder)
            done += len(batch)
            progress("packages", done, len(archives))
    return paths


def _download(source: str, batch: Sequence[Archive], folder: Path) -> None:
    """Download into a folder beside, compare, and rename: no unfinished file has an archive's name."""
    command = _command(source, batch)
    files = _some([archive.file for archive in batch])
    hint = f"put {files} into {folder} by other means, or give a folder that has all archives with --from"
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]} is missing, which downloads the packages: {hint}")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
        if source == "debian":
            os.chmod(temporary, 0o755)  # apt-get gives up its rights as root
        result = subprocess.run(command, cwd=temporary, capture_output=True, text=True, errors="replace")
        for archive in batch:
            found = Path(temporary) / archive.file
            if not found.is_file():
                continue
            if _sha256(found) != archive.sha256:
                raise ValueError(f"{archive.name} {archive.version} came with another SHA-256 than pinned: {hint}")
            os.replace(found, folder / archive.file)
    if any(not (folder / archive.file).is_file() for archive in batch):
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        said = f" ({lines[-1].strip()})" if lines else ""
        raise ValueError(f"`{' '.join(command[:2])}` failed{said}: run the command again, or {hint}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_files(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of an archive's regular files that are wanted, in the archive's order.

    Raises:
        ValueError: not a `.tgz` or `.deb` that can be read, or one that exceeds `LARGEST_FILE`, `LARGEST_ARCHIVE` or
            `MOST_MEMBERS`.
    """
    try:
        with archive.open("rb") as file:
            packed = _packed_data(file) if archive.suffix == ".deb" else file
            with _unpacked(packed) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
                total = 0
                for count, member in enumerate(tar, 1):
                    total += member.size
                    if count > MOST_MEMBERS or not 0 <= member.size <= LARGEST_ARCHIVE or total > LARGEST_ARCHIVE:
                        raise ValueError(
                            f"it has more than {MOST_MEMBERS:,} files or {LARGEST_ARCHIVE:,} bytes, unpacked"
                        )
                    if not member.isfile() or not wanted(member.name):
                        continue
                    if member.size > LARGEST_FILE:
                        raise ValueError(f"{member.name} has {member.size} bytes, more than {LARGEST_FILE}")
                    content = tar.extractfile(member)
                    assert content is not None
                    yield member.name, content.read()
    except Exception as error:  # tarfile and the unpackers raise many kinds for damaged files
        raise ValueError(f"cannot read {archive}: {' '.join(str(error).split()) or type(error).__name__}") from error


def unpack(archive: Archive, path: Path, wanted: Callable[[str], bool]) -> Path:
    """Return a folder in the cache with the wanted files of an archive, by their last names, side by side.

    Raises:
        ValueError: as `read_files`.
    """
    folder = cache_folder() / "unpacked" / f"{Path(archive.file).stem}-{archive.sha256[:8]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder.parent) as temporary:
        files = Path(temporary) / "files"
        files.mkdir()
        for name, content in read_files(path, wanted):
            (files / PurePosixPath(PureWindowsPath(name).name).name).write_bytes(content)
        with contextlib.suppress(OSError):  # another process was faster
            os.replace(files, folder)
    return folder


def _packed_data(file: io.BufferedReader) -> io.BufferedReader:
    """Return the compressed tar of files in a Debian package, which is an `ar` archive."""
    length = os.fstat(file.fileno()).st_size
    if file.read(8) != b"!<arch>\n":
        raise ValueError("expected a Debian package")
    while header := file.read(60):
        if len(header) < 60 or header[58:] != b"`\n":
            break
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
        if not 0 <= size <= length - file.tell():
            raise ValueError(f"{name} has {size} bytes by its header, more than the package")
        if name.startswith("data.tar"):
            return io.BufferedReader(io.BytesIO(file.read(size)))
        file.seek(size + size % 2, os.SEEK_CUR)
    raise ValueError("the Debian package has no data.tar")


@contextlib.contextmanager
def _unpacked(packed: io.BufferedReader) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """Give the tar that gzip, xz or nothing packs; xz gets `MOST_MEMORY` at most, whatever its header asks for."""
    magic = packed.peek(6)[:6]
    if magic[:2] == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=packed) as unpacked:
            yield unpacked
    elif magic == b"\xfd7zXZ\0":
        with tempfile.TemporaryFile() as unpacked_xz:
            _unpack_xz(packed, unpacked_xz)
            unpacked_xz.seek(0)
            yield unpacked_xz
    else:
        yield packed


def _unpack_xz(packed: io.BufferedReader, unpacked: IO[bytes]) -> None:
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, MOST_MEMORY)
    while not decompressor.eof:
        more = packed.read(_PART) if decompressor.needs_input else b""
        if decompressor.needs_input and not more:
            raise EOFError("its xz data end early")
        unpacked.write(decompressor.decompress(more, _PART))
        if unpacked.tell() > LARGEST_ARCHIVE:
            raise ValueError(f"it has more than {LARGEST_ARCHIVE:,} bytes, unpacked")


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])
