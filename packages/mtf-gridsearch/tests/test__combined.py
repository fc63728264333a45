import random
from typing import Any

import pytest

from mtf_gridsearch._combined import Combinations, _shuffled
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
