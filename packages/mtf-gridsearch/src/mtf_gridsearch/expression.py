"""Conditions and constraints: small expressions over the parameters of a combination.

Relied on for: text is never executed. It is read into a tree of which only these parts
are taken, and everything else is refused: dotted names, text, numbers, true, false, null,
lists, comparisons, ``in``, ``and``, ``or``, ``not`` and ``+ - * / // % **`` on numbers.
Length, depth and the size of numbers are bounded.

Source: Python language reference, 6 "Expressions", for the meaning of what is taken.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mtf_gridsearch._plain import shown
from mtf_gridsearch.errors import ExpressionError

__all__ = ["Expression", "parse"]

Values = Mapping[str, Any]
_Run = Callable[[Values], Any]

_MAX_CHARACTERS = 1000
_MAX_DEPTH = 100
_MAX_BITS = 4096
_WORDS = {"true": True, "false": False, "null": None}


class _RefusedError(Exception):
    """A step cannot be taken; the message says why."""


class _AbsentError(Exception):
    """A name has no value."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A condition that was read.

    Attributes:
        text: As it was written.
        names: The parameters it names, each once, in order.
    """

    text: str
    names: tuple[str, ...]
    _run: _Run = field(repr=False, compare=False)

    def evaluate(self, values: Values, *, absent: bool = False) -> bool:
        """Tell whether the condition holds.

        Args:
            values: By dotted name.
            absent: What to return if the answer hangs on a name without a value.

        Raises:
            ExpressionError: If the values have no answer: text compared with numbers,
                a division by zero, a result that is neither true nor false.

        >>> parse("lr * batch <= 0.1").evaluate({"lr": 0.001, "batch": 64})
        True
        """
        try:
            return _truth(self._run(values))
        except _AbsentError:
            return absent
        except _RefusedError as error:
            known = [f"{n} = {shown(values[n])}" for n in self.names if n in values]
            reason = f"{error}; with {', '.join(known) or 'no values'}"
            raise ExpressionError(self.text, reason) from None


def parse(text: str) -> Expression:
    """Read a condition.

    Raises:
        ExpressionError: If it is not one, or uses what is not taken.
    """
    if not isinstance(text, str):
        raise ExpressionError(shown(text), "a condition is text: put it in quotes")
    place = text if len(text) <= _MAX_CHARACTERS else f"{text[:60]}..."
    if len(text) > _MAX_CHARACTERS:
        message = f"is longer than {_MAX_CHARACTERS} characters: split it in several"
        raise ExpressionError(place, message)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "1if x": a doubtful spelling is refused
            tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ExpressionError(place, f"cannot be read: {reason or 'too deep'}") from None
    names: dict[str, None] = {}
    try:
        run = _compile(tree.body, names, 0)
    except _RefusedError as error:
        raise ExpressionError(place, str(error)) from None
    return Expression(text, tuple(names), run)


def _compile(  # noqa: PLR0911 - one for each part that is taken
    node: ast.expr, names: dict[str, None], depth: int
) -> _Run:
    if depth > _MAX_DEPTH:
        message = f"is nested more than {_MAX_DEPTH} levels deep"
        raise _RefusedError(message)

    def below(child: ast.expr) -> _Run:
        return _compile(child, names, depth + 1)

    match node:
        case ast.Constant(value=value):
            return _constant(value)
        case ast.Name() | ast.Attribute():
            return _name(node, names)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return _list([below(item) for item in items])
        case ast.BoolOp(op=op, values=items):
            return _junction([below(item) for item in items], isinstance(op, ast.Or))
        case ast.UnaryOp(op=op, operand=operand):
            return _unary(op, below(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _binary(below(left), _ARITHMETIC[type(op)], below(right))
        case ast.Compare(left=left, ops=ops, comparators=others):
            return _comparison([below(left), *map(below, others)], ops)
    words = "names, text, numbers, lists, comparisons, in, and, or, not and arithmetic"
    message = f"{shown(ast.unparse(node))} is not taken: a condition has {words} only"
    raise _RefusedError(message)


def _constant(value: Any) -> _Run:
    if not isinstance(value, str | int | float | None):
        message = f"{shown(value)} is not taken: write text, a number, true or false"
        raise _RefusedError(message)
    if isinstance(value, float) and not math.isfinite(value):
        message = "a number is too large"
        raise _RefusedError(message)
    return lambda _: value


def _name(node: ast.expr, names: dict[str, None]) -> _Run:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        message = "a name is words joined by dots, as in optimizer.lr"
        raise _RefusedError(message)
    name = ".".join([node.id, *reversed(parts)])
    if name in _WORDS:
        return _constant(_WORDS[name])
    names[name] = None

    def run(values: Values) -> Any:
        try:
            return values[name]
        except KeyError:
            raise _AbsentError from None

    return run


def _list(items: list[_Run]) -> _Run:
    return lambda values: [item(values) for item in items]


def _junction(items: list[_Run], decisive: bool) -> _Run:  # noqa: FBT001 - or: True
    def run(values: Values) -> bool:
        for item in items:
            if _truth(item(values)) is decisive:
                return decisive
        return not decisive

    return run


def _unary(op: ast.unaryop, operand: _Run) -> _Run:
    if isinstance(op, ast.Not):
        return lambda values: not _truth(operand(values))
    if isinstance(op, ast.USub):
        return lambda values: -_number(operand(values))
    if isinstance(op, ast.UAdd):
        return lambda values: _number(operand(values))
    message = "~ is not taken: write not"
    raise _RefusedError(message)


def _binary(left: _Run, compute: Callable[[Any, Any], Any], right: _Run) -> _Run:
    def run(values: Values) -> Any:
        try:
            result = compute(_number(left(values)), _number(right(values)))
        except ZeroDivisionError:
            message = "divides by zero"
            raise _RefusedError(message) from None
        except OverflowError:
            message = "gives a number that is too large"
            raise _RefusedError(message) from None
        if isinstance(result, complex) or (
            isinstance(result, int) and result.bit_length() > _MAX_BITS
        ):
            message = "gives a number that is too large, or none"
            raise _RefusedError(message)
        return result

    return run


def _comparison(operands: list[_Run], ops: list[ast.cmpop]) -> _Run:
    if any(type(op) not in _COMPARE for op in ops):
        message = "is and is not are not taken: write == and !="
        raise _RefusedError(message)
    compares = [_COMPARE[type(op)] for op in ops]
    first, *others = operands

    def run(values: Values) -> bool:
        left = first(values)
        for compare, other in zip(compares, others, strict=True):
            right = other(values)
            if not compare(left, right):
                return False
            left = right
        return True

    return run


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        message = f"{shown(value)} is neither true nor false: write a comparison"
        raise _RefusedError(message)
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        message = f"{shown(value)} is not a number, and + - * / // % ** take only those"
        raise _RefusedError(message)
    return value


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0:
        size = base.bit_length() * exponent
        if size > 2 * _MAX_BITS:
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
                raise _RefusedError(message)
        return compare(left, right)

    return run


def _check_ordered(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        message = f"{shown(value)} is neither smaller nor larger than anything"
        raise _RefusedError(message)


def _contains(left: Any, right: Any) -> bool:
    if isinstance(right, list):
        return any(_equal(left, item) for item in right)
    if isinstance(left, str) and isinstance(right, str):
        return left in right
    message = f"{shown(right)} is no list to look for {shown(left)} in"
    raise _RefusedError(message)


_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: _equal,
    ast.NotEq: lambda left, right: not _equal(left, right),
    ast.Lt: _ordered(operator.lt),
    ast.LtE: _ordered(operator.le),
    ast.Gt: _ordered(operator.gt),
    ast.GtE: _ordered(operator.ge),
    ast.In: _contains,
    ast.NotIn: lambda left, right: not _contains(left, right),  # codespell:ignore
}
