from mtf_gridsearch._axis import Axis
from mtf_gridsearch._layers import Exclusion, codes_of, count_paths, exclusion_of
from mtf_gridsearch.expression import parse
from mtf_gridsearch.grid import ParameterGrid


def axis(key: str, n: int, only_when: str | None = None) -> Axis:
    """Return an axis of the values 0 to *n* - 1."""
    return Axis(
        label=key,
        keys=(key,),
        values=tuple((i,) for i in range(n)),
        only_when=parse(only_when) if only_when else None,
    )


def test_chains_of_constraints_stay_small() -> None:
    """Constraints between neighbours tie pairs, not the whole: 40 axes of 10 values."""
    axes = [axis(f"p{i}", 10) for i in range(40)]
    constraints = [parse(f"p{i} <= p{i + 1}") for i in range(39)]
    paths = count_paths(axes, constraints, [])
    # Non-decreasing sequences: combinations of 40 out of 10 with repetition.
    assert paths.count == 2054455634
    assert paths.at(0) == {f"p{i}": 0 for i in range(40)}
    assert paths.at(paths.count - 1) == {f"p{i}": 9 for i in range(40)}


def test_many_exclusions_stay_small() -> None:
    """A thousand excluded combinations of six axes leave out exactly a thousand."""
    axes = [axis(f"p{i}", 10) for i in range(6)]
    exclusions = [
        exclusion_of(axes, {f"p{j}": int(c) for j, c in enumerate(f"{i * 7:06d}")}, "g")
        for i in range(1000)
    ]
    paths = count_paths(axes, [], exclusions)
    assert paths.count == 10**6 - 1000
    codes = codes_of(axes, {f"p{i}": 0 for i in range(6)})
    assert codes == [0] * 6
    assert not paths.has(codes)
    assert paths.has([0, 0, 0, 0, 0, 1])


def test_exclusions_of_what_does_not_apply() -> None:
    """An exclusion that names a parameter leaves alone what lacks it."""
    axes = [axis("a", 2), axis("b", 2, "a == 1"), axis("c", 2)]
    exclusion = exclusion_of(axes, {"b": 0, "c": 1}, "g")
    assert exclusion == Exclusion({1: frozenset([0]), 2: frozenset([1])})
    assert (exclusion.first, exclusion.last) == (1, 2)
    assert list(count_paths(axes, [], [exclusion]).all()) == [
        {"a": 0, "c": 0},
        {"a": 0, "c": 1},
        {"a": 1, "b": 0, "c": 0},
        {"a": 1, "b": 1, "c": 0},
        {"a": 1, "b": 1, "c": 1},
    ]


def test_codes_of_combinations() -> None:
    """A combination has a choice on each axis, or is none of the axes'."""
    linked = Axis(label="x + y", keys=("x", "y"), values=((1, 2), (3, 4)))
    axes = [axis("a", 2), linked]
    assert codes_of(axes, {"a": 1, "x": 3, "y": 4}) == [1, 1]
    assert codes_of(axes, {"a": 1}) == [1, -1]
    assert codes_of(axes, {"a": 1, "x": 3}) is None
    assert codes_of(axes, {"a": 1, "x": 3, "y": 2}) is None
    assert codes_of(axes, {"a": 1, "x": 1, "y": 2, "z": 0}) is None


def test_constraints_over_values_of_several_kinds() -> None:
    """Where values cannot be compared by column they are one by one, with the same result."""
    grid = ParameterGrid("g").add_parameter("a", [None, 1, "x", 2])
    grid.add_parameter("b", [1, 2]).where("a == b or a == null")
    assert list(grid) == [
        {"a": None, "b": 1},
        {"a": None, "b": 2},
        {"a": 1, "b": 1},
        {"a": 2, "b": 2},
    ]
    mixed = ParameterGrid("g").add_parameter("b", [1, 2])
    mixed.add_parameter("a", [None, 1, "x", 2]).where("a == b")
    assert [list(each.values()) for each in mixed] == [[1, 1], [2, 2]]
