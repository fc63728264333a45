from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from mtf_gridsearch._model_class import class_name, is_same_class, model_of
from mtf_gridsearch.errors import GridError

MODULE = """
from pydantic import BaseModel, Field

class Config(BaseModel):
    class Inner(BaseModel):
        n: int = Field(1, ge=0)
    lr: float = 0.1

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give the name of a module with models."""
    (tmp_path / "their_configs.py").write_text(MODULE, "utf-8")
    (tmp_path / "their_broken.py").write_text("raise KeyError('x')", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield "their_configs"
    sys.modules.pop("their_configs", None)


def test_a_class_is_found_by_its_name(module: str) -> None:
    """A base is read by the class that it was of, also one inside another."""
    config = model_of(f"{module}:Config", {"lr": 0.5})
    assert config.model_dump() == {"lr": 0.5}
    inner = model_of(f"{module}:Config.Inner", {"n": 2})
    assert inner.model_dump() == {"n": 2}
    assert class_name(type(inner)) == f"{module}:Config.Inner"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("__main__:Config", "run the script that defines it, or define the class in a"),
        ("a:f.<locals>.Config", "can be imported by nobody"),
        ("os; print(1)", "can be imported by nobody"),
        ("their_configs:Other", "cannot be imported (AttributeError"),
        ("their_missing:Config", "cannot be imported (ModuleNotFoundError"),
        ("their_broken:Config", "cannot be imported (KeyError"),
        ("their_configs:number", "is no pydantic model"),
        ("pathlib:Path", "is no pydantic model"),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_is_no_class_is_refused(name: str, reason: str) -> None:
    """The error says what to do."""
    with pytest.raises(GridError) as caught:
        model_of(name, {})
    assert "base_class" in str(caught.value)
    assert reason in str(caught.value)


def test_a_base_that_the_class_refuses_is_named(module: str) -> None:
    """The class may have changed since the file was written."""
    with pytest.raises(GridError, match=r"base: .*Inner refuses it: ValidationError"):
        model_of(f"{module}:Config.Inner", {"n": -1})


def test_a_class_of_a_function_is_named_and_not_found() -> None:
    """Its name says why nobody can import it."""

    class Here(BaseModel):
        pass

    assert "<locals>" in class_name(Here)


def test_a_class_of_a_script_may_be_one_of_a_module() -> None:
    """Only what is called the same, and one of them has no module."""
    assert is_same_class("a:C", "a:C")
    assert is_same_class("__main__:C", "b:C")
    assert not is_same_class("a:C", "b:C")
    assert not is_same_class("__main__:C", "b:D")
