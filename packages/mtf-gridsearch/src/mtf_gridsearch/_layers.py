"""From the axes of a grid, its constraints and exclusions to countable paths.

An axis is a layer and its values are the steps. What a later layer has to know of an
earlier one is its state: the choices that a condition or a constraint still asks for, and
the exclusions that still match.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress
from typing import Any

from mtf_gridsearch._axis import Axis
from mtf_gridsearch._columns import NotInColumnsError, Operand, operand
from mtf_gridsearch._paths import Moves, Paths
from mtf_gridsearch._plain import nearest, shown
from mtf_gridsearch.errors import GridError
from mtf_gridsearch.expression import Expression
from mtf_gridsearch.identity import canonical

__all__ = ["ABSENT", "Exclusion", "codes_of", "count_paths", "exclusion_of"]

ABSENT = -1
"""The step of an axis that does not apply; the last fragment of each layer."""

_WORK = 4  # to evaluate a constraint, in steps

State = tuple[tuple[int, ...], frozenset[int]]


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Combinations that are left out: on each of these axes, any of these codes."""

    codes: Mapping[int, frozenset[int]]

    @property
    def first(self) -> int:
        """The axis at which it begins to match."""
        return min(self.codes)

    @property
    def last(self) -> int:
        """The axis at which it has matched."""
        return max(self.codes)


def count_paths(
    axes: Sequence[Axis],
    constraints: Sequence[Expression],
    exclusions: Sequence[Exclusion],
) -> Paths:
    """Return the combinations of *axes* that nothing forbids.

    Raises:
        ExpressionError: If a condition or a constraint cannot be evaluated.
        TooManyStepsError: If they tie the axes together too closely.
    """
    layers = _Layers(axes, constraints, exclusions)
    return Paths(layers.fragments, ((), frozenset()), layers.advance, layers.weigh)


class _Layers:
    """What is known of each layer before the paths are built."""

    def __init__(
        self,
        axes: Sequence[Axis],
        constraints: Sequence[Expression],
        exclusions: Sequence[Exclusion],
    ) -> None:
        self._axes = axes
        self._exclusions = exclusions
        self.fragments = [
            [*(dict(zip(axis.keys, row, strict=True)) for row in axis.values), {}]
            for axis in axes
        ]
        axis_of = {key: i for i, axis in enumerate(axes) for key in axis.keys}
        last_use = [-1] * len(axes)
        self._constraints: list[list[Expression]] = [[] for _ in axes]
        for i, axis in enumerate(axes):
            for name in axis.only_when.names if axis.only_when else ():
                last_use[axis_of[name]] = i
        for constraint in constraints:
            named = [axis_of[name] for name in constraint.names]
            self._constraints[max(named)].append(constraint)
            for i in named:
                last_use[i] = max(last_use[i], *named)
        used = zip(axes, self._constraints, strict=True)
        self._columns = [_columns(axis) if asked else {} for axis, asked in used]
        self._admitted: dict[tuple[int, ...], tuple[int, ...]] = {}  # one of each
        self._live = [
            tuple(i for i in range(layer + 1) if last_use[i] > layer)
            for layer in range(len(axes))
        ]
        self._beginning: list[list[int]] = [[] for _ in axes]
        for number, exclusion in enumerate(exclusions):
            self._beginning[exclusion.first].append(number)

    def weigh(self, layer: int) -> int:
        """Return how much work `advance` is for each state: computing takes the most."""
        return 1 + _WORK * len(self._constraints[layer])

    def advance(self, layer: int, state: Any) -> Moves:
        """Return the steps that are possible in *layer*, and where they lead."""
        codes_before, matching = state
        known = dict(
            zip(self._live[layer - 1] if layer else (), codes_before, strict=True)
        )
        values: dict[str, Any] = {}
        for i, code in known.items():
            values.update(self.fragments[i][code])
        axis = self._axes[layer]
        codes: Sequence[int] = range(len(axis.values))
        if axis.only_when is not None and not axis.only_when.evaluate(values):
            codes = (ABSENT,)
        carried = {n for n in matching if layer not in self._exclusions[n].codes}
        deciding = [*(matching - carried), *self._beginning[layer]]
        constraints = self._constraints[layer]
        live = self._live[layer]
        if (admitted := self._admitted_at_once(layer, values, codes)) is not None:
            codes, constraints = admitted, []
        if not constraints and not deciding and layer not in live:
            return Moves(codes, [(tuple(known[i] for i in live), frozenset(carried))])

        matched: dict[int, list[int]] = {}
        for number in deciding:
            for code in self._exclusions[number].codes[layer]:
                matched.setdefault(code, []).append(number)
        taken: list[int] = []
        states: list[Hashable] = []
        for code in codes:
            hit = matched.get(code, ())
            if any(self._exclusions[n].last == layer for n in hit):
                continue
            here = values | self.fragments[layer][code] if constraints else values
            if not all(c.evaluate(here, absent=True) for c in constraints):
                continue
            known[layer] = code
            taken.append(code)
            states.append((tuple(known[i] for i in live), frozenset(carried.union(hit))))
        return Moves(taken, states)

    def _admitted_at_once(
        self, layer: int, values: Mapping[str, Any], codes: Sequence[int]
    ) -> tuple[int, ...] | None:
        """Return the codes that constraints admit; None if each code must be asked alone."""
        columns = self._columns[layer]
        if not columns or ABSENT in codes:
            return None
        answers = []
        for constraint in self._constraints[layer]:
            found = constraint.evaluate_many(values, columns)
            if found is None:
                return None
            answers.append(found)
        admitted = tuple(compress(codes, map(all, zip(*answers, strict=True))))
        return self._admitted.setdefault(admitted, admitted)


def _columns(axis: Axis) -> dict[str, Operand]:
    """Return the values of each parameter of *axis* that can be computed with at once."""
    found = {}
    for key, values in zip(axis.keys, zip(*axis.values, strict=True), strict=False):
        with suppress(NotInColumnsError):
            found[key] = operand(values)
    return found


def exclusion_of(
    axes: Sequence[Axis], combination: Mapping[str, Any], grid: str
) -> Exclusion:
    """Return what leaves out all that has the values of *combination*.

    Raises:
        GridError: If that is nothing.
    """
    codes: dict[int, frozenset[int]] = {}
    place = f"{grid}: exclude {shown(combination)}"
    columns = {
        key: (i, axis, axis.keys.index(key))
        for i, axis in enumerate(axes)
        for key in axis.keys
    }
    for key, value in combination.items():
        if key not in columns:
            message = f"{key!r} is no parameter added before it"
            raise GridError(place, message + nearest(key, columns))
        i, axis, column = columns[key]
        if axis.distribution is not None:
            raise GridError(place, f"{key} is drawn, not listed: use where")
        text = canonical(value)
        rows = enumerate(axis.values)
        hits = {code for code, row in rows if canonical(row[column]) == text}
        if i in codes:
            hits &= codes[i]
        if not hits:
            message = f"{shown(value)} is no value of {key}: nothing is left out"
            raise GridError(place, message)
        codes[i] = frozenset(hits)
    return Exclusion(codes)


def codes_of(axes: Sequence[Axis], combination: Mapping[str, Any]) -> list[int] | None:
    """Return which choice *combination* is on each axis; None if it is none."""
    codes = []
    num_keys = 0
    for axis in axes:
        held = [key for key in axis.keys if key in combination]
        if not held:
            codes.append(ABSENT)
            continue
        if len(held) < len(axis.keys):
            return None
        num_keys += len(held)
        text = canonical([combination[key] for key in axis.keys])
        rows = enumerate(axis.values)
        code = next((i for i, row in rows if canonical(row) == text), None)
        if code is None:
            return None
        codes.append(code)
    return codes if num_keys == len(combination) else None
