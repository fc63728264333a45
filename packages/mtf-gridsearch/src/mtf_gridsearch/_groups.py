"""Experiments in groups by the value of a parameter; many numbers are cut into ranges."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Final

from mtf_gridsearch._tables import value_text

__all__ = ["ABSENT", "grouped", "is_number", "value_key"]

_MAX_GROUPS = 8


class _Absent:
    """The type of `ABSENT`."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT: Final = _Absent()
"""Stands for the value of a parameter that an experiment does not have."""


def grouped(cells: Sequence[Any]) -> list[tuple[str, list[int]]]:
    """Return groups of positions in *cells*: a label, and who shares a value.

    Numbers come in their order, all else in the order of first appearance. Numbers with
    more than eight values are cut into up to eight ranges that hold about as many each.

    >>> grouped(["adam", "sgd", "adam"])
    [('adam', [0, 2]), ('sgd', [1])]
    >>> [label for label, _ in grouped(range(16))][:2]
    ['0 to 1', '2 to 3']
    """
    by_value: dict[Hashable, list[int]] = {}
    for index, cell in enumerate(cells):
        by_value.setdefault(value_key(cell), []).append(index)
    numbers = [index for index, cell in enumerate(cells) if is_number(cell)]
    others = [
        members for members in by_value.values() if not is_number(cells[members[0]])
    ]
    if len(by_value) - len(others) > _MAX_GROUPS:
        groups = list(_ranges(cells, numbers))
    else:
        ordered = (
            members for members in by_value.values() if is_number(cells[members[0]])
        )
        groups = [
            (value_text(cells[members[0]]), members)
            for members in sorted(ordered, key=lambda members: cells[members[0]])
        ]
    for members in others:
        cell = cells[members[0]]
        groups.append((repr(ABSENT) if cell is ABSENT else value_text(cell), members))
    return groups


def value_key(cell: Any) -> Hashable:
    """Return what two cells share if they are the same value; to Python, True is 1.

    >>> value_key(1) == value_key(True), value_key("1") == value_key(1)
    (False, False)
    """
    if isinstance(cell, list | dict) or cell != cell:  # noqa: PLR0124 -- no number
        return list, value_text(cell)
    return type(cell), cell


def is_number(cell: Any) -> bool:
    """Whether *cell* has a place on an axis of numbers."""
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _ranges(cells: Sequence[Any], numbers: list[int]) -> Iterator[tuple[str, list[int]]]:
    """Cut *numbers*, positions in *cells*, into ranges; equal numbers stay together."""
    order = sorted(numbers, key=lambda index: cells[index])
    size = len(order) / _MAX_GROUPS
    members: list[int] = []
    cut = size
    for place, index in enumerate(order):
        if members and place >= cut and cells[index] != cells[members[-1]]:
            yield _label(cells, members), members
            members = []
            cut = max(place, cut) + size
        members.append(index)
    yield _label(cells, members), members


def _label(cells: Sequence[Any], members: list[int]) -> str:
    low, high = f"{cells[members[0]]:.3g}", f"{cells[members[-1]]:.3g}"
    return low if low == high else f"{low} to {high}"
