"""One version in the package, the citation file, the changelog and the tag."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

import metagan_fast as mgf
from support import ROOT


def test_the_citation_file_and_the_changelog_name_the_version() -> None:
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None and cited[1] == mgf.__version__
    sections = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert next(name for name in sections if name != "Unreleased") == mgf.__version__
    assert sections.index(mgf.__version__) <= 1, "Unreleased comes first"


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs a git checkout")
def test_a_tag_of_this_commit_is_the_version() -> None:
    tags = subprocess.run(
        ["git", "tag", "--points-at", "HEAD", "v*"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(tags.stdout.split()) <= {f"v{mgf.__version__}"}
