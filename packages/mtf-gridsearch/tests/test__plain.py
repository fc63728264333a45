import enum
import fractions
import math
from typing import Any

import numpy as np
import pytest

from mtf_gridsearch._plain import check_key, nearest, plain, shown
from mtf_gridsearch.errors import GridError


class Word(enum.StrEnum):
    ONE = "one"


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.5, 0.5),
        (math.inf, math.inf),
        ("text", "text"),
        ((1, [2.0, {"a": (None,)}]), [1, [2.0, {"a": [None]}]]),
        (Word.ONE, "one"),
        (Text("text"), "text"),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (fractions.Fraction(1, 4), 0.25),
    ],
)
def test_what_becomes_of_values(value: object, expected: object) -> None:
    """Each kind of value becomes the plain one of exactly that type."""
    result = plain(value, "here")
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "NaN"),
        ({1, 2}, "set"),
        (b"bytes", "bytes"),
        ({1: 2}, "key 1 is not text"),
        ("\ud800", "half of a character"),
        ({"\ud800": 1}, "half of a character"),
        (2**2000, "too large"),
        (fractions.Fraction(10**400), "too large"),
        (1j, "complex"),
    ],
)
def test_what_is_refused(value: object, reason: str) -> None:
    """What a file cannot hold, or equals nothing, is refused by name and place."""
    with pytest.raises(GridError, match="here") as caught:
        plain([value], "here")
    assert reason in caught.value.reason


def test_depth_is_bounded() -> None:
    """A value that holds itself is refused and not followed for ever."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(GridError, match="nested"):
        plain(endless, "here")


def test_copies_share_nothing() -> None:
    """A change of what was given does not reach the copy."""
    given = {"a": [1]}
    copied = plain(given, "here")
    given["a"].append(2)
    assert copied == {"a": [1]}


@pytest.mark.parametrize("key", ["lr", "optimizer.lr", "a-b.c_d", "betas.0", "_x"])
def test_keys(key: str) -> None:
    """Words joined by dots are keys."""
    assert check_key(key, "here") == key


@pytest.mark.parametrize(
    "key", ["", ".", "a.", ".a", "a..b", "a b", "a/b", "é", "-a", "a" * 129, "a\n", 1]
)
def test_no_keys(key: object) -> None:
    """All else is none."""
    with pytest.raises(GridError, match="is no key"):
        check_key(key, "here")


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("optimiser.lr", ["optimizer.lr", "seed"], "; did you mean 'optimizer.lr'?"),
        ("lr", ["model.depth", "optimizer.lr"], "; did you mean 'optimizer.lr'?"),
        ("zzz", ["a", "b"], "; known here: a, b"),
        ("zzz", [], ""),
    ],
)
def test_hints(name: str, known: list[str], hint: str) -> None:
    """The hint is the nearest name, the same word elsewhere, or what there is."""
    assert nearest(name, known) == hint


def test_shown_is_short_and_on_one_line() -> None:
    """Messages hold no line breaks and no walls of text of the user's."""
    assert shown("a\nb") == "'a\\nb'"
    assert len(shown("a" * 1000)) == 60


def test_scalars_of_arrays_are_numbers_and_arrays_are_refused() -> None:
    """NumPy's numbers and truths become Python's; for an array the error says what to give."""
    given = [np.float32(0.5), np.int64(3), np.bool_(True), np.array(2.5)]  # noqa: FBT003
    found = plain(given, "p")
    assert found == [0.5, 3, True, 2.5]
    assert [type(value) for value in found] == [float, int, bool, float]
    with pytest.raises(GridError, match=r"an array is no value: .*\.tolist\(\)"):
        plain({"a": np.zeros(2)}, "p")
