from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import IterableDataset

from mtf_trainer._data.beginning import Beginning


class Numbers(IterableDataset[int]):
    """Gives the numbers below 9, and says where it stands."""

    def __init__(self, at: Any = 0) -> None:
        self.at = at

    def __iter__(self) -> Iterator[int]:
        while self.at < 9:
            self.at += 1
            yield self.at - 1

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]

    __hash__ = None  # type: ignore[assignment]


class Reader:
    """Counts how often it was told that another reads."""

    def __init__(self) -> None:
        self.vacated = 0

    def vacate(self) -> None:
        self.vacated += 1


def test_a_data_set_begins_where_it_stood_first() -> None:
    """Each reader has it from there, and so has who reads it afterwards."""
    dataset = Numbers(2)
    for _ in range(2):
        reader = Reader()
        beginning = Beginning.of(dataset)
        beginning.take(dataset, reader)

        assert dataset.at == 2
        dataset.at = 7
        assert beginning.is_taken_by(reader)
        assert Beginning.known(dataset) is beginning

    beginning.give_back(dataset)

    assert dataset.at == 2
    assert not beginning.is_taken_by(reader)
    assert Beginning.known(dataset) is beginning


@pytest.mark.parametrize("moved_to", [5, object()])
def test_what_another_moved_begins_there(moved_to: Any) -> None:
    """A data set that its owner put elsewhere meanwhile is not put back."""
    dataset = Numbers()
    Beginning.of(dataset).take(dataset, Reader())
    Beginning.of(dataset).give_back(dataset)

    dataset.at = moved_to

    assert Beginning.known(dataset) is None
    Beginning.of(dataset).take(dataset, Reader())
    assert type(dataset.at) is type(moved_to)
    assert moved_to != 5 or dataset.at == 5


def test_a_state_that_is_no_plain_data_is_asked_for_again() -> None:
    """Whether such a data set was moved cannot be told: it begins where it stands."""
    dataset = Numbers(object())
    Beginning.of(dataset).take(dataset, Reader())
    Beginning.of(dataset).give_back(dataset)

    assert Beginning.known(dataset) is None


def test_nothing_keeps_a_data_set_that_was_read() -> None:
    """What is remembered of it goes with it."""
    dataset = Numbers()
    Beginning.of(dataset).take(dataset, Reader())
    alive = weakref.ref(dataset)

    del dataset
    gc.collect()

    assert alive() is None


def test_who_reads_is_told_before_another_does() -> None:
    """It is told once; who reads already is not told of itself, and none is kept for that."""
    dataset = Numbers()
    beginning = Beginning.of(dataset)
    one, other = Reader(), Reader()
    beginning.vacate(one)
    beginning.take(dataset, one)
    beginning.vacate(one)
    beginning.vacate(other)
    beginning.take(dataset, other)

    assert (one.vacated, other.vacated) == (1, 0)
    assert beginning.is_taken_by(other)
    assert not pickle.loads(pickle.dumps(beginning)).is_taken_by(other)  # noqa: S301
    del other
    gc.collect()
    beginning.vacate(one)
    assert one.vacated == 1
