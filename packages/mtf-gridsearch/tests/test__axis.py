import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mtf_gridsearch import _axis
from mtf_gridsearch._axis import axis_to_plain, check_apart, make_axis, nested
from mtf_gridsearch.distributions import uniform
from mtf_gridsearch.errors import GridError
from mtf_gridsearch.expression import parse


def test_axis_of_one_and_of_several() -> None:
    """An axis has one tuple of values for each choice; its label joins its keys."""
    one = make_axis({"a": [1, 2]}, None, "g")
    assert (one.label, one.keys, one.values) == ("a", ("a",), ((1,), (2,)))
    two = make_axis({"a": [1, 2], "b": ["x", "y"]}, parse("c == 1"), "g", is_linked=True)
    assert (two.label, two.values) == ("a + b", ((1, "x"), (2, "y")))
    drawn = make_axis({"a": uniform(0, 1)}, None, "g")
    assert (drawn.distribution, drawn.values) == (uniform(0, 1), ())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], "has no values"),
        ((), "has no values"),
        ("text", "give a list"),
        (0.1, r"give a list of values, as in \[0.1, 0.2\], not 0.1"),
        ({1, 2}, "give a list"),
        (itertools.count(), "give a list"),
        ((i for i in [1]), "give a list"),
        (np.array([1, 2]), "give a list"),
        ({"a": 1}, "give a list"),
        (range(10**12), "use a distribution"),
        ([1, 2, 1], "the value 1 stands twice"),
        ([1, 1.0], "stands twice"),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], "stands twice"),
        ([object()], "object"),
        ([float("nan")], "NaN"),
    ],
)
def test_bad_values(values: Any, reason: str) -> None:
    """Values that are none, endless, doubled or not plain are refused with their place."""
    with pytest.raises(GridError, match=f"g: optimizer.lr: .*{reason}"):
        make_axis({"optimizer.lr": values}, None, "g")


def test_truth_is_no_number() -> None:
    """True beside 1 and text beside a number are different values."""
    assert len(make_axis({"a": [1, True, "1", None, 0, False]}, None, "g").values) == 6


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"a": [1, 2], "b": [1]}, "equally long, not a 2, b 1"),
        ({"a": [1, 2]}, "at least two"),
        ({}, "at least two"),
        ({"a": uniform(0, 1), "b": [1]}, "listed values"),
        ({"a": [1, 1], "b": [2, 2]}, "stands twice"),
        ({"a b": [1], "c": [1]}, "no key"),
        ({"experiment_name": ["x"], "c": [1]}, "names its experiments"),
    ],
)
def test_bad_links(parameters: Mapping[str, Any], reason: str) -> None:
    """Linked lists that do not go together are refused; a value alone may repeat."""
    with pytest.raises(GridError, match=reason):
        make_axis(parameters, None, "g", is_linked=True)
    good = make_axis({"a": [1, 1], "b": [1, 2]}, None, "g", is_linked=True)
    assert good.values == ((1, 1), (1, 2))


def test_nested_parameters() -> None:
    """Mappings below mappings become dotted keys, in order."""
    found = list(nested("m", {"a": [1], "b": {"c": [2], "d.e": [3]}}, "g"))
    assert found == [("m.a", [1]), ("m.b.c", [2]), ("m.b.d.e", [3])]
    wrongs: list[Any] = [{}, [1], {"a": {}}]
    for wrong in wrongs:
        with pytest.raises(GridError, match="mapping of at least one"):
            list(nested("m", wrong, "g"))


@pytest.mark.parametrize(
    ("keys", "known", "reason"),
    [
        (["a"], ["a"], "a is set twice"),
        (["a", "a"], [], "a is set twice"),
        (["a.b"], ["a"], "a is set as a whole, and in part by a.b"),
        (["a"], ["a.b"], "a is set as a whole, and in part by a.b"),
    ],
)
def test_parameters_that_overlap(keys: list[str], known: list[str], reason: str) -> None:
    """A parameter is set once, as a whole or in parts."""
    with pytest.raises(GridError, match=f"g: {reason}"):
        check_apart(keys, known, "g")
    check_apart(["a.b", "a.c"], ["ab", "a-b"], "g")


def test_how_axes_are_written() -> None:
    """A list stands alone; all else is a mapping that says what it is."""
    when = parse("x == 1")
    assert axis_to_plain(make_axis({"a": [1]}, None, "g")) == [1]
    assert axis_to_plain(make_axis({"a": [1]}, when, "g")) == {
        "values": [1],
        "only_when": "x == 1",
    }
    linked = make_axis({"a": [1, 2], "b": [3, 4]}, None, "g", is_linked=True)
    assert axis_to_plain(linked) == {"linked": {"a": [1, 2], "b": [3, 4]}}
    drawn = axis_to_plain(make_axis({"a": uniform(0, 1)}, when, "g"))
    assert drawn == {"uniform": [0, 1], "only_when": "x == 1"}


def test_values_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is on the number of values, and reaching it is fine."""
    monkeypatch.setattr(_axis, "_MAX_VALUES", 3)
    assert len(make_axis({"a": range(3)}, None, "g").values) == 3
    with pytest.raises(GridError, match="4 values, more than 3"):
        make_axis({"a": range(4)}, None, "g")
