"""Build the packages and, with CMake, the extension `metagan_fast._core`.

METAGAN_FAST_NO_EXT=1 skips the extension; the package then runs, slower, in plain PyTorch.
"""

from __future__ import annotations

import gzip
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
SOURCE_TREE = runpy.run_path(str(ROOT / "metagan_fast" / "_source_tree.py"))
PACKAGES = {"metagan_fast": "metagan_fast", **SOURCE_TREE["PACKAGES"]}
WITH_EXTENSION = os.environ.get("METAGAN_FAST_NO_EXT", "0") in ("", "0")


class CleanBuild(build):
    """Build from an empty folder: an earlier build may hold files that the source no longer has."""

    def run(self) -> None:
        for folder in (self.build_purelib, self.build_platlib):
            shutil.rmtree(folder, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Build the extension with CMake and Ninja."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp, "cmake").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        cmake = find_tool("cmake")
        configure = [
            *(cmake, "--fresh", "-S", str(ROOT.resolve()), "-B", str(folder), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DMETAGAN_SOURCE_DIGEST={SOURCE_TREE['digest'](ROOT)}",
            f"-DMETAGAN_SANITIZE={os.environ.get('METAGAN_SANITIZE', 'OFF')}",
            f"-DMETAGAN_CUDA={os.environ.get('METAGAN_CUDA', 'AUTO')}",
        ]
        try:
            subprocess.run(configure, check=True)
            subprocess.run([cmake, "--build", str(folder)], check=True)
        except subprocess.CalledProcessError:
            raise CompileError(
                "the C++ extension did not build (see CMake's output above); it needs a C++17 compiler such as g++. "
                "To install without it, slower, set METAGAN_FAST_NO_EXT=1"
            ) from None


class ReproducibleSdist(sdist):
    """Pack the same bytes from the same files: sorted, without owners, dated SOURCE_DATE_EPOCH or 1980."""

    def make_archive(self, base_name: str, format: str, *arguments: object, **options: object) -> str:
        if format != "gztar":
            return super().make_archive(base_name, format, *arguments, **options)
        date = int(os.environ.get("SOURCE_DATE_EPOCH", 315532800))

        def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.mtime, member.uid, member.gid, member.uname, member.gname = date, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            return member

        folder = Path(str(options["base_dir"]))
        path = Path(f"{base_name}.tar.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            path.open("wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=date) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for member in sorted(folder.rglob("*")):
                archive.add(member, recursive=False, filter=anonymous)
        return str(path)


def find_tool(name: str) -> str:
    """Find a build tool on the path or beside the running Python."""
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        raise CompileError(f"{name} was not found: install it, or set METAGAN_FAST_NO_EXT=1 to skip the extension")
    return path


def packages() -> list[str]:
    """List the root packages and all their subpackages."""
    return [
        name
        for root, folder in PACKAGES.items()
        for name in (root, *(f"{root}.{child}" for child in find_packages(str(ROOT / folder))))
    ]


setup(
    packages=packages(),
    package_dir=PACKAGES,
    package_data={
        "metagan_fast": [
            "py.typed",
            "*.pyi",
            "_utils/*.css",
            "draw/page/*",
            "metrics/recorded/*",
            "metrics/weights/*",
            "tasks/data/**",
            "tasks/data_sets/*.tsv",
            "training/report/*.css",
            "training/pretrained/**",
        ],
        "metagan_fast.benchmarks.faults": ["*.c"],
    },
    include_package_data=False,
    ext_modules=[Extension(SOURCE_TREE["EXTENSION"], sources=[])] if WITH_EXTENSION else [],
    cmdclass={"build": CleanBuild, "build_ext": CMakeBuild, "sdist": ReproducibleSdist},
)
