from __future__ import annotations

import multiprocessing
import pickle
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from mtf_trainer._data.source import Batch, Cursor
from mtf_trainer._data.sources import count_samples, make_source
from mtf_trainer.errors import DataError

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


def noisy(index: int) -> Tensor:
    """Return the index and a number from each stream."""
    values = (index, random.random(), np.random.rand(), float(torch.rand(())))  # noqa: NPY002, S311
    return torch.tensor(values, dtype=torch.float64)


class Plain(IterableDataset[Tensor]):
    """Cannot say where it is."""

    def __init__(self, length: int = 22) -> None:
        self.length = length

    def __iter__(self) -> Iterator[Tensor]:
        for index in range(self.length):
            yield noisy(index)


class Shuffled(IterableDataset[Tensor]):
    """Gives an order that follows from the epoch, through a buffer; says where it is."""

    def __init__(self, length: int = 22) -> None:
        self.length = length
        self.epoch = self.position = 0
        self.buffer: list[int] = []

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        order = list(range(self.length))
        random.Random(self.epoch).shuffle(order)  # noqa: S311
        while self.position < self.length or self.buffer:
            while self.position < self.length and len(self.buffer) < 4:
                self.buffer.append(order[self.position])
                self.position += 1
            yield noisy(self.buffer.pop(random.randrange(len(self.buffer))))  # noqa: S311
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        # The very list, which changes as it is read on.
        return {"position": self.position, "buffer": self.buffer, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position, self.buffer = state["position"], state["buffer"]
        self.epoch = state["epoch"]


def source(loader: DataLoader[Any], **options: Any) -> Any:
    """Make a source for one process of as many as *options* say."""
    fabric = FakeFabric(options.pop("rank", 0), options.pop("world", 1))
    defaults = {"seed": 3, "accumulation": 1, "num_samples": count_samples}
    return make_source(fabric, loader, **defaults | options)  # type: ignore[arg-type]


def batches(
    loader: DataLoader[Any], epoch: int = 0, cursor: Cursor | None = None, **options: Any
) -> list[Batch]:
    """Return what one process reads in an epoch."""
    made = source(loader, **options)
    try:
        return list(made.batches(epoch, cursor))
    finally:
        made.close()


def rows(read: list[Batch]) -> list[Any]:
    """Return the data, sample by sample."""
    return [row for batch in read for row in batch.data.tolist()]


def told(batch: Batch) -> tuple[Any, ...]:
    """Return all but the data."""
    return (
        batch.num_samples,
        batch.window_samples,
        batch.closes_window,
        batch.is_last,
        batch.cursor,
    )


@pytest.mark.parametrize("persistent", [False, True])
def test_a_worker_changes_nothing(*, persistent: bool) -> None:
    """Order, draws and cursors are the same in this process and in a worker."""
    options: dict[str, Any] = {"num_workers": 1, "persistent_workers": persistent}
    here, there = (
        source(DataLoader(Shuffled(), 4)),
        source(DataLoader(Shuffled(), 4, **options)),
    )
    before = random.getstate(), torch.get_rng_state().tolist()
    try:
        for epoch in (0, 1, 0):
            expected = list(here.batches(epoch, None))
            read = list(there.batches(epoch, None))
            assert rows(read) == rows(expected)
            assert [told(b) for b in read] == [told(b) for b in expected]
            assert sorted(row[0] for row in rows(read)) == list(range(22))
    finally:
        there.close()
    assert multiprocessing.active_children() == []
    assert (random.getstate(), torch.get_rng_state().tolist()) == before


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("dataset", [Shuffled, Plain])
def test_a_cut_at_any_cursor_changes_nothing(
    dataset: type[Plain | Shuffled], num_workers: int
) -> None:
    """The rest behind each cursor is what the undisturbed epoch has there."""
    options: dict[str, Any] = {"accumulation": 2, "skip_to_resume": True}
    whole = batches(DataLoader(dataset(), 4), 1, **options)
    made = source(DataLoader(dataset(), 4, num_workers=num_workers), **options)

    try:
        for done, batch in enumerate(whole, start=1):
            cursor = pickle.loads(pickle.dumps(batch.cursor))  # noqa: S301
            rest = list(made.batches(1, made.adopt([cursor])))
            assert rows(rest) == rows(whole[done:])
            assert [told(b) for b in rest] == [told(b) for b in whole[done:]]
    finally:
        made.close()


def test_an_epoch_that_is_given_up_leaves_no_trace() -> None:
    """The next one begins from the state the stream had before it was read."""
    for num_workers in (0, 1):
        made = source(DataLoader(Shuffled(), 4, num_workers=num_workers))
        whole = rows(list(made.batches(0, None)))
        given_up = made.batches(0, None)
        next(given_up)
        next(given_up)
        assert rows(list(made.batches(0, None))) == whole
        made.close()
        assert multiprocessing.active_children() == []


def test_windows_close_with_the_stream() -> None:
    """22 samples in windows of 2 batches of 4 are 8, 8 and a ragged 6."""
    read = batches(DataLoader(Shuffled(), 4), accumulation=2)

    assert [b.num_samples for b in read] == [4, 4, 4, 4, 4, 2]
    assert [b.closes_window for b in read] == [False, True] * 3
    assert [b.is_last for b in read] == [False] * 5 + [True]
    assert {b.window_samples for b in read} == {None}
    exact = batches(DataLoader(Shuffled(16), 4), accumulation=2)
    assert [b.is_last for b in exact] == [False] * 3 + [True]


def test_drop_last_leaves_out_a_short_batch() -> None:
    """The last 2 of 22 are not read, and the batch before them is the last."""
    loader: DataLoader[Any] = DataLoader(Shuffled(), 4, drop_last=True)

    read = batches(loader)

    assert [b.num_samples for b in read] == [4] * 5
    assert read[-1].is_last
    assert source(loader).num_batches == 5


def test_a_cursor_in_a_window_may_be_read_with_another_batch_size() -> None:
    """A window of 8 goes on with its rest, in batches of 8."""
    cursor = batches(DataLoader(Shuffled(), 4), accumulation=2)[2].cursor

    rest = batches(DataLoader(Shuffled(), 8), cursor=cursor)

    assert [b.num_samples for b in rest] == [4, 6]


def test_processes_draw_differently() -> None:
    """Two processes that read the same samples change them each in its own way."""
    read = [
        rows(batches(DataLoader(Plain(), 4), rank=rank, world=2, skip_to_resume=True))
        for rank in (0, 1)
    ]

    assert [row[0] for row in read[0]] == [row[0] for row in read[1]]
    assert not {row[1] for row in read[0]} & {row[1] for row in read[1]}


class WithoutState(Shuffled):
    state_dict = None  # type: ignore[assignment]


def test_a_stream_that_cannot_say_where_it_is_is_refused() -> None:
    """Before anything is trained, and not where nothing is."""
    for dataset in (Plain(), WithoutState()):
        with pytest.raises(
            DataError, match=r"cannot say where it is.*skip_to_resume=True"
        ):
            source(DataLoader(dataset))
        assert source(DataLoader(dataset), training=False)
        assert source(DataLoader(dataset), skip_to_resume=True)


def test_a_stream_that_became_shorter_is_noticed() -> None:
    """What was used cannot be passed over if it is not there."""
    with pytest.raises(DataError, match="ended after 3 samples, where 8 had been used"):
        batches(
            DataLoader(Plain(3), 4),
            cursor={"samples": 8, "processes": 1},
            skip_to_resume=True,
        )


def test_more_workers_than_one_are_not_used() -> None:
    """The caller is told why; the order is that of one."""
    loader = DataLoader(Shuffled(), 4, num_workers=2)

    with pytest.warns(UserWarning, match="read by 1 worker, not 2: split among workers"):
        made = source(loader)
    reader = made.batches(0, None)
    next(reader)

    assert len(multiprocessing.active_children()) == 1
    made.close()


def test_another_number_of_processes_is_refused() -> None:
    """Each process had a stream of its own; each gets its own back."""
    cursors = [{"samples": 4, "processes": 2}, {"samples": 8, "processes": 2}]
    loader: DataLoader[Any] = DataLoader(Shuffled(), 4)

    assert source(loader, rank=1, world=2).adopt(cursors) == cursors[1]
    with pytest.raises(DataError, match="each of 2 processes read a stream of its own"):
        source(loader).adopt(cursors)
    with pytest.raises(DataError, match="no place in a stream"):
        source(loader).adopt([{"samples": 4}])
    assert source(loader, world=2, accumulation=3).layout() == {"global_batch": 24}


class Batched(IterableDataset[Tensor]):
    """Gives whole batches."""

    def __iter__(self) -> Iterator[Tensor]:
        yield torch.zeros(3)
        yield torch.zeros(5)


def test_a_stream_of_whole_batches() -> None:
    """They are counted by the function given for it; the length is not known."""
    loader: DataLoader[Any] = DataLoader(Batched(), batch_size=None)

    read = batches(loader, accumulation=2, skip_to_resume=True)

    assert [b.num_samples for b in read] == [3, 5]
    assert [b.closes_window for b in read] == [False, True]
    assert source(loader, skip_to_resume=True).num_batches is None


def test_an_empty_stream_has_no_batches() -> None:
    """Nothing is read, and nothing hangs."""
    assert batches(DataLoader(Shuffled(0), 4)) == []


class Open(Plain):
    """Holds something open while it is read."""

    closed = False

    def __iter__(self) -> Iterator[Tensor]:
        try:
            yield from super().__iter__()
        finally:
            type(self).closed = True


def test_closing_lets_go_of_what_the_stream_holds_open() -> None:
    """A stream that is read here is ended with the source."""
    made = source(DataLoader(Open(), 4), skip_to_resume=True)
    next(made.batches(0, None))
    assert not Open.closed

    made.close()

    assert Open.closed


class Stateless(Shuffled):
    """Has the methods, and says nothing as long as it was not read."""

    def state_dict(self) -> Any:
        return None

    def load_state_dict(self, state: Any) -> None:
        assert state is None
        self.position, self.buffer = 0, []


def test_a_state_of_none_is_read_again() -> None:
    """A place that the stream does not tell is found by reading up to it."""
    whole = batches(DataLoader(Stateless(), 4))
    made = source(DataLoader(Stateless(), 4))

    for _ in range(2):
        assert rows(list(made.batches(0, whole[1].cursor))) == rows(whole[2:])


class TellsTheLast(Shuffled):
    """Says where it was last read, whatever was loaded since, as some libraries' do."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted = self.told = super().state_dict()

    def __iter__(self) -> Iterator[Tensor]:
        self.position, self.buffer = self.wanted["position"], list(self.wanted["buffer"])
        for sample in super().__iter__():
            self.told = super().state_dict()
            yield sample

    def state_dict(self) -> dict[str, Any]:
        return self.told

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.wanted = state


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("dataset", [Shuffled, TellsTheLast])
def test_a_stream_is_as_new_once_its_source_is_closed(
    dataset: type[Shuffled], num_workers: int
) -> None:
    """Another source reads all of it, given up or ended before, here or in a worker."""
    whole = [rows(batches(DataLoader(dataset(), 4), epoch)) for epoch in (0, 1)]
    used = dataset()
    for num_batches in (6, 0, 2):
        earlier = source(DataLoader(used, 4))
        for _, _ in zip(range(num_batches), earlier.batches(0, None), strict=False):
            pass
        earlier.close()

    made = source(DataLoader(used, 4, num_workers=num_workers))
    try:
        read = [rows(list(made.batches(epoch, None))) for epoch in (0, 1)]
    finally:
        made.close()

    assert read == whole


@pytest.mark.parametrize("dataset", [Shuffled, TellsTheLast, Plain])
def test_sources_of_one_stream_do_not_disturb_each_other(
    dataset: type[Shuffled | Plain],
) -> None:
    """Read by turns, each gives what it would give alone."""
    used = dataset()
    options: dict[str, Any] = {"skip_to_resume": True}
    alone = [
        batches(DataLoader(dataset(), size), epoch, **options)
        for size, epoch in ((4, 0), (8, 1))
    ]
    by_turns = [source(DataLoader(used, size), **options) for size in (4, 8)]
    iterators = [made.batches(epoch, None) for epoch, made in enumerate(by_turns)]

    read: list[list[Batch]] = [[], []]
    for which in (0, 0, 1, 0, 1, 1, 0, 0, 0):
        read[which].append(next(iterators[which]))
    for made in by_turns:
        made.close()

    for one, other in zip(read, alone, strict=True):
        assert rows(one) == rows(other)
        assert [told(b) for b in one] == [told(b) for b in other]


class BeginsAgain(Shuffled):
    """Goes back to its beginning only when it is read once more."""

    def __iter__(self) -> Iterator[Tensor]:
        if self.position == self.length:
            self.position = 0
        while self.position < self.length:
            self.position += 1
            yield noisy(self.position)


@pytest.mark.parametrize("others", [1, 99])
@pytest.mark.parametrize("size", [4, 6])
@pytest.mark.parametrize("dataset", [Shuffled, TellsTheLast, BeginsAgain])
def test_an_epoch_ends_wherever_another_reads_between(
    dataset: type[Shuffled], size: int, others: int
) -> None:
    """What a stream says behind its last batch may be its beginning: it ends all the same."""
    whole = batches(DataLoader(dataset(), size))
    for place in range(1, len(whole) + 1):
        used = dataset()
        made, other = source(DataLoader(used, size)), source(DataLoader(used, 3))
        iterator = made.batches(0, None)
        read = [next(iterator) for _ in range(place)]
        between = other.batches(1, None)
        for _, _ in zip(range(others), between, strict=False):
            pass
        read += iterator
        other.close()
        made.close()

        assert rows(read) == rows(whole)
        assert [told(b) for b in read] == [told(b) for b in whole]
        assert rows(batches(DataLoader(used, size))) == rows(whole)


class Fails(Shuffled):
    """Fails at its sixth sample."""

    def __iter__(self) -> Iterator[Tensor]:
        for sample in super().__iter__():
            if self.position == 6:
                msg = "the sixth"
                raise OSError(msg)
            yield sample


def test_a_failure_is_told_to_who_reads_on() -> None:
    """A stream that fails behind a batch does so there, and not where another begins."""
    used = Fails()
    made, other = source(DataLoader(used, 1)), source(DataLoader(used, 1))
    iterator = made.batches(0, None)
    next(iterator)
    next(other.batches(0, None))

    with pytest.raises(OSError, match="the sixth"):
        list(iterator)
    other.close()
    made.close()


@pytest.mark.parametrize("forked", [True, False])
@pytest.mark.parametrize("dataset", [Shuffled, TellsTheLast])
def test_a_worker_knows_where_a_stream_begins_that_is_read_here(
    dataset: type[Shuffled], *, forked: bool
) -> None:
    """It reads all of a stream that stands in its middle in the process it is of."""
    used = dataset()
    here = source(DataLoader(used, 4))
    iterator = here.batches(0, None)
    first = [next(iterator), next(iterator)]

    there = source(DataLoader(used, 4, num_workers=int(forked)))
    if not forked:
        # A worker that is spawned has a copy of all; it is read in this process.
        there._fetcher.recall()
        there._reader._fetcher = pickle.loads(pickle.dumps(there._fetcher))  # noqa: S301
    read = rows(list(there.batches(0, None)))
    there.close()

    assert read == rows(batches(DataLoader(dataset(), 4)))
    assert rows(first) + rows(list(iterator)) == read
    here.close()


class Draws(Shuffled):
    """Draws wherever it is asked something."""

    def state_dict(self) -> dict[str, Any]:
        random.random()  # noqa: S311
        return super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.rand(())
        super().load_state_dict(state)


def test_what_a_stream_draws_besides_leaves_the_process_alone() -> None:
    """Opened, closed and opened again, it changes no stream of random numbers."""
    before = random.getstate(), torch.get_rng_state().tolist()
    used = Draws()

    for _ in range(2):
        made = source(DataLoader(used, 4))
        next(made.batches(0, None))
        made.close()

    assert (random.getstate(), torch.get_rng_state().tolist()) == before
