import math
import random
from typing import Any

import pytest

from mtf_gridsearch.distributions import (
    Choice,
    Distribution,
    choice,
    from_plain,
    int_uniform,
    loguniform,
    uniform,
)
from mtf_gridsearch.errors import GridError

ALL: list[Distribution] = [
    uniform(-1, 2.5),
    loguniform(1e-5, 1e-1),
    int_uniform(3, 6),
    choice(["a", 1, None]),
]


def generator(seed: int) -> random.Random:
    """Return a generator of numbers."""
    return random.Random(seed)  # noqa: S311 - no secret


@pytest.mark.parametrize("distribution", ALL)
def test_drawing_depends_on_the_seed_alone(distribution: Distribution) -> None:
    """The same seed gives the same values, another one others."""

    def draw(seed: int) -> list[Any]:
        rng = generator(seed)
        return [distribution.draw(rng) for _ in range(20)]

    assert draw(1) == draw(1) != draw(2)


def test_known_values() -> None:
    """Values are those of the first release."""
    rng = generator(0)
    drawn = [distribution.draw(rng) for distribution in ALL]
    assert drawn == [pytest.approx(1.95547648), pytest.approx(0.01076013231), 6, "a"]


def test_ranges_and_their_evenness() -> None:
    """All of a range comes up: both ends of integers, and each order of magnitude."""
    rng = generator(0)
    numbers = [uniform(2, 3).draw(rng) for _ in range(1000)]
    assert 2 <= min(numbers) < 2.05
    assert 2.95 < max(numbers) <= 3
    exponents = [math.log10(loguniform(1e-4, 1).draw(rng)) for _ in range(1000)]
    counts = [sum(low <= e < low + 1 for e in exponents) for low in range(-4, 0)]
    assert all(200 < count < 300 for count in counts)
    assert {int_uniform(3, 6).draw(rng) for _ in range(200)} == {3, 4, 5, 6}
    assert {choice(["a", 1]).draw(rng) for _ in range(100)} == {"a", 1}


@pytest.mark.parametrize("distribution", ALL)
def test_files_give_them_back(distribution: Distribution) -> None:
    """What stands in a file is read as the same distribution."""
    ((word, arguments),) = distribution.to_plain().items()
    assert from_plain(word, arguments, "here") == distribution


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (uniform, (1, 1)),
        (uniform, (2, 1)),
        (uniform, (0, math.inf)),
        (uniform, (math.nan, 1)),
        (uniform, ("0", 1)),
        (uniform, (False, 1)),
        (uniform, (-1e308, 1e308)),
        (uniform, (0, 10**400)),
        (int_uniform, (0, 10**400)),
        (loguniform, (0, 1)),
        (loguniform, (-1, 1)),
        (int_uniform, (1, 2.5)),
        (int_uniform, (2, 1)),
        (choice, ([],)),
        (choice, ([1, 1.0],)),
    ],
)
def test_bad_bounds(make: Any, arguments: tuple[Any, ...]) -> None:
    """Bounds out of order or out of place are the caller's bug."""
    with pytest.raises(ValueError, match=r"uniform|int|choice"):
        make(*arguments)


@pytest.mark.parametrize(
    ("word", "arguments", "reason"),
    [
        ("uniform", [1], r"write `uniform: \[low, high\]`"),
        ("uniform", 1, "low, high"),
        ("int", [1, 2.5], "whole numbers"),
        ("choice", 3, "a list"),
        ("choice", [], "at least one"),
    ],
)
def test_bad_bounds_in_files(word: str, arguments: object, reason: str) -> None:
    """In a file they are an error with its place."""
    with pytest.raises(GridError, match=f"here: .*{reason}"):
        from_plain(word, arguments, "here")


def test_choices_are_plain() -> None:
    """What could not be saved is refused; tuples become lists."""
    assert choice([(1, 2), "a"]).values == ([1, 2], "a")
    assert Choice((1,)) == choice([1])
    with pytest.raises(GridError, match="set"):
        choice([{1}])
