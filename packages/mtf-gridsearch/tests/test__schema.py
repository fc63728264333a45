from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AliasPath, BaseModel, ConfigDict, Field, RootModel
from typing_extensions import TypedDict

from mtf_gridsearch._schema import (
    as_read,
    below,
    chosen,
    default_of,
    fields,
    read_key,
    schema_keys,
    tag_values,
    unknown_inside,
)


@dataclass
class Point:
    x: int = 0


class Options(TypedDict):
    fast: bool


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    a: int = 0


class Closed(BaseModel):
    point: Point | None = None
    many: list[Annotated[Open, "any"]] = []
    free: Mapping[str, Point] = {}
    options: Options | None = None
    again: Closed | None = None


def test_types_below_a_key() -> None:
    """All types of a union are found; none below a closed one; None where all keys go."""
    assert below({Closed}, "point") == {Point, type(None)}
    assert below({Closed}, "none") == set()
    assert below({Open, Point}, "a") == {int}
    assert below({Open}, "b") is None
    assert below({Mapping[str, Point]}, "b") == {Point}
    assert below({Any}, "b") is None


def test_fields_of_what_is_like_a_model() -> None:
    """Dataclasses and typed dictionaries have fields, other types have none."""
    assert list(fields(Point)) == ["x"]
    assert list(fields(Options)) == ["fast"]
    assert fields(int) == {}


def test_a_model_that_holds_itself_has_an_end() -> None:
    """Keys are listed to a bounded depth."""
    keys = list(schema_keys(Closed))
    assert {"point.x", "options.fast", "again.again.point.x"} <= set(keys)
    assert max(key.count(".") for key in keys) == 8


def test_keys_inside_values() -> None:
    """The first unknown one is named, in mappings and in lists of models."""
    kinds: set[Any] = {Closed}
    assert unknown_inside(kinds, {"point": {"x": 1}, "again": {"none": 1}}, "k") == (
        "k.again.none"
    )
    assert unknown_inside(kinds, {"free": {"any": {"y": 1}}}, "k") == "k.free.any.y"
    assert unknown_inside(kinds, {"many": [{"a": 1, "b": 2}]}, "k") == ""
    assert unknown_inside({list[Point]}, [{"x": 1}, {"y": 1}], "k") == "k.1.y"


class Kind(enum.Enum):
    A = "a"


def test_a_tag_is_a_literal() -> None:
    """Its values are plain; another annotation is no tag."""
    assert list(tag_values(Literal[Kind.A, 3])) == ["a", 3]
    assert not tag_values(int)


class First(BaseModel):
    kind: Literal["first"] = Field("first", alias="type")
    lr: float = Field(0.1, alias="learningRate")


class Second(BaseModel):
    kind: Literal["second"] = "second"
    lr: float = Field(0.1, serialization_alias="rate", validation_alias=AliasPath("a", 0))


class Rooted(RootModel["list[First] | Rooted"]):
    pass


def test_keys_are_those_that_are_read() -> None:
    """An alias that is a text, in values of any depth, by the member that a tag chooses."""
    assert [read_key([kind], "lr") for kind in (First, Second)] == [
        "learningRate",
        "rate",
    ]
    assert read_key([int, First], "other") == "other"
    both: set[Any] = {First, Second}
    assert chosen(both, {"kind": "second"}) == {Second}
    assert chosen(both, {"kind": "third"}) == both
    assert as_read({Rooted}, [{"kind": "first", "lr": 1}]) == (
        [{"type": "first", "learningRate": 1}]
    )
    assert as_read(both, {"kind": "second", "lr": [1]}) == {"kind": "second", "rate": [1]}


def test_a_root_model_is_its_root() -> None:
    """It has no fields, and values in it are those of its root, at any depth."""
    assert fields(Rooted) == {}
    assert below({Rooted}, "root") == set()
    assert unknown_inside({Rooted}, [{"lr": 1}, {"rl": 1}], "k") == "k.1.rl"


def test_defaults_of_fields() -> None:
    """Of models and dataclasses, made or given; what follows from others has none."""

    class Model(BaseModel):
        n: int
        tags: list[int] = Field(default_factory=list)
        double: int = Field(default_factory=lambda values: values["n"] * 2)
        far: int = Field(default_factory=lambda: int("far"))

    @dataclass
    class Data:
        n: int = 1
        tags: list[int] = field(default_factory=list)

    assert default_of(Model, "tags") == default_of(Data, "tags") == []
    assert default_of(Data, "n") == 1
    nothing = default_of(Model, "double")
    assert default_of(Model, "far") is default_of(dict, "n") is nothing
