from __future__ import annotations

import ast

import pytest

from mtf_gridsearch._operators import (
    ARITHMETIC,
    COMPARE,
    PLAIN_EQUAL,
    PLAIN_ORDER,
    RefusedError,
    number,
    truth,
)


def test_true_is_no_number() -> None:
    """A truth is asked for where one is wanted, and a number where one is."""
    assert truth(True) is True  # noqa: FBT003 -- the value itself
    assert number(0.5) == 0.5
    for check, value in ((truth, 1), (number, True), (number, "1")):
        with pytest.raises(RefusedError):
            check(value)
    assert not COMPARE[ast.Eq](1, True)  # noqa: FBT003
    assert not COMPARE[ast.In](1, [True])
    assert COMPARE[ast.NotEq](0, False)  # noqa: FBT003


@pytest.mark.parametrize("operator", [*PLAIN_ORDER, *PLAIN_EQUAL])
def test_plain_operators_do_the_same(operator: type[ast.cmpop]) -> None:
    """Of values of one kind, the fast ones and the careful ones agree."""
    plain = (PLAIN_ORDER | PLAIN_EQUAL)[operator]
    for pair in ((1, 2), (2, 1.5), (3, 3.0), ("a", "b"), ("b", "b")):
        assert plain(*pair) is COMPARE[operator](*pair)


def test_what_has_no_order() -> None:
    """Text and numbers, truths and lists are neither smaller nor larger."""
    for pair in ((1, "a"), (True, 2), ([1], [2]), (None, 1)):
        with pytest.raises(RefusedError):
            COMPARE[ast.Lt](*pair)
    with pytest.raises(RefusedError):
        COMPARE[ast.In](1, 2)


def test_powers_are_bounded() -> None:
    """A number that would fill memory is not computed."""
    assert ARITHMETIC[ast.Pow](2, 10) == 1024
    with pytest.raises(OverflowError):
        ARITHMETIC[ast.Pow](10, 10**9)
