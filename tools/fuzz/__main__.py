"""Read many damaged files of one format: `python tools/fuzz FORMAT` in the checkout, with the package installed.

    pip install atheris  # coverage-guided; without it changes are blind
    python tools/fuzz npz --runs 100000 --found found/

Each file may raise only the documented errors, and take 5 s of the processor and 1 GiB of memory. Files that do
otherwise are written to a folder, one for each place in the code; once mended they belong into `tests/hostile/corpus`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_INSTRUMENTED = ["metagan_fast", "zipfile", "tarfile", "gzip", "numpy.lib.format", "numpy.lib._format_impl", "PIL"]


class Fuzzer:
    """Counts of one format's runs, and the first failure at each place in the code."""

    def __init__(self, name: str, runs: int, seed: int, found: Path, folder: Path) -> None:
        from fuzz import formats, mutations

        self.name, self.runs, self.found = name, runs, found
        self.format = formats.FORMATS[name]
        self.path = self.format.path(folder)
        self.seeds = self.format.seeds()
        self.mutated = mutations.mutated
        self.random = random.Random(seed)
        self.count = 0
        self.places: dict[str, int] = {}
        self.began = time.process_time()

    def attempt(self, data: bytes) -> None:
        """Read one file; the last one ends the process."""
        from fuzz import attempts

        self.count += 1
        text = attempts.failure(self.format.read, self.path, data)
        if text is not None:
            frames = [line for line in text.splitlines() if line.startswith("  File")]
            place = f"{frames[-1] if frames else ''} {text.splitlines()[-1].partition(':')[0]}"
            if place not in self.places:
                self.found.mkdir(parents=True, exist_ok=True)
                stem = self.found / f"{self.name}-{hashlib.sha256(data).hexdigest()[:12]}"
                stem.with_suffix(".bin").write_bytes(data)
                stem.with_suffix(".txt").write_text(text, encoding="utf-8", errors="backslashreplace")
            self.places[place] = self.places.get(place, 0) + 1
        if self.count >= self.runs:
            self.finish()

    def finish(self) -> None:
        """Print the counts as JSON and end the process: libFuzzer has no other way out."""
        seconds = round(time.process_time() - self.began, 1)
        print(json.dumps({"format": self.name, "inputs": self.count, "seconds": seconds, "failures": self.places}))
        sys.stdout.flush()
        os._exit(1 if self.places else 0)

    def next(self, data: bytes, longest: int) -> bytes:
        """Return a changed file: of libFuzzer's input or of a valid file."""
        return self.mutated([data or self.random.choice(self.seeds), *self.seeds], self.random)[:longest]


def main() -> None:
    """Run until enough files have been read."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("format")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--found", type=Path, default=Path("found"))
    parser.add_argument("--blind", action="store_true", help="do without atheris")
    given = parser.parse_args()
    guided = not given.blind and importlib.util.find_spec("atheris") is not None
    if guided:
        import atheris

        with atheris.instrument_imports(include=_INSTRUMENTED, enable_loader_override=False):
            from fuzz import formats  # noqa: F401
    with contextlib.suppress(OSError):
        os.nice(5)
    logging.disable(logging.CRITICAL)
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        fuzzer = Fuzzer(given.format, given.runs, given.seed, given.found, Path(folder))
        if not guided:
            while True:
                fuzzer.attempt(fuzzer.next(b"", 1 << 20))
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for index, data in enumerate(fuzzer.seeds):
            (corpus / str(index)).write_bytes(data)
        options = [f"-atheris_runs={given.runs + 1000}", "-max_len=65536", "-len_control=0", "-rss_limit_mb=0"]
        options += [
            "-timeout=3600",  # of the clock, which runs on while a busy machine lets this process wait
            "-verbosity=0",
            f"-seed={given.seed + 1}",
            f"-artifact_prefix={folder}/",
            str(corpus),
        ]
        atheris.Setup(
            [sys.argv[0], *options],
            fuzzer.attempt,
            custom_mutator=lambda data, longest, seed: fuzzer.next(data, longest),
        )
        atheris.Fuzz()


main()
