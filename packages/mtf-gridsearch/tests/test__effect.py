from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, RootModel

from mtf_gridsearch._effect import at, fallen_back, get, without_effect


class Below(BaseModel):
    n: int = 1
    m: int = 2


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


@dataclasses.dataclass
class Data:
    n: int = 1


class Model(BaseModel):
    below: Below = Below()
    several: list[Below] = [Below()]
    data: Data = Data()
    open: Open = Open()
    some: dict[str, Any] = {}
    nothing: int | None = None
    numbers: dict[int, int] = {}
    rooted: RootModel[Below] = RootModel(Below())


def test_values_are_found_at_keys() -> None:
    """In models, dataclasses and mappings; nothing where nothing is."""
    model = Model(some={"a": {"b": 3}}, numbers={1: 5})
    assert [at(model, key) for key in ("below.m", "data.n", "some.a.b")] == [2, 1, 3]
    assert at(model, "nothing.at.all") is None
    assert [at(model, key) for key in ("numbers.1", "rooted.m")] == [5, 2]
    assert [at(model, key) for key in ("several.0.n", "several.1")] == [1, None]
    assert get({"a": 1}, "a") == get(Data(), "n") == 1


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("below.n", 1, []),
        ("below.x", 1, ["below.x"]),
        ("below", {"n": 1, "x": 1}, ["below.x"]),
        ("several", [{"n": 1, "x": 1}], ["several.0.x"]),
        ("several", [{"x": 1}, {"x": 1}], ["several"]),
        ("data.x", 1, ["data.x"]),
        ("open.x", 1, ["open.x"]),
        ("some.x.y", 1, ["some.x"]),
        ("nothing.x", 1, ["nothing.x"]),
        ("nothing", {"x": 1}, ["nothing.x"]),
        ("below.n.x", 1, []),
    ],
)
def test_what_is_not_there_is_told(key: str, value: Any, found: list[str]) -> None:
    """What a section in force does not have; of what is no section nothing is known."""
    config = Model.model_construct(set(Model.model_fields), **dict(Model()))
    assert [place for place, _ in without_effect(Model(), config, value, key)] == found


def test_the_section_in_force_is_named() -> None:
    """The reason says what the section is."""
    ((_, reason),) = without_effect(Model(), Model(), 1, "below.x")
    assert "it would do nothing, for below is a Below here" in reason


def test_what_fell_back_is_told() -> None:
    """Fields that a mapping does not name and that changed, at every level."""
    old, new = Model(below=Below(m=7)), Model()
    ((key, reason),) = fallen_back(old, new, {"below": {"n": 1}, "some": {}}, "s")
    assert key == "s.below.m"
    assert "7 of the base config would become 2" in reason
    assert list(fallen_back(old, new, 3, "s")) == []
    assert list(fallen_back(old, Below(), {"n": 1}, "s")) == []
    assert list(fallen_back(old, old.model_copy(deep=True), {"below": {}}, "s")) == []


class Told(BaseModel):
    n: int | None = None
    m: float = 2
    data: Data = Data()

    def __init__(self, **values: Any) -> None:
        values.pop("m", None)
        super().__init__(**values)


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("n", 5, ["n"]),
        ("n", None, []),
        ("n", "3", []),
        ("m", 5, ["m"]),
        ("m", "2", []),
        ("data.n", 5, ["data.n"]),
        ("data.n", "1", []),
    ],
)
def test_what_the_class_does_not_take_is_told(
    key: str, value: Any, found: list[str]
) -> None:
    """A value that is not there, unless it is the same or asks for the class's own."""
    config = Told(n=3, data={"n": 1})
    assert [place for place, _ in without_effect(config, config, value, key)] == found
