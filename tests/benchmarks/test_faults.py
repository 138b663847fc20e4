"""The table of faults: nothing is lost in any row, and a save that can lose something is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from metagan_fast.benchmarks.faults import injection

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(injection.why_not() is not None, reason=injection.why_not() or ""),
]


def rows(*only: str, every: int) -> list[dict[str, Any]]:
    """Return the rows whose titles hold one of these texts, by the command."""
    command = [sys.executable, "-m", "metagan_fast.benchmarks.faults", "--json", "--every", str(every), "--only", *only]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    return found


@pytest.mark.parametrize(
    ("only", "count", "every", "points"),
    [
        ((": MetaGAN", ": best", ": config", ": evaluation", ": report", "data get", ": samples"), 29, 3, 1),
        (("kill -9: train",), 2, 16, 6),
        (("full disk: train",), 2, 16, 3),
        (("read-only folder: train",), 2, 16, 3),
        (("failing disk: train",), 2, 16, 3),
        (("damaged checkpoint", "no links", "lock of", "clock"), 4, 1, 1),
        (("SIGTERM", "NaN", "/dev/shm"), 3, 1, 2),
    ],
    ids=["files", "kill -9", "full disk", "read-only folder", "failing disk", "folders", "training"],
)
def test_nothing_is_lost(only: tuple[str, ...], count: int, every: int, points: int) -> None:
    """Fewer injections than these would mean that calls are missed; the command without --every takes all of them."""
    found = rows(*only, every=every)
    assert len(found) == count
    told = "a line of metrics or a picture"  # where a single write fails, with a log line
    assert [
        row for row in found if row["lost"] not in ("nothing", told if row["fault"] == "failing disk" else "")
    ] == []
    assert min(row["points"] for row in found) >= points


CARELESS = """
import sys
from pathlib import Path
from metagan_fast.benchmarks.faults import saves, table
from metagan_fast.benchmarks.faults.injection import FULL, KILLED

def write(folder, version):
    (folder / "state").write_text(f"version {version}" * 100)

for fault in (KILLED, FULL):
    print(table.measure(saves.Files("careless", ("state",), write), fault).lost)
"""


def test_a_careless_save_is_found(tmp_path: Path) -> None:
    """A file that is written in place is half written at the kill and on the full disk."""
    (tmp_path / "careless.py").write_text(CARELESS)
    start = "from metagan_fast.benchmarks.faults import injection; injection.rerun(['careless.py'])"
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    killed, full = done.stdout.splitlines()
    assert "state is half written" in killed and "state is half written" in full


def test_the_rows_are_listed() -> None:
    command = [sys.executable, "-m", "metagan_fast.benchmarks.faults", "--list"]
    titles = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(titles) == len(set(titles)) == 43
    assert {"kill -9: train", "full disk: best checkpoint", "clock that jumps: train"} <= set(titles)
