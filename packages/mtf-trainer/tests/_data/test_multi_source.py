from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mtf_trainer._data.source import Batch, Cursor
from mtf_trainer._data.sources import count_samples, make_source
from mtf_trainer.errors import DataError
from mtf_trainer.multi_loader import MultiLoader

# Loader workers are forked; from Python 3.12 on that warns where threads are about.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning"
)


@dataclass
class FakeFabric:
    """Says which process it is; nothing is communicated."""

    global_rank: int = 0
    world_size: int = 1

    def to_device(self, data: Any) -> Any:
        return data


class Noisy(Dataset[Tensor]):
    """Gives numbers from *first* on, each with one that is drawn."""

    def __init__(self, first: int, length: int) -> None:
        self.first, self.length = first, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([self.first + index, random.random()], dtype=torch.float64)  # noqa: S311


class Stream(IterableDataset[int]):
    """Gives *length* numbers, and says it has *told*."""

    def __init__(self, length: int, told: int) -> None:
        self.length, self.told = length, told

    def __len__(self) -> int:
        return self.told

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length))


def loaders(batch_size: int = 2, **options: Any) -> dict[str, DataLoader[Any]]:
    """Return loaders of 10 and of 5 samples."""
    return {
        "a": DataLoader(Noisy(0, 10), batch_size, shuffle=True, **options),
        "b": DataLoader(Noisy(100, 5), batch_size, shuffle=True, **options),
    }


def source(multi: MultiLoader, **options: Any) -> Any:
    """Make a source for one process of as many as *options* say."""
    fabric = FakeFabric(options.pop("rank", 0), options.pop("world", 1))
    defaults = {"seed": 3, "accumulation": 1, "num_samples": count_samples}
    return make_source(fabric, multi, **defaults | options)  # type: ignore[arg-type]


def batches(
    multi: MultiLoader, epoch: int = 0, cursor: Cursor | None = None, **options: Any
) -> list[Batch]:
    """Return what one process reads in an epoch."""
    made = source(multi, **options)
    try:
        return list(made.batches(epoch, cursor))
    finally:
        made.close()


def told(batch: Batch) -> tuple[Any, ...]:
    """Return all there is to a batch."""
    return (
        batch.data.tolist(),
        batch.num_samples,
        batch.window_samples,
        batch.closes_window,
        batch.is_last,
        batch.cursor,
        batch.loader,
        batch.loss_weight,
    )


def samples(read: list[Batch], name: str) -> list[int]:
    """Return the numbers that came from a loader."""
    return [int(row[0]) for b in read if b.loader == name for row in b.data.tolist()]


def test_each_batch_says_where_it_is_from() -> None:
    """In turn, with the weight of its loader; the longer one is left at the end."""
    read = batches(MultiLoader(loaders(), loss_weights={"b": 0.5}))

    assert [b.loader for b in read] == ["a", "b", "a", "b", "a", "b", "a", "a"]
    assert [b.loss_weight for b in read] == [1, 0.5, 1, 0.5, 1, 0.5, 1, 1]
    assert [b.window_samples for b in read] == [2, 2, 2, 2, 2, 1, 2, 2]
    assert [b.is_last for b in read] == [False] * 7 + [True]
    assert sorted(samples(read, "a")) == list(range(10))
    assert sorted(samples(read, "b")) == list(range(100, 105))


def test_windows_are_counted_over_all_loaders() -> None:
    """Every third batch closes one, whoever gave it, and the last does."""
    read = batches(MultiLoader(loaders()), accumulation=3)

    assert [b.closes_window for b in read] == [*[False, False, True] * 2, False, True]
    assert {b.window_samples for b in read} == {None}


SCHEDULES: list[tuple[Any, Any]] = [
    ("round_robin", "sum"),
    ("round_robin", "longest"),
    ("sequential", 19),
    (["a", "b", "b"], "longest"),
    ({"a": 1, "b": 2}, 21),
    ({"a": 1, "b": 2}, "sum"),
]


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(("schedule", "epoch_length"), SCHEDULES)
def test_a_cut_at_any_cursor_changes_nothing(
    schedule: Any, epoch_length: Any, accumulation: int
) -> None:
    """The rest behind each cursor is what the undisturbed epoch has there."""

    def multi() -> MultiLoader:
        return MultiLoader(loaders(), schedule=schedule, epoch_length=epoch_length)

    whole = batches(multi(), 4, accumulation=accumulation)
    assert len(whole) == source(multi()).num_batches

    for done, batch in enumerate(whole, start=1):
        made = source(multi(), accumulation=accumulation)
        cursor = made.adopt([json.loads(json.dumps(batch.cursor))])
        rest = list(made.batches(4, cursor))
        assert [told(b) for b in rest] == [told(b) for b in whole[done:]]


def test_a_loader_that_begins_again_has_an_order_of_its_own() -> None:
    """Its second pass differs from the first, and from its first in the next epoch."""
    multi = MultiLoader(
        {
            "a": DataLoader(Noisy(0, 60), 2),
            "b": DataLoader(Noisy(0, 20), 2, shuffle=True),
        },
        epoch_length="longest",
    )

    first, second = (samples(batches(multi, epoch), "b") for epoch in (0, 1))

    passes = [*(first[i : i + 20] for i in (0, 20, 40)), second[:20]]
    assert all(sorted(each) == list(range(20)) for each in passes)
    assert len({tuple(each) for each in passes}) == 4


def test_loaders_over_the_same_data_have_orders_of_their_own() -> None:
    """The name is part of what the order follows from."""
    data = Noisy(0, 20)
    multi = MultiLoader({name: DataLoader(data, 2, shuffle=True) for name in ("a", "b")})

    read = batches(multi)

    assert samples(read, "a") != samples(read, "b")


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_change_nothing(*, persistent: bool) -> None:
    """Each loader keeps its own; none is left once the source is closed."""
    options: dict[str, Any] = {"num_workers": 1, "persistent_workers": persistent}
    made = source(MultiLoader(loaders(**options), epoch_length="longest"))
    plain = source(MultiLoader(loaders(), epoch_length="longest"))
    try:
        for epoch in (0, 1):
            expected = [told(b) for b in plain.batches(epoch, None)]
            assert [told(b) for b in made.batches(epoch, None)] == expected
            assert len(multiprocessing.active_children()) == 2 * persistent
        given_up = made.batches(0, None)
        next(given_up)
        next(given_up)
        assert [told(b) for b in made.batches(1, None)] == expected
    finally:
        made.close()
    assert multiprocessing.active_children() == []


def test_the_global_order_goes_on_with_another_number_of_processes() -> None:
    """Two processes with half the batch read on what one began."""
    whole = batches(MultiLoader(loaders(4), epoch_length="longest"), accumulation=2)
    multi = MultiLoader(loaders(2), epoch_length="longest")
    made = [source(multi, rank=rank, world=2, accumulation=2) for rank in (0, 1)]
    assert (
        made[0].layout()
        == source(
            MultiLoader(loaders(4), epoch_length="longest"), accumulation=2
        ).layout()
    )

    for done, batch in enumerate(whole, start=1):
        read = [list(each.batches(0, each.adopt([batch.cursor]))) for each in made]
        together = [
            [row for b in step for row in b.data.tolist()[: b.num_samples]]
            for step in zip(*read, strict=True)
        ]
        assert together == [b.data.tolist() for b in whole[done:]]
        assert [b.cursor for b in read[1]] == [b.cursor for b in whole[done:]]


def test_the_layout_tells_another_schedule() -> None:
    """What would make another epoch of the same loaders cannot pass unseen."""
    layouts = [
        source(MultiLoader(loaders(), schedule=schedule, epoch_length=7)).layout()
        for schedule in ("round_robin", ["a", "b", "a"])
    ]

    assert layouts[0] != layouts[1]
    assert layouts[0]["a.num_samples"] == 10
    assert layouts[0]["epoch_batches"] == 7


def test_cursors_that_name_no_place_are_refused() -> None:
    """Another kind of loader, other names, or processes that do not agree."""
    made = source(MultiLoader(loaders()))
    read = batches(MultiLoader(loaders()))
    others = MultiLoader({"x": DataLoader(Noisy(0, 2))})
    for cursors in (
        [{"samples": 3}],
        [batches(others)[0].cursor],
        [read[0].cursor, read[1].cursor],
    ):
        with pytest.raises(DataError, match="no place in a schedule of a, b"):
            made.adopt(cursors)


def test_a_place_among_batches_of_another_size_is_refused() -> None:
    """With two processes and the same batch size a step would be twice as large."""
    cursor = batches(MultiLoader(loaders()))[0].cursor

    with pytest.raises(DataError, match="same batch size times number of processes"):
        source(MultiLoader(loaders()), world=2).adopt([cursor])


@pytest.mark.parametrize(
    ("length", "said", "message"),
    [
        (3, 4, "says it has 4 batches and gave 3:"),
        (5, 4, "says it has 4 batches and gave 4 and more"),
        (0, 4, "loader 'x' has no batches"),
    ],
)
def test_a_stream_that_is_not_as_long_as_it_says_is_refused(
    length: int, said: int, message: str
) -> None:
    """Where each is read once, none is left out or begun again silently."""
    multi = MultiLoader({"x": DataLoader(Stream(length, said))})

    with pytest.raises(DataError, match=message):
        batches(multi, skip_to_resume=True)


def test_streams_begin_again_where_the_epoch_is_longer() -> None:
    """A pass ends where the stream does, whatever it says."""
    multi = MultiLoader({"x": DataLoader(Stream(3, 9))}, epoch_length=7)

    read = batches(multi, skip_to_resume=True)

    assert [int(b.data) for b in read] == [0, 1, 2, 0, 1, 2, 0]


class Told(IterableDataset[int]):
    """Gives the numbers below 10, and says where it stands."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[int]:
        while self.at < 10:
            self.at += 1
            yield self.at - 1
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("persistent", [False, True])
def test_streams_begin_anew_with_each_epoch(
    *, num_workers: int, persistent: bool
) -> None:
    """One stream behind two loaders, cut before its end and cut again at a cursor."""
    dataset = Told()
    options: dict[str, Any] = {}
    if num_workers:
        options = {"num_workers": num_workers, "persistent_workers": persistent}

    def multi() -> MultiLoader:
        both = {name: DataLoader(dataset, 2, **options) for name in ("a", "b")}
        return MultiLoader(both, epoch_length=7)

    for _ in range(2):
        made = source(multi())
        whole = [list(made.batches(epoch, None)) for epoch in (0, 1)]
        cut = list(made.batches(0, made.adopt([whole[0][2].cursor])))
        made.close()

        for read in whole:
            of_a, of_b = ([b for b in read if b.loader == name] for name in ("a", "b"))
            assert [int(n) for b in of_a for n in b.data] == list(range(8))
            assert [int(n) for b in of_b for n in b.data] == list(range(6))
        assert [told(b) for b in cut] == [told(b) for b in whole[0][3:]]
        assert dataset.at == 0
    assert multiprocessing.active_children() == []


class Unwilling(Told):
    """Cannot be put back."""

    def load_state_dict(self, state: dict[str, int]) -> None:
        if self.at != state["at"]:
            raise ValueError(state)


def test_all_loaders_are_closed_though_one_raises() -> None:
    """No worker is left where a stream does not take its own state back."""
    both: dict[str, DataLoader[Any]] = {
        "here": DataLoader(Unwilling(), 2),
        "there": DataLoader(Told(), 2, num_workers=1),
    }
    made = source(MultiLoader(both, epoch_length=7))
    iterator = made.batches(0, None)
    next(iterator)
    next(iterator)

    with pytest.raises(ValueError, match="at"):
        made.close()

    assert multiprocessing.active_children() == []
