from __future__ import annotations

from typing import Any

import pytest

from mtf_gridsearch._grid_file import check_sections, fill
from mtf_gridsearch.errors import GridError
from mtf_gridsearch.grid import ParameterGrid


def test_all_sections_are_read() -> None:
    """Listed, linked, conditional and drawn parameters, and what is ruled out or added."""
    grid = ParameterGrid("g")
    sections: dict[str, Any] = {
        "parameters": {
            "a": [1, 2, 3],
            "b + c": {"linked": {"b": [1, 2], "c": [3, 4]}},
            "d": {"values": [True], "only_when": "a == 3"},
        },
        "where": "a + b <= 4",
        "exclude": [{"a": 1}],
        "include": [{"a": 9}],
    }
    check_sections({"name": "g", **sections})
    fill(grid, sections)
    assert list(grid) == [
        {"a": 2, "b": 1, "c": 3},
        {"a": 2, "b": 2, "c": 4},
        {"a": 3, "b": 1, "c": 3, "d": True},
        {"a": 9},
    ]
    drawn = ParameterGrid("g")
    fill(drawn, {"parameters": {"x": {"uniform": [0, 1]}}})
    assert drawn.has_distributions


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"wher": []}, "did you mean 'where'"),
        ({"parameters": [1]}, "lines"),
        ({"exclude": {"a": 1}}, "give a list"),
        ({"parameters": {"a": {"value": [1]}}}, "write one of values"),
        ({"parameters": {"a + b": {"linked": [1]}}}, "below each of the linked"),
    ],
)
def test_what_is_no_section(values: dict[str, Any], reason: str) -> None:
    """The error says what to write."""

    def read() -> None:
        check_sections(values)
        fill(ParameterGrid("g"), values)

    with pytest.raises(GridError, match=reason):
        read()
