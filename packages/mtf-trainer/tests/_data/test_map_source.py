from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    StackDataset,
    Subset,
    TensorDataset,
)

from mtf_trainer._data.source import Batch, Cursor
from mtf_trainer._data.sources import count_samples, make_source
from mtf_trainer.errors import DataError

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create",
    # Loader workers are forked; from Python 3.12 on that warns where threads are about.
    "ignore:.*multi-threaded, use of fork:DeprecationWarning",
)


@dataclass
class FakeFabric:
    """Says which process it is; nothing is communicated."""

    global_rank: int = 0
    world_size: int = 1

    def to_device(self, data: Any) -> Any:
        return data


class Noisy(Dataset[Tensor]):
    """Gives the index and a number from each stream."""

    def __init__(self, length: int = 43) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        values = (index, random.random(), np.random.rand(), float(torch.rand(())))  # noqa: NPY002, S311
        return torch.tensor(values, dtype=torch.float64)

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        raise AssertionError(indices)


class Numbers(Dataset[int]):
    """Gives the index."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


def shaken(samples: list[Any]) -> Tensor:
    """Collate, and add a number that is drawn."""
    return torch.stack(samples) + torch.rand((), dtype=torch.float64)


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


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("num_workers", [2, 4])
@pytest.mark.parametrize("collate_fn", [None, shaken])
def test_workers_change_nothing(
    *, num_workers: int, persistent: bool, collate_fn: Callable[..., Any] | None
) -> None:
    """Order and everything drawn are the same in this process and in any workers."""
    plain = source(DataLoader(Noisy(), 8, shuffle=True, collate_fn=collate_fn))
    loader = DataLoader(
        Noisy(),
        8,
        shuffle=True,
        num_workers=num_workers,
        persistent_workers=persistent,
        collate_fn=collate_fn,
    )
    with_workers = source(loader)

    epochs = [rows(list(plain.batches(epoch, None))) for epoch in (0, 1, 0)]
    try:
        read = [rows(list(with_workers.batches(epoch, None))) for epoch in (0, 1, 0)]
    finally:
        with_workers.close()

    assert read == epochs
    assert epochs[0] == epochs[2] != epochs[1]
    assert [row[0] for row in epochs[0]] != [row[0] for row in epochs[1]]


@pytest.mark.slow
def test_spawned_workers_change_nothing(launch: Callable[..., Any]) -> None:
    """Workers that begin from nothing read the same as this process."""
    script = Path(__file__).parents[1] / "run_spawned_workers.py"

    (told,) = launch(script, timeout_s=120)

    assert told.code == 0, told.err
    assert told.out == "the same\n"


def test_draws_follow_from_the_index_and_not_from_the_batch() -> None:
    """Another batch size, order or number of processes shows the same samples."""
    in_order = {row[0]: row for row in rows(batches(DataLoader(Noisy(), 5)))}
    shuffled = rows(batches(DataLoader(Noisy(), 8, shuffle=True), world=2))
    other_epoch = rows(batches(DataLoader(Noisy(), 5), epoch=1))
    other_seed = rows(batches(DataLoader(Noisy(), 5), seed=4))

    assert all(in_order[row[0]] == row for row in shuffled)
    for others in (other_epoch, other_seed):
        assert not {row[1] for row in others} & {row[1] for row in in_order.values()}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streams_of_the_process_are_untouched(num_workers: int) -> None:
    """Reading, and making the source, draws nothing from what the training draws from."""

    def states() -> list[Any]:
        numpy_state: Any = np.random.get_state()  # noqa: NPY002
        words = numpy_state[1].tolist()
        return [random.getstate(), words, numpy_state[2:], torch.get_rng_state().tolist()]

    loader = DataLoader(
        Noisy(), 8, shuffle=True, num_workers=num_workers, collate_fn=shaken
    )
    before = states()

    made = source(loader)
    reader = made.batches(0, None)
    for _ in range(3):
        next(reader)
        assert states() == before
    made.close()

    assert states() == before


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_cut_at_any_cursor_changes_nothing(
    *, accumulation: int, drop_last: bool
) -> None:
    """The rest behind each cursor is what the undisturbed epoch has there."""
    loader: DataLoader[Any] = DataLoader(Noisy(), 4, shuffle=True, drop_last=drop_last)
    whole = batches(loader, accumulation=accumulation)

    for done, batch in enumerate(whole, start=1):
        rest = batches(loader, cursor=batch.cursor, accumulation=accumulation)
        assert rows(rest) == rows(whole[done:])
        assert [_told(b) for b in rest] == [_told(b) for b in whole[done:]]


def _told(batch: Batch) -> tuple[Any, ...]:
    return (
        batch.num_samples,
        batch.window_samples,
        batch.closes_window,
        batch.is_last,
        batch.cursor,
    )


def test_windows_are_closed_exactly() -> None:
    """43 samples in windows of 3 batches of 4 are 12, 12, 12 and a ragged 7."""
    read = batches(DataLoader(Numbers(43), 4), accumulation=3)

    assert [b.num_samples for b in read] == [4] * 10 + [3]
    assert [b.window_samples for b in read] == [12] * 9 + [7] * 2
    assert [b.closes_window for b in read] == [*[False, False, True] * 3, False, True]
    assert [b.is_last for b in read] == [False] * 10 + [True]
    assert [b.cursor for b in read[-2:]] == [{"samples": 40}, {"samples": 43}]


@pytest.mark.parametrize(
    ("length", "world", "accumulation", "drop_last"),
    [(43, 1, 1, False), (43, 2, 3, False), (43, 4, 2, True), (7, 4, 1, False)],
)
def test_number_of_batches_is_known(
    *, length: int, world: int, accumulation: int, drop_last: bool
) -> None:
    """What the source says it has is what each process reads."""
    loader: DataLoader[Any] = DataLoader(Numbers(length), 4, drop_last=drop_last)
    for rank in range(world):
        options = {"rank": rank, "world": world, "accumulation": accumulation}
        made = source(loader, **options)
        assert made.num_batches == len(list(made.batches(0, None)))


def test_drop_last_leaves_out_what_does_not_fill_a_window() -> None:
    """A window holds 16 samples of all processes: 43 make two of them."""
    loader: DataLoader[Any] = DataLoader(Numbers(43), 4, drop_last=True)

    read = [batches(loader, rank=rank, world=2, accumulation=2) for rank in (0, 1)]

    assert sorted(rows(read[0]) + rows(read[1])) == list(range(32))
    assert all(b.window_samples == 16 for b in read[0] + read[1])


def test_processes_without_a_sample_get_a_filler() -> None:
    """At the end the others repeat a batch of the window, which counts nothing."""
    loader: DataLoader[Any] = DataLoader(Numbers(10), 4)

    read = [batches(loader, rank=rank, world=2, accumulation=2) for rank in (0, 1)]

    assert [(rows([b]), b.num_samples) for b in read[0]] == [
        ([0, 1, 2, 3], 4),
        ([8, 9], 2),
    ]
    assert [(rows([b]), b.num_samples) for b in read[1]] == [
        ([4, 5, 6, 7], 4),
        ([0, 1, 2, 3], 0),
    ]
    assert [_told(b)[1:] for b in read[0]] == [_told(b)[1:] for b in read[1]]


@pytest.mark.parametrize("stops", [(2, 3, 1), (1, 1, 1), (3, 2, 2)])
def test_the_global_order_goes_on_with_other_numbers_of_processes(
    stops: tuple[int, ...],
) -> None:
    """1, 2, 4, then 3 processes read one order; each sample counts exactly once."""
    worlds = [(1, 8, 3), (2, 4, 3), (4, 2, 3), (3, 4, 2)]
    seen: list[float] = []
    cursor: Cursor | None = None
    windows: dict[int, int] = {}
    for (world, size, accumulation), stop in zip(worlds, (*stops, None), strict=True):
        loader = DataLoader(Noisy(101), size, shuffle=True)
        made = [
            source(loader, rank=rank, world=world, accumulation=accumulation)
            for rank in range(world)
        ]
        assert made[0].layout() == {
            "global_batch": 24,
            "order": "shuffled",
            "num_samples": 101,
        }
        if cursor is not None:
            cursor = made[0].adopt([cursor])
        read = [list(each.batches(5, cursor))[:stop] for each in made]
        for step in zip(*read, strict=True):
            begin = len(seen)
            for batch in step:
                seen += [row[0] for row in batch.data.tolist()][: batch.num_samples]
                assert batch.cursor == step[0].cursor
            windows[begin // 24] = step[0].window_samples or 0
            assert step[0].closes_window == (len(seen) % 24 == 0 or len(seen) == 101)
            assert step[0].cursor == {"samples": len(seen)}
        cursor = read[0][-1].cursor

    undisturbed = rows(batches(DataLoader(Noisy(101), 24, shuffle=True), epoch=5))
    assert seen == [row[0] for row in undisturbed]
    assert windows == {0: 24, 1: 24, 2: 24, 3: 24, 4: 5}


@pytest.mark.parametrize(
    "cursors", [[{"samples": 4}, {"samples": 8}], [{"batches": 1}], [{}]]
)
def test_cursors_that_name_no_place_are_refused(cursors: list[Cursor]) -> None:
    """Processes that do not agree, or another kind of loader, stop the run."""
    with pytest.raises(DataError, match="no place in an order of samples"):
        source(DataLoader(Numbers(10))).adopt(cursors)


class Buckets:
    """A batch sampler whose batches differ in size."""

    def __iter__(self) -> Iterator[list[int]]:
        yield [0]
        yield [1, 2]
        yield [3, 4, 5]
        yield [6, 7]
        yield [8]

    def __len__(self) -> int:
        return 5


def test_batches_of_a_batch_sampler_go_to_processes_in_turn() -> None:
    """Each is used whole and once; the cursor counts batches."""
    loader: DataLoader[Any] = DataLoader(Numbers(9), batch_sampler=Buckets())

    read = [batches(loader, rank=rank, world=2, accumulation=2) for rank in (0, 1)]

    assert [rows([b]) for b in read[0]] == [[0], [3, 4, 5], [8]]
    assert [rows([b]) for b in read[1]] == [[1, 2], [6, 7], [8]]
    assert [b.num_samples for b in read[1]] == [2, 2, 0]
    assert [b.window_samples for b in read[0]] == [8, 8, 1]
    assert read[0][0].cursor == {"batches": 2}
    made = source(loader, world=2, accumulation=2)
    assert made.layout() == {
        "global_batches": 4,
        "order": "Buckets",
        "num_batches": 5,
    }
    assert rows(list(made.batches(0, made.adopt([{"batches": 3}])))) == [6, 7, 8]


class NoLength:
    """A batch sampler that does not say how long it is."""

    def __iter__(self) -> Iterator[list[int]]:
        yield [1]


def test_a_batch_sampler_need_not_know_its_length() -> None:
    """The order is known once it is drawn."""
    made = source(DataLoader(Numbers(9), batch_sampler=NoLength()))

    assert made.num_batches is None
    assert made.layout() == {"global_batches": 1, "order": "NoLength"}
    assert rows(list(made.batches(0, None))) == [1]


def test_a_data_set_of_whole_batches() -> None:
    """Without batching each index is a batch, counted by the function given for it."""
    data = [torch.zeros(3), torch.zeros(5), torch.zeros(2)]
    loader: DataLoader[Any] = DataLoader(data, batch_size=None)  # type: ignore[arg-type]

    read = [batches(loader, rank=rank, world=2) for rank in (0, 1)]

    assert [[b.num_samples for b in each] for each in read] == [[3, 2], [5, 0]]
    assert [b.window_samples for b in read[0]] == [None, None]
    noisy = batches(DataLoader(Noisy(3), batch_size=None))
    assert [b.data.tolist() for b in noisy] == rows(batches(DataLoader(Noisy(3))))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_collate_function_may_draw_where_samples_cannot(num_workers: int) -> None:
    """It is seeded by the first sample of its batch."""
    data = TensorDataset(torch.arange(12).double())

    def mean(samples: list[Any]) -> Tensor:
        return shaken([x for (x,) in samples])

    loader = DataLoader(data, 4, collate_fn=mean, num_workers=num_workers)
    read = rows(batches(loader))

    assert read == rows(batches(DataLoader(data, 4, collate_fn=mean)))
    assert len({round(row % 1, 9) for row in read}) == 3


class Counting(TensorDataset):
    """Not a tensor data set as we know it, though it draws nothing."""


@pytest.mark.parametrize(
    ("dataset", "seeded"),
    [
        (TensorDataset(torch.zeros(4)), False),
        (Subset(TensorDataset(torch.zeros(4)), [1, 2]), False),
        (ConcatDataset([TensorDataset(torch.zeros(4)), Noisy(2)]), True),
        (ConcatDataset([TensorDataset(torch.zeros(4))]), False),
        (StackDataset(TensorDataset(torch.zeros(4))), False),
        (StackDataset(a=Noisy(4)), True),
        (Counting(torch.zeros(4)), True),
        ([1, 2], False),
    ],
)
def test_streams_are_seeded_only_where_something_may_draw(
    monkeypatch: pytest.MonkeyPatch, *, dataset: Any, seeded: bool
) -> None:
    """A data set of tensors costs no seeding; any that is not known does."""
    words: list[int] = []
    monkeypatch.setattr("mtf_trainer._data.map_source.seed_streams", words.append)

    assert batches(DataLoader(dataset, 2))

    assert bool(words) == seeded


def test_many_are_fetched_at_once_where_nothing_is_seeded() -> None:
    """A subset hands a whole batch to a data set that can take it."""
    loader: DataLoader[Any] = DataLoader(
        Subset(TensorDataset(torch.arange(6)), [5, 3]), 2
    )
    assert batches(loader)[0].data[0].tolist() == [5, 3]


@pytest.mark.parametrize(
    ("tensor", "at_once"),
    [
        (torch.randn(5, 3, dtype=torch.bfloat16), True),
        (torch.tensor([-0.0, float("nan"), 1e-40, float("inf"), 0.0]), True),
        (torch.randint(9, (5, 2, 2)), True),
        (torch.zeros(5, 0), True),
        (torch.randn(3, 5).t(), False),
        (torch.randn(5, 2, requires_grad=True), False),
        (torch.randn(5, 2, dtype=torch.complex64), False),
        (nn.Parameter(torch.randn(5, 2), requires_grad=False), False),
    ],
)
def test_rows_of_tensors_are_what_samples_collated_would_be(
    tensor: Tensor, *, at_once: bool
) -> None:
    """A batch is the loader's own, bit for bit, taken at once where that is certain."""
    dataset = TensorDataset(torch.arange(5), tensor)
    order = [3, 0, -1, 2, 2]

    def read(sampler: Any, num_workers: int = 0) -> None:
        loader: DataLoader[Any] = DataLoader(
            dataset, 2, sampler=sampler, num_workers=num_workers
        )
        found = [batch.data for batch in batches(loader)]
        expected = list(DataLoader(dataset, 2, sampler=sampler))
        for ours, theirs in zip(found, expected, strict=True):
            assert type(ours) is type(theirs)
            for one, other in zip(ours, theirs, strict=True):
                assert (one.dtype, one.stride()) == (other.dtype, other.stride())
                assert bits(one) == bits(other)

    def bits(tensor: Tensor) -> list[int]:
        found: list[int] = tensor.detach().flatten().view(torch.uint8).tolist()
        return found

    taken: list[Any] = []
    getitem = TensorDataset.__getitem__

    def counting(self: TensorDataset, index: Any) -> Any:
        taken.append(index)
        return getitem(self, index)  # type: ignore[no-untyped-call]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorDataset, "__getitem__", counting)
        read(order)
    assert len(taken) == (5 if at_once else 10)  # those of the loader itself are 5
    read([torch.tensor(index) for index in order])
    if not tensor.requires_grad:  # which torch cannot collate in a worker
        read(order, num_workers=1)


def test_an_epoch_is_given_up_and_another_begun() -> None:
    """Workers of an iterator that is not used any more end, or serve the next one."""
    for persistent in (False, True):
        loader = DataLoader(
            Noisy(), 4, num_workers=2, persistent_workers=persistent, shuffle=True
        )
        made = source(loader)
        given_up = made.batches(0, None)
        next(given_up)
        first = multiprocessing.active_children()
        read = list(made.batches(1, {"samples": 8}))
        again = made.batches(1, None)
        next(again)
        assert len(multiprocessing.active_children()) == 2
        assert (set(multiprocessing.active_children()) == set(first)) == persistent
        made.close()
        made.close()
        assert multiprocessing.active_children() == []
        assert rows(read) == rows(batches(DataLoader(Noisy(), 4, shuffle=True), 1))[8:]


def test_a_closed_source_can_be_read_again() -> None:
    """Closing ends workers, not the source."""
    loader = DataLoader(Numbers(8), 4, num_workers=1, persistent_workers=True)
    made = source(loader)
    read = []
    for _ in range(2):
        read.append(rows(list(made.batches(0, None))))
        made.close()

    assert read == [list(range(8))] * 2


class Failing(Dataset[int]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 2:
            raise StopIteration
        return index


def test_a_data_set_cannot_end_an_epoch_early() -> None:
    """What it raises stops the run; nothing is left out silently."""
    for num_workers in (0, 1):
        with pytest.raises(RuntimeError):
            batches(DataLoader(Failing(), num_workers=num_workers))


def test_order_is_one_for_all_processes() -> None:
    """Neighbouring ranks read neighbouring slices of the same order."""
    loader: DataLoader[Any] = DataLoader(Numbers(24), 4, shuffle=True)
    read = [batches(loader, rank=rank, world=3) for rank in range(3)]
    alone = rows(batches(DataLoader(Numbers(24), 24, shuffle=True)))

    assert [row for step in zip(*read, strict=True) for row in rows(list(step))] == alone
    assert all(left != right for left, right in pairwise(map(rows, read)))
