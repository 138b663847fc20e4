"""Settings that every test shares: hypothesis profile, seeds, threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

import browser
import metagan_fast
from support import ISAS, instruction_set


class _TorchRandom:
    """Torch's generator for hypothesis: seeded before each example, so that a failing one can be replayed."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


_torch_random = _TorchRandom()  # hypothesis keeps only a weak reference
hypothesis.register_random(_torch_random)
hypothesis.settings.register_profile(
    "metagan_fast",
    deadline=None,
    max_examples=25,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("metagan_fast")

# Thread barriers cost small tensors more than threads gain, most of all on a busy machine.
torch.set_num_threads(1)


def pytest_report_header() -> str:
    """Report which copy of the package is tested; it should be the installed one."""
    return f"metagan_fast: {os.path.dirname(metagan_fast.__file__)}, torch {torch.__version__}"


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed torch's global generator before each test."""
    torch.manual_seed(0)
    return 0


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test with each available instruction set; none without the extension."""
    with instruction_set(request.param):
        yield request.param


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Provide `torch.set_num_threads` and restore the count after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def float64_default() -> Iterator[None]:
    """Make float64 the default dtype for a test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    """Run a browser for the tests of a file; skip them where none is installed."""
    program = browser.find()
    if program is None:
        pytest.skip(f"needs a browser: none of {', '.join(browser.NAMES)} is installed")
    with browser.running(program) as running:
        yield running


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test in an empty folder."""
    monkeypatch.chdir(tmp_path)
