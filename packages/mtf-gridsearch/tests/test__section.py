from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer
from pydantic_core import PydanticSerializationError

from mtf_gridsearch._section import Section, is_immutable, tag_values


class Kind(enum.Enum):
    A = "a"


class Inner(BaseModel):
    n: int = 1


class Below(BaseModel):
    model_config = ConfigDict(frozen=True)

    names: list[str] = ["a"]


class Model(BaseModel):
    model_config = ConfigDict(extra="allow")

    kind: Literal[Kind.A, "b"] = "b"
    n: int = 1
    inner: Inner = Inner()
    below: Below = Below()
    double: int = Field(default_factory=lambda values: values["n"] * 2)
    where: Path = Path("a")


@dataclasses.dataclass
class Data:
    where: Path


def test_what_was_set_is_passed_on() -> None:
    """And what chooses a member of a union; no default."""
    values = Section(Model.model_validate({"n": 3, "more": [1]})).values()
    assert values == {"kind": "b", "n": 3, "more": [1]}
    assert Section(Model()).tags == {"kind": ["a", "b"]}


def test_what_was_changed_in_a_default_is_passed_on() -> None:
    """A section that was never set may have been changed in place."""
    model = Model()
    model.inner.n = 5
    model.double = 2
    assert Section(model).values().keys() == {"kind", "inner", "double"}


def test_a_model_that_takes_nothing_back_is_passed_on_whole() -> None:
    """Whatever is in the way, every field is there."""

    class Odd(BaseModel):
        a: int = 1
        b: int = 2

        def model_post_init(self, context: object) -> None:
            del context
            self.a += 1

    assert Section(Odd()).values() == {"a": 2, "b": 2}

    class Never(BaseModel):
        a: int
        b: int = Field(2, validate_default=True, gt=5)

    assert Section(Never.model_construct(a=1)).values() == {"a": 1, "b": 2}


def test_what_is_passed_on_may_be_changed() -> None:
    """Each call gives values of its own, as Python and as JSON has them."""
    section = Section(Model.model_validate({"more": [1], "where": Path("b")}))
    for values in (section.values(), section.plain()):
        values["more"].append(2)
    assert section.values()["more"] == section.plain()["more"] == [1]
    assert (section.values()["where"], section.plain()["where"]) == (Path("b"), "b")


@pytest.mark.parametrize("value", [Data(Path("b")), {"where": Path("b")}])
def test_what_is_no_model_is_passed_on_whole(value: Any) -> None:
    """A dataclass and a mapping have no defaults to tell."""
    section = Section(value)
    assert (section.values(), section.plain()) == ({"where": Path("b")}, {"where": "b"})
    assert section.defaults == set()


def test_nothing_is_passed_on_of_what_is_no_section() -> None:
    """A number has no fields."""
    assert Section(3).values() == Section(None).plain() == {}


def test_what_has_no_plain_form_says_so() -> None:
    """The error is pydantic's."""

    class Held(BaseModel):
        value: Any = None

    with pytest.raises(PydanticSerializationError):
        Section(Held(value=object())).plain()


def test_what_has_its_default_is_known() -> None:
    """Also one that is made anew; what follows from other values has none."""

    class Several(BaseModel):
        n: int
        half: int | None = None
        tags: list[int] = Field(default_factory=list)
        far: int = Field(default_factory=lambda: int("far"))

    assert Section(Several(n=1, far=1)).defaults == {"half", "tags"}
    assert Section(Several(n=1, far=1, half=1, tags=[1])).defaults == set()
    assert "double" not in Section(Model()).defaults


def test_a_tag_is_a_literal() -> None:
    """Its values are plain; another annotation is no tag."""
    assert list(tag_values(Literal[Kind.A, 3])) == ["a", 3]
    assert not tag_values(int)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, True),
        (Path("a"), True),
        (Kind.A, True),
        ((1, ("a", frozenset({1}))), True),
        ((1, []), False),
        ({}, False),
        (Inner(), False),
        (Below(), False),
        (Below.model_construct(names=("a",)), True),
    ],
)
def test_what_may_be_shared(value: Any, expected: bool) -> None:  # noqa: FBT001
    """Only what cannot be changed at any depth."""
    assert is_immutable(value) is expected


def test_a_serializer_of_a_field_makes_its_plain_form() -> None:
    """The plain form is the model's own, not a guess at its values."""

    class Hex(BaseModel):
        n: Annotated[int, PlainSerializer(hex)] = 0

    assert Section(Hex(n=255)).plain() == {"n": "0xff"}
