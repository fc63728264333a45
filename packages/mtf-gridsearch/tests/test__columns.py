from __future__ import annotations

import math
import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf_gridsearch._columns import (
    NotInColumnsError,
    combined,
    mapped,
    operand,
    shared,
)
from mtf_gridsearch.errors import ExpressionError
from mtf_gridsearch.expression import parse


def test_a_single_value_goes_with_each_row() -> None:
    """Columns and single values are combined row by row; of single ones there is one result."""
    column = operand([1, 2.5, 3])
    assert combined(operator.add, (column, shared(1)), float).values == [2, 3.5, 4]
    single = combined(operator.add, (shared(1), shared(2)), float)
    assert (single.is_single, single.values) == (True, (3,))
    assert mapped(lambda a, b: a in b, (column, shared([1, 3]))).values == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    "values", [[1, "a"], [True, 1], [None], [[1]], [math.inf], [1e301], [2**2000]]
)
def test_what_might_go_wrong_is_left_to_others(values: list[Any]) -> None:
    """Mixed kinds, and numbers that may leave their range, are no column."""
    with pytest.raises(NotInColumnsError):
        operand(values)


def test_a_row_without_an_answer_has_none_here() -> None:
    """A division by zero, or another kind than was asked for, is found row by row."""
    zeros = operand([1, 0])
    with pytest.raises(NotInColumnsError):
        combined(operator.truediv, (shared(1), zeros), float)
    with pytest.raises(NotInColumnsError):
        combined(operator.add, (shared("a"), operand(["b"])), float)


PARTS = st.recursive(
    st.sampled_from(["x", "y", "z", "s", "t", "w", "0", "2", "0.5", "'a'", "true"]),
    lambda inner: st.one_of(
        st.tuples(
            inner,
            st.sampled_from(
                "+ - * / // % ** == != < <= > >= and or in".split()  # noqa: SIM905
            ),
            inner,
        ).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
        inner.map(lambda p: f"(not {p})"),
        inner.map(lambda p: f"(-{p})"),
        st.lists(inner, min_size=1, max_size=2).map(lambda p: f"[{', '.join(p)}]"),
        st.tuples(inner, inner, inner).map(lambda p: f"({p[0]} < {p[1]} <= {p[2]})"),
    ),
    max_leaves=8,
)
COLUMNS: dict[str, list[Any]] = {"x": [0, 1, 2, -3], "s": list("abca"), "w": [True] * 4}


@given(text=PARTS)
def test_many_at_once_are_what_each_is_alone(text: str) -> None:
    """Whatever the expression: the same answers, or none here and an error there perhaps."""
    expression = parse(text)
    shared_values = {"y": 2, "z": 0.5, "t": "a"}
    columns = {key: operand(values) for key, values in COLUMNS.items()}
    found = expression.evaluate_many(shared_values, columns)
    if found is None:
        return
    for index, answer in enumerate(found):
        row = {key: values[index] for key, values in COLUMNS.items()}
        try:
            alone = expression.evaluate({**shared_values, **row}, absent=True)
        except ExpressionError as error:
            pytest.fail(f"{error} for {row}")
        assert answer is alone


def test_usual_constraints_are_computed_at_once() -> None:
    """Arithmetic, comparisons, membership and logic need no row alone."""
    columns = {key: operand(values) for key, values in COLUMNS.items()}
    for text in (
        "x * y + z <= 2",
        "0 <= x < y and s != 'b'",
        "x in [1, 2] or not s in ['a']",
        "-x > +y or w == true",
        "s + 'a' == 'aa' or x == 1",
    ):
        found = parse(text).evaluate_many({"y": 2, "z": 0.5}, columns)
        assert (found is None) == ("+ 'a'" in text)
    assert parse("y == 2").evaluate_many({"y": 2}, columns) is None
    assert parse("q == x").evaluate_many({}, columns) is None
    assert parse("[x] == [1]").evaluate_many({}, columns) is None
    assert parse("x ** 2 == 1").evaluate_many({}, columns) is None
