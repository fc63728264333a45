"""Calling the function that an entry point names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mtf_gridsearch.local import _call


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a folder with a module, and keep the path of modules as it is."""
    text = "import sys\nseen = []\ndef go(path):\n    seen.extend([path, *sys.argv])\n"
    (tmp_path / "my_module_of_calls.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "path", ["first", *sys.path])
    monkeypatch.setattr(sys, "argv", [])
    return str(tmp_path)


def test_calls_it_with_the_config(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function gets the path, and ``sys.argv`` is that of a program of its name."""
    name = "my_module_of_calls"
    monkeypatch.delitem(sys.modules, name, raising=False)
    _call.main([folder, name, "go", "c.yaml"])
    assert sys.modules.pop(name).seen == ["c.yaml", "go", "c.yaml"]
    assert sys.path[0] == folder


def test_what_is_missing(folder: str) -> None:
    """A module or a function that is not there is an error of Python's own."""
    with pytest.raises(ImportError, match="no_such_module"):
        _call.main([folder, "no_such_module", "go", "c.yaml"])
    with pytest.raises(AttributeError, match="no_such_function"):
        _call.main([folder, "json", "no_such_function", "c.yaml"])
