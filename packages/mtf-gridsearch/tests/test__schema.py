from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

from mtf_gridsearch._schema import below, fields, schema_keys, unknown_inside


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
