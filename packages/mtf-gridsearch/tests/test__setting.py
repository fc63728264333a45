from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, RootModel

from mtf_gridsearch._setting import Setter


class Sgd(BaseModel):
    kind: Literal["sgd"] = Field(default="sgd", alias="type")
    lr: float = Field(default=0.1, alias="learningRate")
    momentum: float = 0.0


class Adam(BaseModel):
    kind: Literal["adam"] = Field(default="adam", alias="type")
    lr: float = Field(default=0.1, alias="rate")
    beta: float = 0.9


class Rates(RootModel[dict[str, float]]):
    pass


class Config(BaseModel):
    opt: Annotated[Sgd | Adam, Field(discriminator="kind")] = Sgd()
    some: dict[str, Any] | None = Field(default=None, alias="Some")
    rates: Rates = Rates({})


def test_keys_are_written_as_they_are_read() -> None:
    """By alias at each level where the base is, else by name; each place has its key."""
    values: dict[str, Any] = {"opt": {"type": "sgd"}}
    ways = Setter(Config(), by_alias=True).set(values, {"opt.lr": 0.5, "some.a.b": [1]})
    assert values == {
        "opt": {"type": "sgd", "learningRate": 0.5},
        "Some": {"a": {"b": [1]}},
    }
    assert {key: [part for part, _ in way] for key, way in ways.items()} == {
        "opt.lr": ["opt", "learningRate"],
        "some.a.b": ["Some", "a", "b"],
    }
    values = {}
    Setter(Config(), by_alias=False).set(values, {"opt.lr": 0.5, "some": {"a": 1}})
    assert values == {"opt": {"lr": 0.5}, "some": {"a": 1}}


@pytest.mark.parametrize("order", [1, -1])
def test_another_member_of_a_union_gets_what_both_have(order: int) -> None:
    """Under the keys that it reads, whatever the order of the parameters."""
    values: dict[str, Any] = {
        "opt": {"type": "sgd", "learningRate": 0.5, "momentum": 0.9}
    }
    parameters = {"opt.kind": "adam", "opt.beta": 0.1}
    given = dict(list(parameters.items())[::order])
    Setter(Config(), by_alias=True).set(values, given)
    assert values == {"opt": {"type": "adam", "rate": 0.5, "beta": 0.1}}


def test_a_tag_that_no_member_has_takes_nothing() -> None:
    """The class says what is wrong with it."""
    values: dict[str, Any] = {"opt": {"type": "sgd", "learningRate": 0.5}}
    Setter(Config(), by_alias=True).set(values, {"opt.kind": "none"})
    assert values == {"opt": {"type": "none", "learningRate": 0.5}}


def test_what_is_set_is_a_copy() -> None:
    """A parameter that is changed later changes no experiment."""
    given = [1]
    for by_alias in (True, False):
        values: dict[str, Any] = {}
        Setter(Config(), by_alias=by_alias).set(values, {"some.a": given})
        (section,) = values.values()
        assert section["a"] == given
        assert section["a"] is not given


@pytest.mark.parametrize(
    ("key", "value", "unknown", "reason"),
    [
        ("op.lr", 1, "op.lr", "no such key; did you mean 'opt.lr'?"),
        ("opt.rl", 1, "opt.rl", "no such key"),
        ("opt", {"rl": 1}, "opt.rl", "no such key"),
        ("rates.lr", 1, "rates.lr", "a RootModel: set rates as a whole"),
    ],
)
def test_unknown_keys(key: str, value: Any, unknown: str, reason: str) -> None:
    """They are named, with a hint, each time that they are asked for."""
    setter = Setter(Config(), by_alias=False)
    for _ in range(2):
        fault = setter.unknown(key, value)
        assert fault is not None
        assert fault[0] == unknown
        assert reason in fault[1]
    assert setter.unknown("some.any.key", 1) is setter.unknown("opt.beta", 1) is None
