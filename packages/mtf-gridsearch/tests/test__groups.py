from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import pytest

from mtf_gridsearch._groups import ABSENT, grouped, value_key


def test_values_that_python_takes_for_equal_are_told_apart() -> None:
    """True is not 1, and the text of a number is no number."""
    cells = [1, True, "1", "true", 1, None, [1], [1], {"a": 1}]
    assert grouped(cells) == [
        ("1", [0, 4]),
        ("true", [1]),
        ("1", [2]),
        ("true", [3]),
        ("null", [5]),
        ("[1]", [6, 7]),
        ('{"a": 1}', [8]),
    ]


def test_numbers_stand_in_their_order_and_before_all_else() -> None:
    """What is absent is a group of its own."""
    cells: list[Any] = [3, ABSENT, 0.5, "x", 3, ABSENT]
    assert grouped(cells) == [
        ("0.5", [2]),
        ("3", [0, 4]),
        ("(absent)", [1, 5]),
        ("x", [3]),
    ]


@pytest.mark.parametrize("count", [9, 10, 64, 101])
def test_many_numbers_are_cut_into_ranges_of_about_equal_size(count: int) -> None:
    """Each number is in one of up to eight ranges, which do not overlap."""
    cells = [((i * 37) % count) / 10 for i in range(count)]
    groups = grouped(cells)
    assert len(groups) <= 8
    assert sorted(i for _, members in groups for i in members) == list(range(count))
    ends = [(min(cells[i] for i in m), max(cells[i] for i in m)) for _, m in groups]
    assert all(before[1] < after[0] for before, after in pairwise(ends))
    sizes = [len(members) for _, members in groups]
    assert max(sizes) - min(sizes) <= math.ceil(count / 8)


def test_equal_numbers_stay_in_one_range() -> None:
    """A range of one number is called by it."""
    cells = [0.0] * 50 + [float(i) for i in range(1, 10)]
    groups = grouped(cells)
    assert groups[0] == ("0", list(range(50)))
    assert len(groups) > 1


def test_keys_of_what_is_no_number_are_equal() -> None:
    """Every NaN is one value; what is absent is one object."""
    assert value_key(math.nan) == value_key(-math.nan)
    assert value_key(copy.copy(ABSENT)) != value_key(None)
    assert value_key(1) != value_key(1.0)
