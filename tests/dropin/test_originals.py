"""Names that a stand-in does not cover are handed on from the original, or raise an error with the reason."""

from __future__ import annotations

import importlib
import logging
import re
import sys
import warnings
from types import ModuleType
from typing import Any

import pytest

from metagan_fast._utils import log
from metagan_fast.dropin._originals import fall_back_to
from support import ROOT


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a maker of stand-ins for the module "original_library", which is installed if given."""
    monkeypatch.setattr(log, "_said", set())

    def make(original: ModuleType | None, original_name: str = "original_library") -> Any:
        monkeypatch.setitem(sys.modules, "original_library", original)  # None: importing it fails as if not installed
        module: Any = ModuleType("stand_in")
        module.covered = "own"
        module.__getattr__, module.__dir__ = fall_back_to("stand_in", original_name)
        monkeypatch.setitem(sys.modules, "stand_in", module)
        return module

    return make


def library(**contents: Any) -> ModuleType:
    module = ModuleType("original_library")
    module.__dict__.update(contents)
    return module


def test_the_originals_objects_are_handed_on(stand_in: Any, caplog: pytest.LogCaptureFixture) -> None:
    other = object()
    module = stand_in(library(covered="the original's", other=other, _helper=len, __path__=[]))
    with caplog.at_level(logging.WARNING):
        assert module.covered == "own"
        assert not caplog.records
        assert [module.other, module.other] == [other, other]
        assert module._helper is len
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "stand_in does not cover 'other'",
        "stand_in does not cover '_helper'",
    ]
    assert {"covered", "other"} <= set(dir(module))
    assert not hasattr(module, "__path__")  # the original's would make a package of it
    with pytest.raises(AttributeError, match=r"neither stand_in nor the original, original_library, has 'nothing'"):
        _ = module.nothing


def test_an_original_that_is_not_installed_is_named(stand_in: Any, caplog: pytest.LogCaptureFixture) -> None:
    module = stand_in(None)
    with pytest.raises(AttributeError, match=r"does not cover 'other'.*original_library, is not installed: install it"):
        _ = module.other
    assert "covered" in dir(module)
    assert not caplog.records
    module = stand_in(None, "original_library.part")
    with pytest.raises(AttributeError, match=r"original_library.part, is not installed"):
        _ = module.other


def test_an_original_that_fails_to_import_says_why(
    stand_in: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_library.py").write_text("import a_module_that_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    module = stand_in(None, "broken_library")
    with pytest.raises(AttributeError, match=r"cannot be imported \(No module named 'a_module_that_is_missing'\)"):
        _ = module.other
    assert "covered" in dir(module)


def test_a_stand_in_under_the_originals_name_is_no_original(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs may install the stand-in under the original's name in `sys.modules`."""
    module = stand_in(None)
    monkeypatch.setitem(sys.modules, "original_library", module)
    with pytest.raises(AttributeError, match="is not installed"):
        _ = module.other


def test_public_names_of_higher_are_counted_as_its_page_says(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_said", set())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("higher", reason="the original, higher, is not installed")
    rows = re.findall(r"\| `(higher[.\w]*)` \| (\d+) \| (\d+) \|", (ROOT / "docs/migrate/higher.md").read_text())
    assert [row[0] for row in rows] == ["higher", "higher.optim", "higher.patch", "higher.utils"]
    for module_name, count, covered in rows:
        original = importlib.import_module(module_name)
        ours = importlib.import_module(f"metagan_fast.dropin.{module_name}")
        public = {name for name in vars(original) if not name.startswith("_")}
        assert [len(public), len(public & vars(ours).keys())] == [int(count), int(covered)]
        assert public <= set(dir(ours))
        with caplog.at_level(logging.WARNING):
            assert ours._typing is original._typing  # a name that is handed on
        assert caplog.records.pop().getMessage().startswith(f"metagan_fast.dropin.{module_name} does not cover")
