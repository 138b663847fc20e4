"""Commit subjects read `area: imperative subject`, in at most 72 characters."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support import ROOT

SUBJECT = re.compile(r'([\w./-]+(, [\w./-]+)*: \S.*[^.\s]|Revert ".*")')


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def is_well_formed(subject: str) -> bool:
    return len(subject) <= 72 and SUBJECT.fullmatch(subject) is not None


def test_commit_subjects() -> None:
    """Of the commits that follow the one that added this test; merges are left out."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout with its history")
    name = Path(__file__).relative_to(ROOT).as_posix()
    added = git("log", "--diff-filter=A", "--format=%H", "--", name).split()
    if not added or git("rev-parse", "--is-shallow-repository").strip() == "true":
        pytest.skip(f"the history does not reach back to the commit that added {name}")
    subjects = git("log", "--no-merges", "--format=%s", f"{added[-1]}..HEAD").splitlines()
    assert not [subject for subject in subjects if not is_well_formed(subject)]


@pytest.mark.parametrize(
    ("subject", "good"),
    [
        ("engine: share out products for any number of threads", True),
        ("tests, tools: name fixtures by their nouns", True),
        ('Revert "engine: share out products"', True),
        ("Share out products", False),
        ("engine: share out products.", False),
        ("engine: " + "x" * 64, True),
        ("engine: " + "x" * 65, False),
    ],
)
def test_the_form_of_a_subject(subject: str, good: bool) -> None:
    assert is_well_formed(subject) == good
