import copy
import pickle

import pytest

from mtf_config.errors import (
    CompositionError,
    ConfigFileError,
    ConfigValidationError,
    InterpolationError,
    LocatedError,
    MtfConfigError,
    OverrideError,
)
from mtf_config.origin import Origin
from mtf_config.problem import Problem

LOCATED = [ConfigFileError, CompositionError, OverrideError, InterpolationError]


@pytest.mark.parametrize("kind", LOCATED)
def test_located_error_says_where_which_and_why(kind: type[LocatedError]) -> None:
    """The text and the one problem of a located error hold place, key and reason."""
    error = kind(Origin("f", 1, 2), "bad", key="a.b")
    assert isinstance(error, MtfConfigError)
    assert str(error) == "f:1:2: a.b: bad"
    problem = Problem(key="a.b", place=Origin("f", 1, 2), message="bad")
    assert error.problems == (problem,)


@pytest.mark.parametrize(
    "error",
    [
        *(kind(Origin("f", 1, 2), "bad", key="a.b") for kind in LOCATED),
        ConfigValidationError([Problem(key="a", place=None, message="bad")]),
    ],
)
def test_errors_survive_copy_and_pickle(error: MtfConfigError) -> None:
    """An error raised in another process arrives whole."""
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.problems == error.problems


def test_validation_error_counts_and_lists() -> None:
    """Every problem has its line below a headline that counts them."""
    one = Problem(key="a", place=None, message="bad")
    assert str(ConfigValidationError([one])) == "1 problem in the config:\n  a: bad"
    two = ConfigValidationError(iter([one, one]))
    assert str(two).splitlines() == ["2 problems in the config:", "  a: bad", "  a: bad"]
    assert two.problems == (one, one)


def test_base_has_no_problems() -> None:
    """The base class promises a tuple of problems, empty where none are known."""
    assert MtfConfigError("x").problems == ()
