from __future__ import annotations

import functools
import operator
import random
from typing import Any

import pytest

from mtf_gridsearch import _yaml
from mtf_gridsearch._combined import Combinations, Grid, _shuffled
from mtf_gridsearch.distributions import uniform
from mtf_gridsearch.errors import GridError
from mtf_gridsearch.grid import ParameterGrid

A = ParameterGrid("a").add_parameter("x", [1, 2])
B = ParameterGrid("b").add_parameter("y", [3, 4])
DRAWN = ParameterGrid("d").add_parameter("u", uniform(0, 1))


def test_names_and_keys() -> None:
    """Combined grids are called by their parts, and have the parameters of all."""
    both = (A + B) * ParameterGrid("c").add_parameter("z", [5])
    assert both.name == "(a + b) * c"
    assert both.keys == ("x", "y", "z")
    assert (A + A).keys == ("x",)
    assert (A + ParameterGrid("e").include({"x": 9})).included == ({"x": 9},)
    assert both.included == ()
    crossed_again = both * ParameterGrid("f").add_parameter("v", [1])
    assert crossed_again.name == "(a + b) * c * f"
    assert crossed_again.sample(4, 0) == crossed_again.sample(4, 0)
    assert not both.has_distributions


def test_crossed_sums_keep_the_order() -> None:
    """The right one changes fastest; keys of the left come first."""
    assert list((A + B) * ParameterGrid("c").add_parameter("z", [5, 6]))[3:5] == [
        {"x": 2, "z": 6},
        {"y": 3, "z": 5},
    ]


def test_drawing_from_combined_grids() -> None:
    """A sum is drawn from by choosing a part, a product by drawing from both."""
    labels: list[str] = []

    def choose(axis: Any) -> Any:
        labels.append(axis.label)
        return 0.5 if axis.distribution else 1

    assert ((A + DRAWN) * B).draw(choose) == {"u": 0.5, "y": 4}
    assert labels == ["(a + d)", "u", "y"]
    refused = ParameterGrid("r").add_parameter("z", [1, 2]).exclude({"z": 2})
    assert (DRAWN * refused).draw(choose) is None
    sample = ((A + DRAWN) * B).sample(20, seed=3)
    assert {"x", "u"} == {key for each in sample for key in each} - {"y"}


def test_many_are_joined_without_nesting() -> None:
    """Sums of sums are one sum, products of products one: in memory and in a file."""
    parts = [ParameterGrid(f"p{n}").add_parameter("x", [n, n + 0.5]) for n in range(500)]
    total = functools.reduce(operator.add, parts)
    assert len(total.to_plain()["concatenated"]) == 500
    assert (len(total), total[999], {"x": 7} in total) == (1000, {"x": 499.5}, True)
    assert list(total)[:2] == [{"x": 0}, {"x": 0.5}]
    keys = [ParameterGrid(f"k{n}").add_parameter(f"k{n}", [n]) for n in range(500)]
    crossed = A * functools.reduce(operator.mul, keys) * B
    assert len(crossed.to_plain()["crossed"]) == 502
    rows = list(crossed)
    assert rows == [crossed[n] for n in range(4)]
    assert [(row["x"], row["y"]) for row in rows] == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert all(row in crossed for row in rows)
    for grid in (total, crossed):
        plain = grid.to_plain()
        assert _yaml.parse(_yaml.dump(plain).encode(), "grid") == plain
        assert ParameterGrid.from_plain(plain).to_plain() == plain


def test_a_grid_is_joined_as_it_is() -> None:
    """What is added to a grid later is not in sums and products of it."""
    later = ParameterGrid("later").add_parameter("y", [3, 4])
    total, crossed = A + later, A * later
    later.exclude({"y": 3}).add_parameter("x", [1]).include({"z": 0}).where("x == 9")
    assert (len(total), len(crossed), crossed.keys) == (4, 4, ("x", "y"))


def test_what_was_added_is_drawn_where_it_does_not_come_first() -> None:
    """A grid of nothing else gives that, and a product gives it beside what is listed."""
    added = ParameterGrid("only").include({"y": 1}, {"y": 2})
    turns: list[str] = []

    def draw(grid: Any, *choices: int) -> Any:
        left = list(choices)
        turns.clear()

        def choose(axis: Any) -> int:
            turns.append(axis.label)
            return left.pop(0)

        return grid.draw(choose)

    assert (draw(added, 0), draw(added, 1)) == ({"y": 1}, {"y": 2})
    assert turns == ["(only)"]
    assert draw(A + added, 1, 1) == {"y": 2}
    assert draw(A * (B + added), 1, 1, 0) == {"x": 2, "y": 1}
    both = ParameterGrid("both").add_parameter("z", [1, 2]).include({"z": 7})
    assert draw(both, 1) == {"z": 2}  # the other one comes first
    assert (draw(A * both, 0, 0), draw(A * both, 0, 1, 1)) == (
        {"x": 1, "z": 7},
        {"x": 1, "z": 2},
    )
    assert draw(ParameterGrid("empty")) is None


def test_samples_of_sums_have_nothing_twice() -> None:
    """What two grids share is drawn once; asking for more says how many there are."""
    total = A + A + B
    assert len(total) == 6
    assert len(total.sample(4, 0)) == 4
    with pytest.raises(GridError, match="has 4 different combinations, not 5"):
        total.sample(5, 0)


def test_members_of_products() -> None:
    """A combination is in a product if its parts are in the grids."""
    assert {"x": 1, "y": 3} in A * B
    assert {"x": 1} not in A * B
    assert {"x": 1, "y": 9} not in A * B
    assert 3 not in A * B


def test_slices_are_numbers() -> None:
    """A slice of a slice is a slice, and reaches into the grid when it is asked."""
    part = (A * B)[1:]
    assert isinstance(part, Combinations)
    assert isinstance(part[::2], Combinations)
    assert list(part[::2]) == [{"x": 1, "y": 4}, {"x": 2, "y": 4}]
    assert {"x": 2, "y": 3} in part


def test_shuffling_is_a_permutation() -> None:
    """Every number comes once, in an order that the generator decides."""
    generators = map(random.Random, range(500))
    orders = {tuple(_shuffled(4, rng)) for rng in generators}
    assert len(orders) == 24
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)


def test_grids_may_be_summed() -> None:
    """`sum` begins with 0, and ends of parts are counted once."""
    total = sum([A, B])
    assert isinstance(total, Grid)
    assert list(total) == [*A, *B]
    assert [total[n] for n in range(len(total))] == list(total)
    (one,) = [sum([A])]
    assert isinstance(one, Grid)
    assert one is not A
    with pytest.raises(TypeError):
        _ = 1 + A


def test_ends_of_a_sum_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random access does not count the parts each time."""
    total = functools.reduce(operator.add, [A] * 50)
    assert total[0] == {"x": 1}
    numbers: list[int] = []
    count = ParameterGrid._count

    def counted(self: ParameterGrid) -> int:
        numbers.append(1)
        return count(self)

    monkeypatch.setattr(ParameterGrid, "_count", counted)
    assert total[99] == {"x": 2}
    assert len(numbers) < 5
