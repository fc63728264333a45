"""A grid as it stands in a file: plain values, read into a `ParameterGrid`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from mtf_gridsearch import distributions
from mtf_gridsearch._plain import nearest, shown
from mtf_gridsearch.errors import GridError

__all__ = ["Fillable", "check_sections", "fill"]

_SECTIONS = ("name", "description", "parameters", "where", "exclude", "include")


class Fillable(Protocol):
    """A `mtf_gridsearch.grid.ParameterGrid`, as this module sees it."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def add_parameter(
        self, key: str, values: Any, *, only_when: str | None = None
    ) -> object:
        """Add one parameter."""

    def add_linked(
        self, parameters: Mapping[str, Any], *, only_when: str | None = None
    ) -> object:
        """Add parameters that change together."""

    def where(self, constraint: str) -> object:
        """Add a constraint."""

    def exclude(self, combination: Mapping[str, Any]) -> object:
        """Leave a combination out."""

    def include(self, *combinations: Mapping[str, Any]) -> object:
        """Add whole combinations."""


def check_sections(values: Mapping[str, Any]) -> None:
    """Check that a grid has no other sections than there are.

    Raises:
        GridError: If it has.
    """
    if unknown := [key for key in values if key not in _SECTIONS]:
        message = f"{unknown[0]!r} is not known{nearest(unknown[0], _SECTIONS)}"
        place = "grid"
        raise GridError(place, message)


def fill(grid: Fillable, values: Mapping[str, Any]) -> None:
    """Add to *grid* what stands in its sections.

    Raises:
        GridError: If one is wrong.
    """
    parameters = values.get("parameters", {})
    if not isinstance(parameters, Mapping):
        place = f"{grid.name}: parameters"
        raise GridError(place, "write `optimizer.lr: [0.1, 0.2]` lines")
    for key, given in parameters.items():
        _read_parameter(grid, key, given)
    where = values.get("where", [])
    for constraint in [where] if isinstance(where, str) else _list(where, grid, "where"):
        grid.where(constraint)
    for combination in _list(values.get("exclude", []), grid, "exclude"):
        grid.exclude(combination)
    grid.include(*_list(values.get("include", []), grid, "include"))


def _list(values: Any, grid: Fillable, word: str) -> list[Any]:
    if not isinstance(values, list):
        place = f"{grid.name}: {word}"
        raise GridError(place, f"give a list, not {shown(values)}")
    return values


def _read_parameter(grid: Fillable, key: str, given: Any) -> None:
    if not isinstance(given, Mapping):
        grid.add_parameter(key, given)
        return
    place = f"{grid.name}: {key}"
    words = [word for word in given if word != "only_when"]
    known = ("values", "linked", *distributions.WORDS)
    if len(words) != 1 or words[0] not in known:
        raise GridError(place, f"write one of {', '.join(known)}, and perhaps only_when")
    (word,) = words
    only_when = given.get("only_when")
    if word == "linked":
        if not isinstance(given[word], Mapping):
            raise GridError(place, "write a list below each of the linked parameters")
        grid.add_linked(given[word], only_when=only_when)
    elif word == "values":
        grid.add_parameter(key, given[word], only_when=only_when)
    else:
        distribution = distributions.from_plain(word, given[word], place)
        grid.add_parameter(key, distribution, only_when=only_when)
