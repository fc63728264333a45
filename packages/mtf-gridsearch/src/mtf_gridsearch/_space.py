"""A grid as Optuna sees it: suggestions by name, made as the grid is walked.

Each axis of the grid is a parameter of Optuna's: a distribution is one of its own, listed
values are a categorical, linked values one categorical of all. An axis that does not apply
(``only_when``) is not suggested. A grid made of several is a categorical that says which,
and what follows it has names of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from mtf_gridsearch._axis import Axis
from mtf_gridsearch._combined import Combination, Grid
from mtf_gridsearch.distributions import Choice, IntUniform, LogUniform
from mtf_gridsearch.identity import canonical

__all__ = ["Suggested", "recall", "suggest"]

_MAX_WAYS = 64
_MISSED = object()

_Pick: TypeAlias = Callable[[str, Axis, BaseDistribution], Any]
"""Given a name, an axis and its distribution, return what Optuna calls the value."""


@dataclass(slots=True)
class Suggested:
    """A combination by Optuna's names: a value and a distribution each."""

    params: dict[str, Any] = field(default_factory=dict)
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)


def suggest(grid: Grid, trial: Trial) -> Combination | None:
    """Let *trial* choose; None if a constraint or an exclusion forbids the result."""

    def pick(name: str, _: Axis, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, FloatDistribution):
            low, high = distribution.low, distribution.high
            return trial.suggest_float(name, low, high, log=distribution.log)
        if isinstance(distribution, IntDistribution):
            return trial.suggest_int(name, distribution.low, distribution.high)
        assert isinstance(distribution, CategoricalDistribution)  # noqa: S101 -- of three
        return trial.suggest_categorical(name, distribution.choices)

    return _walk(grid, pick)


def recall(grid: Grid, combination: Mapping[str, Any]) -> Suggested:
    """Return what Optuna would have suggested to get *combination*.

    What it could not have suggested, such as a value that is not listed, is left out.
    """
    best: Suggested | None = None
    ways: list[tuple[int, ...]] = [()]
    for _ in range(_MAX_WAYS):
        if not ways:
            break
        walk = _Recall(combination, ways.pop())
        made = _walk(grid, walk.pick)
        ways.extend(walk.other_ways)
        if made is not None and canonical(made) == canonical(combination):
            return walk.found
        if best is None or len(walk.found.params) > len(best.params):
            best = walk.found
    return best or Suggested()


class _Recall:
    """Picks what *combination* has; of several grids, those that *way* says, then the first."""

    def __init__(self, combination: Mapping[str, Any], way: Sequence[int]) -> None:
        self._combination = combination
        self._way = way
        self._num_turns = 0
        self.found = Suggested()
        self.other_ways: list[tuple[int, ...]] = []

    def pick(self, name: str, axis: Axis, distribution: BaseDistribution) -> Any:
        value = self._turn(axis) if not axis.keys else self._value(axis, distribution)
        if value is _MISSED:
            return _any_of(distribution)
        self.found.params[name] = value
        self.found.distributions[name] = distribution
        return value

    def _turn(self, axis: Axis) -> int:
        place = self._num_turns
        self._num_turns += 1
        if place < len(self._way):
            return self._way[place]
        way = (*self._way, *[0] * (place - len(self._way)))
        self.other_ways += [(*way, other) for other in range(1, len(axis.values))]
        return 0

    def _value(self, axis: Axis, distribution: BaseDistribution) -> Any:
        """Return what Optuna calls the value that the combination has."""
        if not all(key in self._combination for key in axis.keys):
            return _MISSED
        values = tuple(self._combination[key] for key in axis.keys)
        if isinstance(distribution, CategoricalDistribution):
            listed = [canonical(each) for each in _values(axis)]
            wanted = canonical(values)
            known = wanted in listed
            return distribution.choices[listed.index(wanted)] if known else _MISSED
        (value,) = values
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and distribution._contains(value):  # noqa: SLF001 -- as Optuna checks
            return value
        return _MISSED


def _walk(grid: Grid, pick: _Pick) -> Combination | None:
    """Draw from *grid* what *pick* says."""
    place = ""

    def choose(axis: Axis) -> Any:
        nonlocal place
        distribution = _distribution(axis)
        name = f"{place}{axis.label}"
        picked = pick(name, axis, distribution)
        if not isinstance(distribution, CategoricalDistribution):
            return picked
        index = _index(distribution.choices, picked)
        if not axis.keys:
            place = f"{name}[{index}] "
        if isinstance(axis.distribution, Choice):
            return axis.distribution.values[index]
        return index

    return grid.draw(choose)


def _values(axis: Axis) -> Sequence[tuple[Any, ...]]:
    if isinstance(axis.distribution, Choice):
        return [(value,) for value in axis.distribution.values]
    return axis.values


def _distribution(axis: Axis) -> BaseDistribution:
    drawn = axis.distribution
    if isinstance(drawn, IntUniform):
        return IntDistribution(drawn.low, drawn.high)
    if drawn is not None and not isinstance(drawn, Choice):
        is_log = isinstance(drawn, LogUniform)
        return FloatDistribution(float(drawn.low), float(drawn.high), log=is_log)
    return CategoricalDistribution(_choices(_values(axis)))


def _choices(values: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Return Optuna's word for each: the value itself, or JSON where that would not do.

    Optuna stores None, booleans, numbers and text, and tells values apart by ``==``.
    """
    bare = [each[0] if len(each) == 1 else each for each in values]
    if all(map(_is_storable, bare)) and len(set(bare)) == len(bare):
        return bare
    return [json.dumps(each) for each in bare]


def _is_storable(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int | str)


def _index(choices: Sequence[Any], picked: Any) -> int:
    return next(i for i, each in enumerate(choices) if each == picked)


def _any_of(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, IntDistribution | FloatDistribution)  # noqa: S101
    return distribution.low
