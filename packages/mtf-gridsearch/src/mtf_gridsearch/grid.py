"""`ParameterGrid`: which combinations of parameters a search tries.

Relied on for: combinations come in lexicographic order, the last parameter changing
fastest; a condition, a constraint or an exclusion only leaves some out. They are counted,
reached by number and drawn without being listed: memory depends on the values given and
on how conditions and constraints tie parameters together, not on the number of
combinations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from mtf_gridsearch._axis import (
    RESERVED,
    Axis,
    axis_to_plain,
    check_apart,
    make_axis,
    nested,
)
from mtf_gridsearch._combined import (
    Choose,
    Combination,
    Grid,
    GridProduct,
    GridSum,
    turn,
)
from mtf_gridsearch._grid_file import check_sections, fill
from mtf_gridsearch._layers import codes_of, count_paths, exclusion_of
from mtf_gridsearch._paths import Paths, TooManyStepsError
from mtf_gridsearch._plain import check_key, nearest, plain, shown
from mtf_gridsearch.distributions import Distribution
from mtf_gridsearch.errors import GridError, NamingError
from mtf_gridsearch.expression import Expression, parse
from mtf_gridsearch.identity import canonical, identity_of
from mtf_gridsearch.naming import check_name

__all__ = ["Axis", "Combination", "Grid", "ParameterGrid"]

_MAX_AXES = 300


class ParameterGrid(Grid):
    """Every combination of the values of its parameters, less what is ruled out.

    Args:
        name: What messages and results call it: at most 128 letters, digits, dots,
            dashes and underscores.
        description: What it is for.

    Raises:
        GridError: If *name* is none.

    >>> grid = ParameterGrid("size").add_parameter("model.type", ["mlp", "linear"])
    >>> _ = grid.add_parameter("depth", [1, 2], only_when="model.type == 'mlp'")
    >>> len(grid), grid[2]
    (3, {'model.type': 'linear'})
    """

    def __init__(self, name: str, description: str = "") -> None:
        try:
            self._name = check_name(name)
        except NamingError as error:
            place = "grid"
            raise GridError(place, str(error)) from None
        self.description = str(plain(description, f"{name}: description"))
        self._axes: list[Axis] = []
        self._constraints: list[Expression] = []
        self._excluded: list[Combination] = []
        self._included: dict[str, Combination] = {}
        self._built: tuple[Paths, list[Combination]] | None = None
        self._refusal = ""  # why it cannot be built; found once

    @property
    def name(self) -> str:
        """What messages and results call it."""
        return self._name

    @property
    def keys(self) -> tuple[str, ...]:
        """Every parameter that a combination may have, in order."""
        keys = [key for axis in self._axes for key in axis.keys]
        added = [key for each in self._included.values() for key in each]
        return tuple(dict.fromkeys(keys + added))

    @property
    def has_distributions(self) -> bool:
        """Whether a parameter is drawn, so that combinations cannot be counted."""
        return any(axis.distribution is not None for axis in self._axes)

    @property
    def included(self) -> tuple[Combination, ...]:
        """The combinations that were added explicitly."""
        return tuple(self._included.values())

    def add_parameter(
        self,
        key: str,
        values: Sequence[Any] | Distribution,
        *,
        only_when: str | None = None,
    ) -> Self:
        """Try each of *values* for the parameter *key*.

        Args:
            key: Dotted, as in ``optimizer.lr``.
            values: A list, or a distribution to draw from.
            only_when: A condition on parameters added before; where it does not hold,
                or names a parameter that does not apply, combinations lack *key*.

        Raises:
            GridError: If *key* is none or stands already; if *values* is empty, no
                list, or has a value twice; if the condition cannot be read.
        """
        return self._add([self._axis({key: values}, only_when)])

    def add_nested_parameter(
        self, prefix: str, parameters: Mapping[str, Any], *, only_when: str | None = None
    ) -> Self:
        """Add parameters below *prefix*; mappings among the values nest further.

        >>> ParameterGrid("a").add_nested_parameter("m", {"x": [1], "y": {"z": [2]}})[0]
        {'m.x': 1, 'm.y.z': 2}

        Raises:
            GridError: As `add_parameter`.
        """
        pairs = list(nested(prefix, parameters, self._name))
        return self._add([self._axis({k: v}, only_when) for k, v in pairs])

    def add_linked(
        self, parameters: Mapping[str, Sequence[Any]], *, only_when: str | None = None
    ) -> Self:
        """Let parameters change together: first values with first, and so on.

        >>> list(ParameterGrid("a").add_linked({"x": [1, 2], "y": [3, 4]}))
        [{'x': 1, 'y': 3}, {'x': 2, 'y': 4}]

        Raises:
            GridError: As `add_parameter`; or if the lists differ in length.
        """
        return self._add([self._axis(parameters, only_when, is_linked=True)])

    def where(self, constraint: str) -> Self:
        """Keep only combinations for which *constraint* holds.

        It may name any parameter added before. A combination in which a parameter does
        not apply that decides the answer is kept.

        Raises:
            GridError: If it cannot be read, or names an unknown parameter or none.
        """
        expression = self._condition(
            constraint, [k for axis in self._axes for k in axis.keys]
        )
        if not expression.names:
            raise GridError(self._name, f"{constraint!r} names no parameter")
        self._constraints.append(expression)
        self._built, self._refusal = None, ""
        return self

    def exclude(self, combination: Mapping[str, Any]) -> Self:
        """Leave out every combination that has all these values.

        Raises:
            GridError: If it names an unknown parameter, or values that are not tried.
        """
        values = self._combination(combination, "exclude")
        exclusion_of(self._axes, values, self._name)
        self._excluded.append(values)
        self._built, self._refusal = None, ""
        return self

    def include(self, *combinations: Mapping[str, Any]) -> Self:
        """Add whole combinations, at the end; one that is there already is not doubled.

        They may have any parameters, and are kept whatever is excluded.

        Raises:
            GridError: If one is empty or given twice, or its parameters do not go
                together.
        """
        added = dict(self._included)
        for each in combinations:
            values = self._combination(each, "include")
            check_apart(list(values), (), f"{self._name}: include")
            identity = identity_of(values)
            if identity in added:
                raise GridError(self._name, f"{shown(values)} is included twice")
            added[identity] = values
        self._included = added
        self._built, self._refusal = None, ""
        return self

    def draw(self, choose: Choose) -> Combination | None:
        """Make one combination by asking *choose* for each axis that applies, in order.

        Returns:
            The combination, or None if a constraint or an exclusion forbids it. Of a grid
            without parameters, one of those that were added.

        Raises:
            ExpressionError: If a condition or constraint cannot be evaluated.
        """
        if not self._axes:
            return self._draw_any(choose)
        values: Combination = {}
        for axis in self._axes:
            if axis.only_when is not None and not axis.only_when.evaluate(values):
                continue
            chosen = choose(axis)
            is_drawn = axis.distribution is not None
            row = (plain(chosen, axis.label),) if is_drawn else axis.values[chosen]
            values.update(zip(axis.keys, row, strict=True))
        if not all(c.evaluate(values, absent=True) for c in self._constraints):
            return None
        for excluded in self._excluded:
            if all(_has(values, key, value) for key, value in excluded.items()):
                return None
        return values

    def _draw_any(self, choose: Choose) -> Combination | None:
        if not self._included:
            return self.draw(choose) if self._axes else None
        listed = [dict(each) for each in self._included.values()]
        index = choose(turn(self._name, len(listed) + bool(self._axes)))
        return listed[index] if index < len(listed) else self.draw(choose)

    def __copy__(self) -> Self:
        """Return a grid to which may be added what this one is not to have."""
        other = type(self).__new__(type(self))
        for name, value in vars(self).items():
            setattr(other, name, value.copy() if isinstance(value, list) else value)
        return other

    def to_plain(self) -> dict[str, Any]:
        """Return what stands in a file; `from_plain` reads it."""
        result: dict[str, Any] = {"name": self._name}
        if self.description:
            result["description"] = self.description
        result["parameters"] = {axis.label: axis_to_plain(axis) for axis in self._axes}
        lists = {
            "where": [constraint.text for constraint in self._constraints],
            "exclude": self._excluded,
            "include": list(self._included.values()),
        }
        return plain(result | {k: v for k, v in lists.items() if v}, self._name)  # type: ignore[no-any-return]

    @staticmethod
    def from_plain(values: Any, place: str = "grid") -> Grid:
        """Return the grid that `to_plain` wrote, combined grids included.

        Args:
            values: Plain values, as read from YAML.
            place: What messages call them.

        Raises:
            GridError: If they describe no grid.
        """
        if not isinstance(values, Mapping):
            raise GridError(place, "is no grid: write a mapping with name and parameters")
        for word, combine in _COMBINED.items():
            if word in values:
                parts = values[word]
                if len(values) > 1 or not isinstance(parts, list) or not parts:
                    raise GridError(place, f"write `{word}:` and a list of grids alone")
                read = [
                    ParameterGrid.from_plain(part, f"{place}: {word}[{i}]")
                    for i, part in enumerate(parts)
                ]
                return combine(*read) if len(read) > 1 else read[0]
        try:
            check_sections(values)
            grid = ParameterGrid(values.get("name", ""), values.get("description", ""))
            fill(grid, values)
        except GridError as error:
            place = f"{place}: {error.place}"
            raise type(error)(place, error.reason) from None
        return grid

    def __contains__(self, combination: object) -> bool:
        self._check_listed()
        if not isinstance(combination, Mapping) or not combination:
            return False
        paths, added = self._build()
        values = self._combination(combination, "in")
        codes = codes_of(self._axes, values)
        is_path = bool(self._axes) and codes is not None and paths.has(codes)
        return is_path or identity_of(values) in map(identity_of, added)

    def _count(self) -> int:
        paths, added = self._build()
        return (paths.count if self._axes else 0) + len(added)

    def _at(self, index: int) -> Combination:
        paths, added = self._build()
        count = paths.count if self._axes else 0
        return paths.at(index) if index < count else dict(added[index - count])

    def _all(self) -> Iterator[Combination]:
        paths, added = self._build()
        if self._axes:
            yield from paths.all()
        yield from map(dict, added)

    def _build(self) -> tuple[Paths, list[Combination]]:
        if self._built is None and self._refusal:  # which took long to find
            raise GridError(self._name, self._refusal)
        if self._built is None:
            exclusions = [
                exclusion_of(self._axes, each, self._name) for each in self._excluded
            ]
            try:
                paths = count_paths(self._axes, self._constraints, exclusions)
            except TooManyStepsError:
                self._refusal = (
                    "its conditions and constraints tie too many values together: write "
                    "them over fewer parameters, add parameters that are tied next to each "
                    "other, or include what you want to try"
                )
                raise GridError(self._name, self._refusal) from None
            added = [
                each
                for each in self._included.values()
                if not self._axes
                or (codes := codes_of(self._axes, each)) is None
                or not paths.has(codes)
            ]
            self._built = paths, added
        return self._built

    def _add(self, axes: list[Axis]) -> Self:
        known = [key for axis in self._axes for key in axis.keys]
        check_apart([key for axis in axes for key in axis.keys], known, self._name)
        if len(self._axes) + len(axes) > _MAX_AXES:
            raise GridError(self._name, f"has more than {_MAX_AXES} parameters")
        self._axes += axes
        self._built, self._refusal = None, ""
        return self

    def _axis(
        self,
        parameters: Mapping[str, Any],
        only_when: str | None,
        *,
        is_linked: bool = False,
    ) -> Axis:
        known = [key for axis in self._axes for key in axis.keys]
        when = None if only_when is None else self._condition(only_when, known)
        return make_axis(parameters, when, self._name, is_linked=is_linked)

    def _condition(self, text: str, known: Sequence[str]) -> Expression:
        expression = parse(text)
        for name in expression.names:
            if name not in known:
                message = f"names {name!r}, which is no parameter added before it"
                place = f"{self._name}: {text}"
                unquoted = [key for key in known if "-" in key and key in text]
                hint = nearest(name, known)
                if unquoted:
                    hint = f": write {unquoted[0]} in backticks"
                raise GridError(place, message + hint)
        return expression

    def _combination(self, combination: Mapping[str, Any], word: str) -> Combination:
        place = f"{self._name}: {word}"
        given: object = combination
        if not isinstance(given, Mapping) or not given:
            message = f"{shown(combination)} is no combination: give {{parameter: value}}"
            raise GridError(place, message)
        if RESERVED in combination:
            raise GridError(place, f"{RESERVED} is given by the search: take it away")
        return {check_key(k, place): plain(v, place) for k, v in combination.items()}


def _has(values: Combination, key: str, value: Any) -> bool:
    return key in values and canonical(values[key]) == canonical(value)


_COMBINED: dict[str, Callable[..., Grid]] = {
    "concatenated": GridSum,
    "crossed": GridProduct,
}
