import contextlib
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf_gridsearch.errors import ExpressionError
from mtf_gridsearch.expression import parse

VALUES: dict[str, Any] = {
    "lr": 0.01,
    "n": 4,
    "model.type": "mlp",
    "amp": True,
    "none": None,
    "betas": [0.9, 0.99],
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr * n <= 0.1", True),
        ("model.type == 'mlp'", True),
        ("model.type != 'mlp'", False),
        ("model.type in ['mlp', 'cnn']", True),
        ("model.type not in ('mlp', 'cnn')", False),
        ("'l' in model.type", True),
        ("amp", True),
        ("not amp", False),
        ("amp == true and none == null", True),
        ("amp == True or none == 1", True),
        ("amp != false", True),
        ("1 < n < 5", True),
        ("1 < n < 4", False),
        ("-n == -4 and +n == 4", True),
        ("n ** 2 == 16 and 2 ** -1 == 0.5", True),
        ("7 // 2 == 3 and 7 % 2 == 1 and 7 / 2 == 3.5 and 7 - 2 + 1 == 6", True),
        ("betas == [0.9, 0.99]", True),
        ("n == 4.0", True),
        ("amp == 1", False),
        ("1 in [true]", False),
        ("'a' < 'b'", True),
        ("  n == 4 ", True),
        ("n == 4 or missing == 1", True),
        ("n == 3 and missing == 1", False),
    ],
)
def test_what_conditions_mean(text: str, expected: bool) -> None:  # noqa: FBT001
    """Conditions mean what they mean in Python, truth and numbers kept apart."""
    assert parse(text).evaluate(VALUES) is expected


@pytest.mark.parametrize("absent", [True, False])
def test_names_without_value(absent: bool) -> None:  # noqa: FBT001
    """If the answer hangs on a name without a value, it is the one that was asked for."""
    assert parse("missing == 1").evaluate(VALUES, absent=absent) is absent
    assert parse("not missing == 1").evaluate(VALUES, absent=absent) is absent


def test_names_are_found_once_in_order() -> None:
    """An expression knows what it names; the words of truth are no names."""
    expression = parse("b.c > a and b.c != true and none == null")
    assert expression.names == ("b.c", "a", "none")
    assert expression.text == "b.c > a and b.c != true and none == null"


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('x')",
        "n.bit_length() == 1",
        "(1).real == 1",
        "[x for x in betas]",
        "betas[0] == 1",
        "lambda: 1",
        "f'{n}' == '4'",
        "n if amp else 1",
        "(n := 3) == 3",
        "{1: 2} == n",
        "{1} == n",
        "b'x' == n",
        "1j == n",
        "... == n",
        "n is 4",
        "n is not none",
        "~n == 1",
        "n @ n == 1",
        "n << 2 == 1",
        "n | 1 == 1",
        "*n",
        "1e999 == n",
        "await n",
        "yield n",
        "n; n",
        "n = 4",
        "import os",
        "",
        "n ==",
        "n\x00",
        "1if amp else 2",
        "1is n",
        "'\\d' == n",
        "(" * 300 + ")" * 300,
        "not " * 200 + "amp",
        "-" * 900 + "1 == n",
        "n" + " + n" * 400,
    ],
)
def test_what_is_not_taken(text: str) -> None:
    """Everything else is refused when it is read, and nothing of it is run."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ExpressionError):
            parse(text)


def test_conditions_are_text() -> None:
    """A callable is no condition: it could not be saved with the search."""
    with pytest.raises(ExpressionError, match="is text"):
        parse(lambda: True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("n", "neither true nor false"),
        ("n and amp", "neither true nor false"),
        ("not n", "neither true nor false"),
        ("n / 0 == 1", "divides by zero"),
        ("n + 'a' == 1", "is not a number"),
        ("model.type * n == 1", "is not a number"),
        ("model.type % n == 1", "is not a number"),
        ("-model.type == 1", "is not a number"),
        ("amp + 1 == 2", "is not a number"),
        ("n < 'a'", "no order"),
        ("betas < betas", "neither smaller nor larger"),
        ("none < 1", "neither smaller nor larger"),
        ("1 in n", "no list"),
        ("9 ** 9 ** 9 == 1", "too large"),
        ("10.0 ** 999 == 1", "too large"),
        ("(-1) ** 0.5 == 1", "too large, or none"),
        ("2 ** 4090 * 2 ** 4090 == 1", "too large"),
    ],
)
def test_values_without_an_answer(text: str, reason: str) -> None:
    """What cannot be computed names the condition, the reason and the values."""
    with pytest.raises(ExpressionError) as caught:
        parse(text).evaluate(VALUES)
    assert caught.value.place == text
    assert reason in caught.value.reason


def test_messages_name_the_values() -> None:
    """The message holds the values that were compared."""
    with pytest.raises(ExpressionError, match=r"with lr = 0\.01, n = 4"):
        parse("lr / (n - 4) == 1").evaluate(VALUES)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text makes reading fail in another way."""
    with contextlib.suppress(ExpressionError):
        parse(text)


NUMBERS = st.integers(-9, 9).map(str) | st.floats(0.1, 9).map(repr)
TERMS = st.recursive(
    NUMBERS | st.sampled_from(["a", "b"]),
    lambda inner: st.builds(
        "({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/"]), inner
    ),
    max_leaves=5,
)


@given(TERMS, st.sampled_from(["<", "<=", "==", "!=", ">", ">="]), TERMS)
def test_arithmetic_is_pythons(left: str, op: str, right: str) -> None:
    """On numbers the answer is that of Python itself."""
    text = f"{left} {op} {right}"
    values = {"a": 2, "b": 0.5}
    try:
        expected = eval(text, {}, values)  # noqa: S307 - made of numbers above
    except ZeroDivisionError:
        with pytest.raises(ExpressionError, match="zero"):
            parse(text).evaluate(values)
    else:
        assert parse(text).evaluate(values) is expected


def test_keys_in_backticks() -> None:
    """A key with a dash, a digit first or a word of Python is named; text keeps its own."""
    values = {"data.batch-size": 32, "class": "`a`", "2d.x": True, "true": 3}
    expression = parse("`data.batch-size` <= 64 and `class` == '`a`' and `2d.x` == true")
    assert expression.names == ("data.batch-size", "class", "2d.x")
    assert expression.evaluate(values)
    assert parse("`true` == 3").evaluate(values)
    assert not parse('`class` == "it\'s `b`"').evaluate(values)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("batch-size of == 1", "stands in backticks"),
        ("model.class == 1", "stands in backticks"),
        ("`a b` == 1", "is no key"),
        ("`a == 1", "cannot be read"),
        ("`a`.b == 1", "put the whole key in backticks"),
        ("f(`a-b`)", r"f\(`a-b`\)"),
        ("a" + ".b()" * 240, "too deep|not taken|cannot be read"),
    ],
)
def test_what_backticks_do_not_mend(text: str, reason: str) -> None:
    """Errors speak of keys as they were written; depth is an error like any other."""
    with pytest.raises(ExpressionError, match=reason):
        parse(text)
