from __future__ import annotations

import dataclasses
import enum
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator
from pydantic import dataclasses as pydantic_dataclasses

from mtf_gridsearch._written import (
    differing,
    dumped,
    read_back,
    same,
    written,
    written_keys,
)

ORDERS = ([0, 8], [8, 0])  # which a set gives as they were put in


class Below(BaseModel):
    model_config = ConfigDict(extra="allow")

    tags: set[int] = Field(set(), alias="Tags")


class Names(RootModel[set[int]]):
    pass


@dataclasses.dataclass
class Data:
    tags: set[int]


@pydantic_dataclasses.dataclass
class Checked:
    tags: frozenset[int]


class Everything(BaseModel):
    below: Below
    several: list[Below]
    named: dict[int, set[int]]
    deep: set[frozenset[int]]
    names: Names
    data: Data
    checked: Checked
    pair: tuple[set[int], str]
    some: Any = None


class Unordered(Exception):  # noqa: N818 -- no error of ours
    """What a comparison raises."""


class Sulking:
    def __eq__(self, other: object) -> bool:
        raise Unordered

    __hash__ = None  # type: ignore[assignment]


class Colour(enum.Enum):
    RED = "red"


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    colour: Colour = Colour.RED


def everything(order: list[int]) -> Everything:
    """Return a model with sets wherever they may be."""
    below = Below.model_validate({"Tags": set(order), "extra": set(order)})
    return Everything(
        below=below,
        several=[below],
        named={1: set(order)},
        deep={frozenset(order), frozenset()},
        names=Names(set(order)),
        data=Data(set(order)),
        checked=Checked(frozenset(order)),
        pair=(set(order), "x"),
        some={"a": set(order), "none": set()},
    )


@pytest.mark.parametrize("by_alias", [True, False])
def test_sets_are_written_in_one_order(by_alias: bool) -> None:  # noqa: FBT001
    """Wherever a set stands, its elements come in the order of their text."""
    one, other = (written(everything(order), by_alias=by_alias) for order in ORDERS)
    assert one == other
    name = "Tags" if by_alias else "tags"
    assert one["below"] == {name: [0, 8], "extra": [0, 8]}
    assert one["several"] == [one["below"]]
    assert one["named"] == {"1": [0, 8]}
    assert one["deep"] == [[0, 8], []]
    assert one["names"] == [0, 8]
    assert one["data"] == one["checked"] == {"tags": [0, 8]}
    assert one["pair"] == [[0, 8], "x"]
    assert one["some"] == {"a": [0, 8], "none": []}


def test_objects_are_left_as_they_are() -> None:
    """As Python, a set is a set."""
    config = Below.model_validate({"Tags": {8, 0}})
    assert written(config, by_alias=False, mode="python") == {"tags": {0, 8}}
    assert dumped(config, by_alias=True) == {"Tags": [8, 0]}


def test_a_strict_model_reads_its_plain_form() -> None:
    """What it takes from JSON alone is read as that; what it refuses is an error."""
    assert read_back(Strict, lambda: {"colour": "red"}) == Strict()
    first = read_back(Strict, lambda: {"colour": "red"}, json_first=True)
    assert first == Strict()
    with pytest.raises(ValueError, match="colour"):
        read_back(Strict, lambda: {"colour": "green"}, json_first=True)


def test_differing_fields_are_named() -> None:
    """Fields and keys that are no fields; not how they were set."""
    one = Below.model_validate({"Tags": {1}, "a": 1, "b": 2})
    assert differing(one, Below.model_validate({"a": 1, "b": 3})) == ["tags", "b"]
    assert differing(one, Below.model_validate({"Tags": [1]})) == ["a", "b"]
    assert differing(Below.model_validate({}), Below.model_validate({"Tags": []})) == []


def test_what_cannot_be_compared_is_not_the_same() -> None:
    """A value that raises is equal to itself alone."""
    value = Sulking()
    assert same(value, value)
    assert not same(value, 1)


@pytest.mark.parametrize(
    ("keys", "written_as"),
    [
        (["a", "b"], ["a", "b"]),
        ([1, 0.5, Colour.RED], ["1", "0.5", "red"]),
        ([1, "1"], ["1", "1"]),
        ([Sulking], [str(Sulking)]),
    ],
)
def test_keys_as_they_are_written(keys: list[Any], written_as: list[str]) -> None:
    """As pydantic writes them; by their text where it cannot, or would write two as one."""
    assert written_keys(dict.fromkeys(keys)) == written_as


def test_values_are_made_anew_for_each_attempt() -> None:
    """A validator that changes what it gets does so to its own alone."""

    class Eager(Strict):
        @model_validator(mode="before")
        @classmethod
        def _take(cls, values: dict[str, Any]) -> dict[str, Any]:
            return {"colour": values.pop("shade")}

    made = read_back(Eager, lambda: {"shade": "red"})
    assert made == Eager.model_validate({"shade": Colour.RED})
    with pytest.raises(KeyError):
        read_back(Eager, lambda: {"colour": "red"})
