"""Conditions and constraints: small expressions over the parameters of a combination.

Relied on for: text is never executed. It is read into a tree of which only these parts
are taken, and everything else is refused: dotted names, text, numbers, true, false, null,
lists, comparisons, ``in``, ``and``, ``or``, ``not`` and ``+ - * / // % **`` on numbers.
Length, depth and the size of numbers are bounded. A key that is no name to Python, since it
has a dash, begins with a digit or is one of its words, stands in backticks:
```data.batch-size` <= 64``.

Source: Python language reference, 6 "Expressions", for the meaning of what is taken.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from typing import Any

from mtf_gridsearch._columns import (
    Columns,
    NotInColumnsError,
    Operand,
    combined,
    mapped,
    shared,
)
from mtf_gridsearch._operators import (
    ARITHMETIC,
    COMPARE,
    MAX_BITS,
    PLAIN_EQUAL,
    PLAIN_ORDER,
    UNARY,
    RefusedError,
    number,
    truth,
)
from mtf_gridsearch._plain import check_key, shown
from mtf_gridsearch.errors import ExpressionError, GridError

__all__ = ["Expression", "parse"]

Values = Mapping[str, Any]
_Run = Callable[[Values], Any]
_RunMany = Callable[[Values, Columns], Operand]
_Part = tuple[_Run, _RunMany]
"""What computes a part for one combination, and for many: see `mtf_gridsearch._columns`."""

_MAX_CHARACTERS = 1000
_MAX_DEPTH = 100
_TEXT_OR_KEY = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`([^`]*)`""")
_MARK = "\N{GREEK SMALL LETTER KAPPA}"  # in no key, and a name to Python
_WORDS = {"true": True, "false": False, "null": None}


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
    _part: _Part = field(repr=False, compare=False)

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
            return truth(self._part[0](values))
        except _AbsentError:
            return absent
        except RefusedError as error:
            known = [f"{n} = {shown(values[n])}" for n in self.names if n in values]
            reason = f"{error}; with {', '.join(known) or 'no values'}"
            raise ExpressionError(self.text, reason) from None

    def evaluate_many(self, values: Values, columns: Columns) -> list[bool] | None:
        """Return what `evaluate` does for each row of *columns*, in a tenth of the time.

        Args:
            values: By dotted name, the same for all rows.
            columns: By dotted name, at least one; all of the same length.

        Returns:
            The answers; None where it takes `evaluate` to find out.
        """
        try:
            found = self._part[1](values, columns)
        except NotInColumnsError:
            return None
        if found.kind is not bool or found.is_single:
            return None
        return list(found.values)


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
    quoted: dict[str, str] = {}

    def marked(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        mark = f"{_MARK}{len(quoted)}"
        quoted[mark] = check_key(match[1], place)
        return mark

    try:
        marked_text = _TEXT_OR_KEY.sub(marked, text.strip())
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "1if x": a doubtful spelling is refused
            tree = ast.parse(marked_text, mode="eval")
    except GridError as error:
        raise ExpressionError(place, error.reason) from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        hint = "; a key with a dash, or one that is a word of Python, stands in backticks"
        raise ExpressionError(
            place, f"cannot be read: {reason or 'too deep'}{hint}"
        ) from None
    names: dict[str, None] = {}
    try:
        part = _compile(tree.body, names, quoted)
    except RefusedError as error:
        reason = str(error)
        for mark, key in quoted.items():
            reason = reason.replace(mark, f"`{key}`")
        raise ExpressionError(place, reason) from None
    except RecursionError:
        raise ExpressionError(place, "is nested too deep") from None
    return Expression(text, tuple(names), part)


def _compile(  # noqa: PLR0911 - one for each part that is taken
    node: ast.expr, names: dict[str, None], quoted: Mapping[str, str], depth: int = 0
) -> _Part:
    if depth > _MAX_DEPTH:
        message = f"is nested more than {_MAX_DEPTH} levels deep"
        raise RefusedError(message)

    def below(child: ast.expr) -> _Part:
        return _compile(child, names, quoted, depth + 1)

    match node:
        case ast.Constant(value=value):
            return _constant(value)
        case ast.Name() | ast.Attribute():
            return _name(node, names, quoted)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return _list([below(item) for item in items])
        case ast.BoolOp(op=op, values=items):
            return _junction([below(item) for item in items], isinstance(op, ast.Or))
        case ast.UnaryOp(op=op, operand=operand):
            return _unary(op, below(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            return _binary(below(left), type(op), below(right))
        case ast.Compare(left=left, ops=ops, comparators=others):
            return _comparison([below(left), *map(below, others)], ops)
    words = "names, text, numbers, lists, comparisons, in, and, or, not and arithmetic"
    message = f"{shown(ast.unparse(node))} is not taken: a condition has {words} only"
    raise RefusedError(message)


def _constant(value: Any) -> _Part:
    if not isinstance(value, str | int | float | None):
        message = f"{shown(value)} is not taken: write text, a number, true or false"
        raise RefusedError(message)
    if isinstance(value, float) and not math.isfinite(value):
        message = "a number is too large"
        raise RefusedError(message)
    return lambda _: value, lambda _, __: shared(value)


def _name(node: ast.expr, names: dict[str, None], quoted: Mapping[str, str]) -> _Part:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        message = "a name is words joined by dots, as in optimizer.lr"
        raise RefusedError(message)
    if node.id in quoted and parts:
        message = (
            f"`{quoted[node.id]}` is followed by a dot: put the whole key in backticks"
        )
        raise RefusedError(message)
    name = quoted.get(node.id) or ".".join([node.id, *reversed(parts)])
    if name in _WORDS and node.id not in quoted:
        return _constant(_WORDS[name])
    names[name] = None

    def run(values: Values) -> Any:
        try:
            return values[name]
        except KeyError:
            raise _AbsentError from None

    def run_many(values: Values, columns: Columns) -> Operand:
        if name in columns:
            return columns[name]
        if name not in values:
            raise NotInColumnsError
        return shared(values[name])

    return run, run_many


def _list(items: list[_Part]) -> _Part:
    def run_many(values: Values, columns: Columns) -> Operand:
        found = [item(values, columns) for _, item in items]
        if not all(each.is_single for each in found):
            raise NotInColumnsError
        return shared([each.values[0] for each in found])

    return lambda values: [item(values) for item, _ in items], run_many


def _junction(items: list[_Part], decisive: bool) -> _Part:  # noqa: FBT001 - or: True
    def run(values: Values) -> bool:
        for item, _ in items:
            if truth(item(values)) is decisive:
                return decisive
        return not decisive

    def run_many(values: Values, columns: Columns) -> Operand:
        found = [item(values, columns) for _, item in items]
        both = operator.or_ if decisive else operator.and_
        return reduce(lambda left, right: combined(both, (left, right), bool), found)

    return run, run_many


def _unary(op: ast.unaryop, inner: _Part) -> _Part:
    if not isinstance(op, ast.Not | ast.USub | ast.UAdd):
        message = "~ is not taken: write not"
        raise RefusedError(message)
    is_not = isinstance(op, ast.Not)
    check = truth if is_not else number
    compute = UNARY[type(op)]
    kind = bool if is_not else float
    one, many = inner

    def run_many(values: Values, columns: Columns) -> Operand:
        return combined(compute, (many(values, columns),), kind)

    return lambda values: compute(check(one(values))), run_many


def _binary(left: _Part, op: type[ast.operator], right: _Part) -> _Part:
    compute = ARITHMETIC[op]

    def run_many(values: Values, columns: Columns) -> Operand:
        if op is ast.Pow:  # whose numbers grow as no other's
            raise NotInColumnsError
        operands = (left[1](values, columns), right[1](values, columns))
        return combined(compute, operands, float)

    def run(values: Values) -> Any:
        try:
            result = compute(number(left[0](values)), number(right[0](values)))
        except ZeroDivisionError:
            message = "divides by zero"
            raise RefusedError(message) from None
        except OverflowError:
            message = "gives a number that is too large"
            raise RefusedError(message) from None
        if isinstance(result, complex) or (
            isinstance(result, int) and result.bit_length() > MAX_BITS
        ):
            message = "gives a number that is too large, or none"
            raise RefusedError(message)
        return result

    return run, run_many


def _comparison(operands: list[_Part], ops: list[ast.cmpop]) -> _Part:
    if any(type(op) not in COMPARE for op in ops):
        message = "is and is not are not taken: write == and !="
        raise RefusedError(message)
    compares = [COMPARE[type(op)] for op in ops]
    first, *others = operands

    def run(values: Values) -> bool:
        left = first[0](values)
        for compare, (other, _) in zip(compares, others, strict=True):
            right = other(values)
            if not compare(left, right):
                return False
            left = right
        return True

    def run_many(values: Values, columns: Columns) -> Operand:
        found = [many(values, columns) for _, many in operands]
        answers = [
            _compared(type(op), pair)
            for op, pair in zip(ops, pairwise(found), strict=True)
        ]
        return reduce(lambda a, b: combined(operator.and_, (a, b), bool), answers)

    return run, run_many


def _compared(op: type[ast.cmpop], pair: tuple[Operand, Operand]) -> Operand:
    if op in PLAIN_ORDER:
        return combined(PLAIN_ORDER[op], pair, float, str)
    if op in PLAIN_EQUAL and pair[0].kind is pair[1].kind:
        return combined(PLAIN_EQUAL[op], pair, float, str, bool)
    return mapped(COMPARE[op], pair)
