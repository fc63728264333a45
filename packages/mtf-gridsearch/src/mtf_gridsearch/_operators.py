"""What the operators of conditions do, and to what: a part of `mtf_gridsearch.expression`.

Numbers have an order, and so have texts; true and false are no numbers.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from mtf_gridsearch._plain import shown

__all__ = [
    "ARITHMETIC",
    "COMPARE",
    "MAX_BITS",
    "PLAIN_EQUAL",
    "PLAIN_ORDER",
    "UNARY",
    "RefusedError",
    "number",
    "truth",
]

MAX_BITS = 4096


class RefusedError(Exception):
    """A step cannot be taken; the message says why."""


def truth(value: Any) -> bool:
    """Return *value* if it is true or false."""
    if not isinstance(value, bool):
        message = f"{shown(value)} is neither true nor false: write a comparison"
        raise RefusedError(message)
    return value


def number(value: Any) -> Any:
    """Return *value* if it is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        message = f"{shown(value)} is not a number, and + - * / // % ** take only those"
        raise RefusedError(message)
    return value


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0:
        size = base.bit_length() * exponent
        if size > 2 * MAX_BITS:
            raise OverflowError
    return base**exponent


def _equal(left: Any, right: Any) -> bool:
    # To Python True is 1; in a config it is not.
    return isinstance(left, bool) is isinstance(right, bool) and bool(left == right)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def run(left: Any, right: Any) -> bool:
        if not (isinstance(left, str) and isinstance(right, str)):
            _check_ordered(left)
            _check_ordered(right)
            if isinstance(left, str) or isinstance(right, str):
                message = f"{shown(left)} and {shown(right)} have no order"
                raise RefusedError(message)
        return compare(left, right)

    return run


def _check_ordered(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        message = f"{shown(value)} is neither smaller nor larger than anything"
        raise RefusedError(message)


def _contains(left: Any, right: Any) -> bool:
    if isinstance(right, list):
        return any(_equal(left, item) for item in right)
    if isinstance(left, str) and isinstance(right, str):
        return left in right
    message = f"{shown(right)} is no list to look for {shown(left)} in"
    raise RefusedError(message)


ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
# Of numbers, of text, and of true and false, each with its like.
PLAIN_EQUAL: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
PLAIN_ORDER: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: _equal,
    ast.NotEq: lambda left, right: not _equal(left, right),
    ast.Lt: _ordered(operator.lt),
    ast.LtE: _ordered(operator.le),
    ast.Gt: _ordered(operator.gt),
    ast.GtE: _ordered(operator.ge),
    ast.In: _contains,
    ast.NotIn: lambda left, right: not _contains(left, right),  # codespell:ignore
}
