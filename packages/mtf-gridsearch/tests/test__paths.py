import itertools
from collections.abc import Hashable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf_gridsearch import _paths
from mtf_gridsearch._paths import Moves, Paths, TooManyStepsError


def free(*sizes: int) -> Paths:
    """Return the paths through layers of these sizes that nothing ties together."""
    fragments = [[{f"p{i}": code} for code in range(n)] for i, n in enumerate(sizes)]
    return Paths(fragments, None, lambda layer, _: Moves(range(sizes[layer]), [None]))


def tied(sizes: list[int], modulus: int) -> tuple[Paths, list[dict[str, int]]]:
    """Return the paths whose sum of codes is a multiple of *modulus*, and a list of them."""
    fragments = [[{f"p{i}": code} for code in range(n)] for i, n in enumerate(sizes)]

    def advance(layer: int, total: Any) -> Moves:
        codes = list(range(sizes[layer]))
        if layer == len(sizes) - 1:
            codes = [code for code in codes if (total + code) % modulus == 0]
        states: list[Hashable] = [(total + code) % modulus for code in codes]
        return Moves(codes, states)

    listed = [
        {f"p{i}": code for i, code in enumerate(codes)}
        for codes in itertools.product(*map(range, sizes))
        if sum(codes) % modulus == 0
    ]
    return Paths(fragments, 0, advance), listed


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 5))
def test_paths_are_those_of_brute_force(sizes: list[int], modulus: int) -> None:
    """Count, order, random access and membership are those of the filtered product."""
    paths, listed = tied(sizes, modulus)
    assert paths.count == len(listed)
    assert list(paths.all()) == listed
    assert [paths.at(i) for i in range(paths.count)] == listed
    for codes in itertools.product(*map(range, sizes)):
        assert paths.has(codes) == (sum(codes) % modulus == 0)
    assert not paths.has([9] * len(sizes))


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """However many continuations are kept, the combinations are the same, each its own."""
    monkeypatch.setattr(_paths, "_CHUNK", chunk)
    monkeypatch.setattr(_paths, "_MAX_CHUNKS", 1)
    paths, listed = tied([3, 4, 2, 5], 3)
    found = list(paths.all())
    assert found == listed
    assert len({id(combination) for combination in found}) == len(found)
    assert len(paths._chunks) <= 1


def test_size_costs_nothing() -> None:
    """A hundred layers of a thousand steps are counted and reached by number."""
    paths = free(*[1000] * 100)
    assert paths.count == 1000**100
    assert paths.at(1000**100 - 1) == {f"p{i}": 999 for i in range(100)}
    assert paths.at(1001)["p99"] == 1
    assert next(paths.all()) == {f"p{i}": 0 for i in range(100)}


def test_ties_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit into memory is refused while it is built."""
    monkeypatch.setattr(_paths, "_MAX_STEPS", 50)
    with pytest.raises(TooManyStepsError):
        tied([10, 10, 10], 7)


def test_no_path() -> None:
    """Where every path ends in a dead end there is none."""
    paths = Paths(
        [[{}, {}], [{}]],
        0,
        lambda layer, _: Moves([], []) if layer else Moves([0, 1], [0]),
    )
    assert paths.count == 0
    assert list(paths.all()) == []
    assert not paths.has([0, 0])
