import itertools
import operator
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import ParameterGrid as TheirGrid

from mtf_gridsearch import _paths
from mtf_gridsearch.distributions import choice, int_uniform, loguniform, uniform
from mtf_gridsearch.errors import ExpressionError, GridError
from mtf_gridsearch.expression import Expression
from mtf_gridsearch.grid import Combination, ParameterGrid
from mtf_gridsearch.identity import canonical, identity_of

KEYS = ["a", "b", "c.d", "c.e", "f"]
SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@st.composite
def grids(  # noqa: C901 - everything at once, twice
    draw: Callable[..., Any],
) -> tuple[ParameterGrid, list[Combination]]:
    """Draw a grid with everything in it, and its combinations by brute force."""
    grid = ParameterGrid("g")
    listed: list[Combination] = [{}]
    for i, key in enumerate(KEYS[: draw(st.integers(1, 4))]):
        values = list(range(draw(st.integers(1, 3))))
        link = f"{key}_too" if draw(st.booleans()) else None
        condition = None
        if i and draw(st.booleans()):
            other, bound = KEYS[draw(st.integers(0, i - 1))], draw(st.integers(0, 2))
            condition = (other, bound)
        text = f"{condition[0]} >= {condition[1]}" if condition else None
        if link:
            grid.add_linked({key: values, link: values[::-1]}, only_when=text)
        else:
            grid.add_parameter(key, values, only_when=text)
        wider = []
        for each in listed:
            if condition and not each.get(condition[0], -1) >= condition[1]:
                wider.append(each)
                continue
            for value in values:
                more = {key: value} | ({link: values[::-1][value]} if link else {})
                wider.append(each | more)
        listed = wider
    names = list(grid.keys)
    for _ in range(draw(st.integers(0, 2))):
        left, right = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        bound = draw(st.integers(0, 4))
        grid.where(f"{left} + {right} <= {bound}")
        listed = [
            c
            for c in listed
            if left not in c or right not in c or c[left] + c[right] <= bound
        ]
    for _ in range(draw(st.integers(0, 2))):
        chosen = draw(st.sets(st.sampled_from(names), min_size=1, max_size=2))
        excluded = dict.fromkeys(chosen, 0)
        try:
            grid.exclude(excluded)
        except GridError as error:
            assert "nothing is left out" in error.reason  # noqa: PT017 - linked apart
            continue
        listed = [c for c in listed if not excluded.items() <= c.items()]
    for added in draw(
        st.lists(st.sampled_from([{"a": 0}, {"a": 7}, {"z": 1}]), unique_by=str)
    ):
        grid.include(added)
        if added not in listed:
            listed.append(added)
    return grid, listed


def check(grid: Any, listed: list[Combination]) -> None:
    """Check that every way to look at *grid* gives *listed*."""
    assert len(grid) == len(listed)
    assert list(grid) == list(grid.generate_permutations()) == listed
    assert [grid[i] for i in range(len(listed))] == listed
    assert [list(c) for c in grid] == [list(grid[i]) for i in range(len(listed))]
    assert all(combination in grid for combination in listed)
    assert {"a": 99} not in grid
    for part in (slice(1, None), slice(None, None, -2), slice(-2, 99), slice(5, 2)):
        assert list(grid[part]) == listed[part]
        assert len(grid[part]) == len(listed[part])
    if listed:
        assert grid[-1] == listed[-1]
        assert list(grid[:][1:]) == listed[1:]
    with pytest.raises(IndexError, match="combinations, none at"):
        grid[len(listed)]


@given(grids())
def test_grid_is_brute_force(drawn: tuple[ParameterGrid, list[Combination]]) -> None:
    """Length, order, numbers, slices and members are those of the filtered product."""
    check(*drawn)


@pytest.mark.slow
@given(grids(), SIZES)
def test_combined_grids_are_brute_force(
    drawn: tuple[ParameterGrid, list[Combination]], sizes: list[int]
) -> None:
    """Grids one after the other, crossed, and both, are what lists of them would be."""
    grid, listed = drawn
    other = ParameterGrid("h")
    for i, size in enumerate(sizes):
        other.add_parameter(f"p{i}", list(range(size)))
    others = list(other)
    check(grid + other, listed + others)
    check(grid * other, [a | b for a, b in itertools.product(listed, others)])
    both = (grid + ParameterGrid("i").include({"z": 1})) * other
    check(both, [a | b for a, b in itertools.product([*listed, {"z": 1}], others)])


@given(grids(), st.integers(0, 5))
def test_samples_do_not_repeat(
    drawn: tuple[ParameterGrid, list[Combination]], seed: int
) -> None:
    """A sample has different members of the grid, the same for the same seed."""
    grid, listed = drawn
    for whole in (grid, grid + grid):
        for n in (0, len(listed) // 2, len(listed)):
            sample = whole.sample(n, seed)
            assert len({identity_of(c) for c in sample}) == len(sample) == n
            assert all(combination in listed for combination in sample)
            assert whole.sample(n, seed) == sample
    with pytest.raises(GridError, match="combinations, not"):
        (grid + grid).sample(len(listed) + 1, seed)
    with pytest.raises(GridError, match="combinations, not"):
        grid.sample(len(listed) + 1, seed)


@given(grids())
def test_files_give_grids_back(drawn: tuple[ParameterGrid, list[Combination]]) -> None:
    """A grid that was written is read as one with the same combinations."""
    grid, listed = drawn
    other = ParameterGrid("h", "the other").add_parameter("z.z", [1, 2])
    for each in (grid, (grid + other) * ParameterGrid("i").add_parameter("q", [0.5, 1])):
        again = ParameterGrid.from_plain(each.to_plain())
        assert again.to_plain() == each.to_plain()
        assert list(again) == list(each)
    assert list(ParameterGrid.from_plain(grid.to_plain())) == listed


VALUE_LISTS = st.lists(
    st.integers(-5, 5) | st.sampled_from(["x", "y", "z"]) | st.booleans() | st.just(0.5),
    min_size=1,
    max_size=3,
    unique_by=canonical,
)


@given(st.dictionaries(st.sampled_from(KEYS), VALUE_LISTS, min_size=1))
def test_scikit_learn_enumerates_the_same(values: dict[str, list[Any]]) -> None:
    """scikit-learn's ParameterGrid gives the same set, and the same list in its order."""
    grid = ParameterGrid("g")
    for key in sorted(values):
        grid.add_parameter(key, values[key])
    theirs = TheirGrid(values)
    assert list(grid) == list(theirs)
    assert len(grid) == len(theirs)
    unsorted = ParameterGrid("g")
    for key, listed in values.items():
        unsorted.add_parameter(key, listed)
    assert {canonical(c) for c in unsorted} == {canonical(c) for c in theirs}


@given(
    st.dictionaries(st.sampled_from(KEYS), VALUE_LISTS, min_size=1),
    st.dictionaries(st.sampled_from(["x", "y"]), VALUE_LISTS, min_size=1),
)
def test_scikit_learns_lists_of_grids(
    left: dict[str, list[Any]], right: dict[str, list[Any]]
) -> None:
    """A list of grids is for scikit-learn what a sum is here."""
    parts = []
    for number, values in enumerate((left, right)):
        grid = ParameterGrid(f"g{number}")
        for key in sorted(values):
            grid.add_parameter(key, values[key])
        parts.append(grid)
    theirs = TheirGrid([left, right])
    assert list(parts[0] + parts[1]) == list(theirs)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(KEYS), VALUE_LISTS, min_size=1))
def test_hydra_enumerates_the_same(values: dict[str, list[Any]]) -> None:
    """Hydra's basic sweeper makes the same list of combinations of the same values."""
    grid = ParameterGrid("g")
    arguments = []
    for key, listed in values.items():
        grid.add_parameter(key, listed)
        texts = [str(v).lower() if isinstance(v, bool) else str(v) for v in listed]
        arguments.append(f"{key}={','.join(texts)}")
    overrides = OverridesParser.create().parse_overrides(arguments)
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    parser = OverridesParser.create()
    theirs = [
        {o.key_or_group: o.value() for o in parser.parse_overrides(each)}
        for each in batch
    ]
    assert list(map(canonical, theirs)) == list(map(canonical, grid))


def test_ten_million_cost_no_memory() -> None:
    """Counting, reaching, drawing and beginning to list ten million keeps almost nothing."""
    tracemalloc.start()
    try:
        grid = ParameterGrid("g")
        for i in range(7):
            grid.add_parameter(f"p{i}", list(range(10)))
        grid.where("p0 + p1 < 19").exclude({"p2": 3, "p5": 3})
        assert len(grid) == 10**7 - 10**5
        assert grid[len(grid) - 1]["p0"] == 9
        assert len(grid.sample(100, 0)) == 100
        assert sum(1 for _ in itertools.islice(grid, 50_000)) == 50_000
        assert len(grid[1000:2_000_000]) == 1_999_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000


def test_more_than_can_be_numbered() -> None:
    """A product beyond what can be counted is refused by `len`, with its size."""
    grid = ParameterGrid("g")
    for i in range(20):
        grid.add_parameter(f"p{i}", list(range(10)))
    for use in (len, lambda g: g[0], lambda g: g.sample(1, 0)):
        with pytest.raises(GridError, match=r"g: has 1\.0e\+20 combinations"):
            use(grid)
    assert next(iter(grid)) == {f"p{i}": 0 for i in range(20)}
    with pytest.raises(GridError, match="combinations, more than can be numbered"):
        len(grid * ParameterGrid("h").add_parameter("q", list(range(10))))


def test_too_many_parameters() -> None:
    """The number of parameters has a limit."""
    grid = ParameterGrid("g")
    with pytest.raises(GridError, match="more than 300 parameters"):
        grid.add_nested_parameter("p", {f"k{i}": [1] for i in range(301)})
    assert grid.keys == ()


def test_parameters_tied_too_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constraint that ties everything together is refused before memory runs out."""
    monkeypatch.setattr(_paths, "_MAX_STEPS", 100)
    grid = ParameterGrid("g")
    for key in "abc":
        grid.add_parameter(key, list(range(10)))
    for _ in range(2):
        with pytest.raises(GridError, match="too many values together: write them over"):
            len(grid.where("a + b + c == 7"))
        # Looked for once: what was found holds until the grid changes.
        monkeypatch.setattr(Expression, "evaluate", None)
        for ask in (len, list, lambda known: known.sample(1, 0)):
            with pytest.raises(GridError, match="or include what you want to try"):
                ask(grid)
        monkeypatch.undo()
        monkeypatch.setattr(_paths, "_MAX_STEPS", 100)


def test_what_is_tied_too_closely_is_known_before_it_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A layer with too much to compute is refused before its first constraint."""
    asked: list[object] = []
    monkeypatch.setattr(Expression, "evaluate_many", asked.append)
    monkeypatch.setattr(Expression, "evaluate", asked.append)
    monkeypatch.setattr(_paths, "_MAX_STEPS", 500)
    grid = ParameterGrid("g")
    for key in "abc":
        grid.add_parameter(key, list(range(10)))
    with pytest.raises(GridError, match="tie too many values together"):
        len(grid.where("a + b + c == 7"))
    assert asked == []


def test_conditions_follow_each_other() -> None:
    """A condition on what does not apply does not hold; a constraint on it does."""
    grid = (
        ParameterGrid("g")
        .add_parameter("type", ["mlp", "linear"])
        .add_parameter("depth", [1, 2], only_when="type == 'mlp'")
        .add_parameter("skip", [True], only_when="depth > 1")
        .where("depth < 9")
    )
    assert list(grid) == [
        {"type": "mlp", "depth": 1},
        {"type": "mlp", "depth": 2, "skip": True},
        {"type": "linear"},
    ]
    assert grid.keys == ("type", "depth", "skip")
    assert {"type": "linear", "depth": 1} not in grid


def test_included_combinations_stay() -> None:
    """What is added is kept whatever is excluded, and not doubled if it is there."""
    grid = ParameterGrid("g").add_parameter("a", [1, 2]).where("a > 1")
    grid.include({"a": 1}, {"a": 2.0}, {"b": [1]})
    assert list(grid) == [{"a": 2}, {"a": 1}, {"b": [1]}]
    assert grid.keys == ("a", "b")
    assert grid.included == ({"a": 1}, {"a": 2.0}, {"b": [1]})
    assert list(ParameterGrid("g").include({"a": 1})) == [{"a": 1}]
    assert {} not in grid
    assert "a" not in grid


def test_grid_may_grow_after_it_was_counted() -> None:
    """Whatever is added later counts."""
    grid = ParameterGrid("g").add_parameter("a", [1, 2])
    sizes = [len(grid)]
    sizes.append(len(grid.add_parameter("b", [1, 2])))
    sizes.append(len(grid.where("a < 2")))
    sizes.append(len(grid.exclude({"b": 1})))
    sizes.append(len(grid.include({"c": 1})))
    assert sizes == [2, 4, 2, 1, 2]


def test_empty_grids() -> None:
    """A grid without parameters, or with nothing left, has no combination at all."""
    assert len(ParameterGrid("g")) == 0
    assert list(ParameterGrid("g")) == []
    assert list(ParameterGrid("g").add_parameter("a", [1]).where("a > 1")) == []
    assert bool(ParameterGrid("g")) is True
    assert {"a": 1} not in ParameterGrid("g")


DRAWN = (
    ParameterGrid("d")
    .add_parameter("lr", loguniform(1e-4, 1e-1))
    .add_parameter("kind", ["a", "b"])
    .add_parameter("depth", int_uniform(1, 3), only_when="kind == 'a'")
    .add_parameter("drop", uniform(0, 0.5))
    .add_parameter("act", choice(["relu", "tanh"]))
    .where("lr * depth < 0.1")
    .exclude({"kind": "b"})
)


def test_distributions_are_drawn() -> None:
    """Random search draws each parameter that applies, within all constraints."""
    sample = DRAWN.sample(50, seed=1)
    assert sample == DRAWN.sample(50, seed=1) != DRAWN.sample(50, seed=2)
    assert DRAWN.has_distributions
    for each in sample:
        assert list(each) == ["lr", "kind", "depth", "drop", "act"]
        assert each["lr"] * each["depth"] < 0.1
        assert each["kind"] == "a"
        assert each["depth"] in {1, 2, 3}
    assert ParameterGrid.from_plain(DRAWN.to_plain()).sample(50, 1) == sample


@pytest.mark.parametrize(
    "use",
    [
        len,
        iter,
        list,
        lambda grid: grid[0],
        lambda grid: grid[1:],
        lambda grid: grid.generate_permutations(),
        lambda grid: {"lr": 1} in grid,
    ],
)
@pytest.mark.parametrize(
    "combine", [lambda g, _: g, lambda g, h: g + h, lambda g, h: h * g]
)
def test_distributions_cannot_be_enumerated(use: Any, combine: Any) -> None:
    """Whatever would list or number what is drawn says what to use instead."""
    grid = combine(DRAWN, ParameterGrid("h").add_parameter("z", [1, 2]))
    with pytest.raises(GridError, match=r"use sample\(n, seed\) or a Bayesian search"):
        use(grid)


def test_samples_of_distributions_begin_with_what_is_included() -> None:
    """Combinations that were added are tried first, and count."""
    grid = (
        ParameterGrid("g").add_parameter("a", uniform(0, 1)).include({"a": 0.5}, {"a": 7})
    )
    sample = grid.sample(5, 0)
    assert sample[:2] == [{"a": 0.5}, {"a": 7}]
    assert len(sample) == 5
    assert grid.sample(1, 0) == [{"a": 0.5}]


def test_samples_end_where_nothing_new_is_found() -> None:
    """Too few different draws, or constraints that refuse all, end with an error."""
    grid = ParameterGrid("g").add_parameter("a", int_uniform(1, 3))
    assert sorted(c["a"] for c in grid.sample(3, 0)) == [1, 2, 3]
    with pytest.raises(
        GridError, match="gave 3 different combinations, then none in 1000"
    ):
        grid.sample(4, 0)
    with pytest.raises(GridError, match="gave 0"):
        grid.where("a > 5").sample(1, 0)
    with pytest.raises(ValueError, match="at least 0"):
        grid.sample(-1, 0)


def test_draw_asks_for_what_applies() -> None:
    """Whoever draws is asked for each axis that applies, in order, and told of refusals."""
    asked: list[str] = []

    def choose(axis: Any) -> Any:
        asked.append(axis.label)
        return 0.5 if axis.distribution else 1

    grid = (
        ParameterGrid("g")
        .add_parameter("a", [1, 2])
        .add_linked({"b": [1, 2], "c": [3, 4]}, only_when="a == 2")
        .add_parameter("d", uniform(0, 1))
        .add_parameter("e", [1], only_when="a == 1")
    )
    assert grid.draw(choose) == {"a": 2, "b": 2, "c": 4, "d": 0.5}
    assert asked == ["a", "b + c", "d"]
    assert grid.where("d < 0.5").draw(choose) is None
    assert (
        ParameterGrid("h").add_parameter("a", [1, 2]).exclude({"a": 2}).draw(choose)
        is None
    )


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda g: g.add_parameter("a", [1]), "g: a is set twice"),
        (lambda g: g.add_parameter("a.b", [1]), "as a whole, and in part"),
        (lambda g: g.add_parameter("experiment_name", ["x"]), "names its experiments"),
        (lambda g: g.add_parameter("a b", [1]), "no key"),
        (lambda g: g.add_parameter("c", []), "g: c: has no values"),
        (
            lambda g: g.add_parameter("c", [1], only_when="d == 1"),
            "no parameter added before",
        ),
        (
            lambda g: g.add_parameter("c", [1], only_when="c == 1"),
            "no parameter added before",
        ),
        (lambda g: g.add_parameter("c", [1], only_when="a =="), "cannot be read"),
        (lambda g: g.add_linked({"c": [1, 2], "d": [1]}), "equally long"),
        (
            lambda g: g.add_nested_parameter("m", {"x": [1], "y": []}),
            "m.y: has no values",
        ),
        (lambda g: g.where("aa > 1"), "did you mean 'a'"),
        (lambda g: g.where("1 < 2"), "names no parameter"),
        (lambda g: g.where(lambda _: True), "is text"),
        (lambda g: g.exclude({"aa": 1}), "did you mean 'a'"),
        (lambda g: g.exclude({"a": 3}), "3 is no value of a: nothing is left out"),
        (lambda g: g.exclude({"p": 1, "q": 4}), "nothing is left out"),
        (lambda g: g.exclude({"u": 1}), "is drawn, not listed"),
        (lambda g: g.exclude({}), "is no combination"),
        (lambda g: g.exclude([1]), "is no combination"),
        (lambda g: g.include({}), "is no combination"),
        (lambda g: g.include({"a": 1}, {"a": 1.0}), "included twice"),
        (lambda g: g.include({"a": {1}}), "set"),
        (lambda g: g.include({"a": 1, "a.b": 1}), "as a whole, and in part"),
        (lambda g: g.include({"experiment_name": "x"}), "given by the search"),
        (lambda g: g * ParameterGrid("h").add_parameter("a", [1]), "a is set twice"),
        (lambda g: g * ParameterGrid("h").add_parameter("a.b", [1]), "as a whole"),
        (lambda g: g * ParameterGrid("h").include({"z": 1}), "add whole combinations"),
    ],
)
def test_what_a_grid_refuses(build: Any, reason: str) -> None:
    """Each mistake is refused where it is made, by name, and changes nothing."""
    grid = (
        ParameterGrid("g")
        .add_parameter("a", [1, 2])
        .add_linked({"p": [1, 2], "q": [3, 4]})
        .add_parameter("u", uniform(0, 1))
    )
    before = grid.to_plain()
    with pytest.raises(GridError, match=reason):
        build(grid)
    assert grid.to_plain() == before


@pytest.mark.parametrize("name", ["", "a b", "../a", "a..b", 3, "a" * 129])
def test_hostile_names(name: Any) -> None:
    """A grid's name is a name."""
    with pytest.raises(GridError, match="grid: "):
        ParameterGrid(name)


def test_only_grids_combine() -> None:
    """A grid and something else are neither added nor crossed."""
    grid = ParameterGrid("g").add_parameter("a", [1])
    for combine in (operator.add, operator.mul):
        with pytest.raises(TypeError):
            combine(grid, 2)


def test_constraints_that_have_no_answer() -> None:
    """A constraint that cannot be computed names itself and the values."""
    grid = ParameterGrid("g").add_parameter("a", [1, "x"]).where("a < 2")
    with pytest.raises(
        ExpressionError, match="a < 2: 'x' and 2 have no order; with a = 'x'"
    ):
        len(grid)


@pytest.mark.parametrize(
    ("plain", "reason"),
    [
        ([], "f: is no grid"),
        ({}, "f: grid: .*is no name"),
        ({"name": "g", "parameter": {}}, "did you mean 'parameters'"),
        ({"name": "g", "parameters": [1]}, "f: g: parameters: write"),
        ({"name": "g", "parameters": {"a": 1}}, "f: g: a: give a list"),
        ({"name": "g", "parameters": {"a": {}}}, "f: g: a: write one of values, linked"),
        (
            {"name": "g", "parameters": {"a": {"values": [1], "int": [1, 2]}}},
            "write one of",
        ),
        ({"name": "g", "parameters": {"a": {"valeus": [1]}}}, "write one of"),
        ({"name": "g", "parameters": {"a": {"linked": [1]}}}, "below each of the linked"),
        (
            {"name": "g", "parameters": {"a": {"uniform": [2, 1]}}},
            "f: g: a: uniform goes",
        ),
        ({"name": "g", "parameters": {"a": [1]}, "where": 1}, "f: g: where: give a list"),
        ({"name": "g", "parameters": {"a": [1]}, "where": ["b"]}, "f: g: b: names 'b'"),
        ({"name": "g", "parameters": {"a": [1]}, "exclude": [1]}, "no combination"),
        ({"name": "g", "parameters": {"a": [1]}, "include": {}}, "give a list"),
        ({"crossed": []}, "a list of grids alone"),
        ({"crossed": [{"name": "g"}], "name": "x"}, "a list of grids alone"),
        ({"concatenated": [{"name": "g"}, 1]}, r"f: concatenated\[1\]: is no grid"),
    ],
)
def test_bad_files(plain: Any, reason: str) -> None:
    """What describes no grid is refused with its place in the file."""
    with pytest.raises(GridError, match=reason):
        ParameterGrid.from_plain(plain, "f")


def test_hand_written_grids() -> None:
    """A grid as people write it is read, with one constraint in place of a list."""
    grid = ParameterGrid.from_plain(
        {
            "name": "g",
            "description": "by hand",
            "parameters": {
                "optimizer.lr": [0.1, 0.01],
                "size": {"linked": {"model.width": [1, 2], "model.depth": [3, 4]}},
                "steps": {"values": [5], "only_when": "model.depth == 4"},
            },
            "where": "optimizer.lr < 0.1",
        }
    )
    assert list(grid) == [
        {"optimizer.lr": 0.01, "model.width": 1, "model.depth": 3},
        {"optimizer.lr": 0.01, "model.width": 2, "model.depth": 4, "steps": 5},
    ]
    assert ParameterGrid.from_plain({"crossed": [grid.to_plain()]}).name == "g"
    assert list(ParameterGrid.from_plain(grid.to_plain())) == list(grid)


def test_sampling_is_even() -> None:
    """Every combination of a constrained grid is drawn about equally often."""
    grid = ParameterGrid("g").add_parameter("a", [0, 1, 2]).add_parameter("b", [0, 1, 2])
    grid.where("a + b < 4").exclude({"a": 0, "b": 0})
    counts: dict[str, int] = {}
    for seed in range(1400):
        (drawn,) = grid.sample(1, seed)
        identity = identity_of(drawn)
        counts[identity] = counts.get(identity, 0) + 1
    assert len(counts) == len(grid) == 7
    assert all(140 < count < 260 for count in counts.values())


def test_known_sample() -> None:
    """Seeds draw what they drew in the first release, on every machine."""
    grid = ParameterGrid("g").add_parameter("a", list(range(1000)))
    assert [c["a"] for c in grid.sample(5, seed=0)] == [864, 394, 776, 911, 430]
    assert sys.maxsize > len(grid)


def test_arrays_and_dashes_are_told_how_to_be_written() -> None:
    """An array of values becomes a list, and a key with a dash stands in backticks."""
    numpy = pytest.importorskip("numpy")
    with pytest.raises(GridError, match=r"\.tolist\(\) makes one"):
        ParameterGrid("g").add_parameter("lr", numpy.zeros(2))
    grid = ParameterGrid("g").add_parameter("batch-size", list(numpy.arange(1, 4)))
    with pytest.raises(GridError, match="write batch-size in backticks"):
        grid.where("batch-size <= 2")
    assert list(grid.where("`batch-size` <= 2")) == [{"batch-size": 1}, {"batch-size": 2}]
    assert ParameterGrid.from_plain(grid.to_plain())[1] == {"batch-size": 2}
