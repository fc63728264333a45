"""One expression over many values of one name at once, where that gives the same answers.

An operand is a column, with a value for each row, or a single value that all rows share, so
that what does not depend on the name is computed once. Only what cannot go wrong is taken
here: numbers that stay finite, text, true and false, each with its like. All else raises
`NotInColumnsError`, and is to be computed row by row, which finds the same or an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

__all__ = [
    "Columns",
    "NotInColumnsError",
    "Operand",
    "combined",
    "mapped",
    "operand",
    "shared",
]

_NUMBERS = frozenset({int, float})
_KINDS = (frozenset({bool}), frozenset({str}))
_LIMIT = 1e300


class NotInColumnsError(Exception):
    """It must be computed row by row."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A column, or a single value.

    Attributes:
        values: One a row; of a single value, the one.
        kind: float for all numbers, bool, str; object for a single value that is none.
        is_single: Whether all rows share the value.
    """

    values: Sequence[Any]
    kind: type
    is_single: bool = False

    def rows(self) -> Iterable[Any]:
        """Return its value in each row; for a single one, without end."""
        return repeat(self.values[0]) if self.is_single else self.values


Columns = Mapping[str, Operand]


def operand(values: Sequence[Any]) -> Operand:
    """Return a column of *values*.

    Raises:
        NotInColumnsError: If they are of several kinds, or not finite.
    """
    return Operand(values, _kind(values))


def shared(value: Any) -> Operand:
    """Return what has *value* in each row.

    Raises:
        NotInColumnsError: If it is a number that is not finite.
    """
    is_plain = isinstance(value, bool | str | int | float)
    return Operand((value,), _kind((value,)) if is_plain else object, is_single=True)


def combined(
    compute: Callable[..., Any], operands: Sequence[Operand], *kinds: type
) -> Operand:
    """Return *compute* of each row's values; all operands must be of one of *kinds*.

    Raises:
        NotInColumnsError: If they are of others, or a row has no answer.
    """
    kind = operands[0].kind
    if kind not in kinds or any(each.kind is not kind for each in operands):
        raise NotInColumnsError
    return mapped(compute, operands)


def mapped(compute: Callable[..., Any], operands: Sequence[Operand]) -> Operand:
    """Return *compute* of each row's values, whatever they are.

    Raises:
        NotInColumnsError: If a row has no answer.
    """
    try:
        if all(each.is_single for each in operands):
            return shared(compute(*(each.values[0] for each in operands)))
        return operand(list(map(compute, *(each.rows() for each in operands))))
    except Exception:  # noqa: BLE001 -- whatever it is, the row itself will tell
        raise NotInColumnsError from None


def _kind(values: Sequence[Any]) -> type:
    kinds = frozenset(map(type, values))
    if kinds <= _NUMBERS:
        if not values or (max(values) < _LIMIT and min(values) > -_LIMIT):
            return float
    elif kinds in _KINDS:
        return next(iter(kinds))
    raise NotInColumnsError
