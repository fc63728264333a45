from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from mtf_gridsearch._form import Form, Forms
from mtf_gridsearch._written import written


def forms(config: BaseModel, *, by_alias: bool = False) -> Forms:
    """Return the forms of *config*."""
    kind = type(config)
    plain = written(config, by_alias=by_alias)
    same = kind.model_validate(plain)

    def read(text: str) -> BaseModel:
        return kind.model_validate(json.loads(text))

    return Forms(config, plain, same, read, by_alias=by_alias)


def into(config: BaseModel, *sections: str, by_alias: bool = False) -> Form:
    """Return the form of *config* to set in *sections*."""
    paths = {tuple(section.split(".")) for section in sections}
    return forms(config, by_alias=by_alias).into(frozenset(paths))


def values(config: BaseModel, *sections: str, by_alias: bool = False) -> Any:
    """Return the values of that form."""
    return json.loads(into(config, *sections, by_alias=by_alias).text or "null")


class Inner(BaseModel):
    n: int = 1
    tags: list[str] = ["a"]


@dataclasses.dataclass
class Data:
    n: int = 1
    more: list[int] = dataclasses.field(default_factory=list)


class Model(BaseModel):
    model_config = ConfigDict(extra="allow", validate_by_name=True)

    kind: Literal["a", "b"] = "b"
    n: int = Field(default=1, alias="number")
    inner: Inner = Inner()
    inners: list[Inner] = []
    named: dict[int, Inner] = {}
    data: Data = Data()
    double: int = Field(default_factory=lambda values: values["n"] * 2)


def test_what_was_set_is_there() -> None:
    """And what chooses a member of a union; no default, and nothing that follows."""
    assert values(Model()) == {"kind": "b"}
    config = Model.model_validate({"number": 3, "more": [1], "inner": {"n": 1}})
    assert values(config) == {"kind": "b", "n": 3, "inner": {"n": 1}, "more": [1]}
    assert values(config, by_alias=True)["number"] == 3


def test_sections_are_there_to_be_set_in() -> None:
    """With what was set there, at every level; others are as they were."""
    config = Model(inner=Inner(tags=["b"]))
    assert values(config, "inner", "data") == {
        "kind": "b",
        "inner": {"tags": ["b"]},
        "data": {"n": 1, "more": []},
    }
    assert values(Model(), "inner") == {"kind": "b", "inner": {}}


def test_what_was_changed_in_a_default_is_there() -> None:
    """A section that was never set may have been changed in place."""
    model = Model()
    model.inner.n = 5
    model.double = 3
    assert values(model) == {"kind": "b", "inner": {"n": 5}, "double": 3}


def test_sections_in_lists_and_mappings_are_the_least_too() -> None:
    """Each element has what was set there."""
    config = Model(inners=[Inner(n=2), Inner()], named={1: Inner(n=3)})
    assert values(config) == {
        "kind": "b",
        "inners": [{"n": 2}, {}],
        "named": {"1": {"n": 3}},
    }


def test_a_class_that_needs_all_gets_all() -> None:
    """Whatever is in the way, the class reads the base."""

    class Needs(BaseModel):
        a: int = 1
        b: int = 2

        @model_validator(mode="before")
        @classmethod
        def _check(cls, values: Any) -> Any:
            if "b" not in values:
                raise KeyError("b")  # noqa: EM101 - as careless code does
            return values

    assert values(Needs.model_construct(a=1)) == {"a": 1, "b": 2}


class Filled(BaseModel):
    n: int = 10
    given: dict[str, int] = {}
    half: int | None = None
    own: Inner | None = None

    @model_validator(mode="after")
    def _fill(self) -> Filled:
        if self.half is None:
            self.half = self.n // 2
        if self.own is None:
            self.own = Inner(n=self.n)
        self.given.setdefault("third", self.n // 3)
        return self


def test_what_the_class_makes_again_is_left_out() -> None:
    """Fields, sections and keys of mappings; what was set to something else is kept."""
    form = into(Filled(given={"a": 1}))
    assert {("half",), ("own",), ("given", "third")} <= form.out
    assert json.loads(form.text or "") == {"given": {"a": 1}}
    assert json.loads(form.kept or "") == {
        "given": {"a": 1, "third": 3},
        "half": 5,
        "own": {"n": 10},
    }
    kept = into(Filled(half=1, own=Inner(n=2), given={"third": 1}))
    assert not {("half",), ("own",), ("given", "third")} & kept.out


def test_what_is_kept_in_a_section_made_as_a_whole_is_told() -> None:
    """It would be another if the section were not set in."""
    form = into(Filled(), "own")
    assert form.frozen == (("own", "own.n"),)
    assert into(Filled(own=Inner(n=2)), "own").frozen == ()
    assert into(Model(), "inner", "data").frozen == ()


def test_a_form_is_made_once() -> None:
    """The same sections have the same form."""
    made = forms(Model())
    sections = frozenset({("inner",)})
    assert made.into(sections) is made.into(sections)


@pytest.mark.parametrize("n", [1, 2])
def test_a_class_that_reads_the_base_as_another_has_no_form(n: int) -> None:
    """And the form says where."""

    class Turned(BaseModel):
        inner: Inner = Inner()

    config = Turned(inner=Inner(n=n))
    other = Turned(inner=Inner(n=3))
    plain = written(config, by_alias=False)
    made = Forms(config, plain, config, lambda _: other, by_alias=False)
    form = made.into(frozenset())
    assert (form.text, form.wrong) == (None, ("inner", "n"))


class Picky(BaseModel):
    some: dict[str, int] = {}
    odd: Any = None

    @model_validator(mode="before")
    @classmethod
    def _check(cls, values: Any) -> Any:
        if values.get("some") == {}:
            raise KeyError("some")  # noqa: EM101 - as careless code does
        return values


def test_a_mapping_that_the_class_refuses_empty_is_kept() -> None:
    """Then it is not known to fill it."""
    form = into(Picky(some={"a": 1}), "some")
    assert json.loads(form.text or "") == {"some": {"a": 1}}


def test_what_has_no_plain_form_by_itself_has_none() -> None:
    """A section written as a text may hold anything."""

    class Told(BaseModel):
        value: Any = None

        @model_serializer
        def _tell(self) -> str:
            return "told"

        @model_validator(mode="before")
        @classmethod
        def _read(cls, values: Any) -> Any:
            return {"value": len} if values == "told" else values

    class Holding(BaseModel):
        told: Told = Told()

    config = Holding(told=Told(value=len))
    assert values(config) == {"told": "told"}
    assert into(config, "told").text is None
