from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from mtf_trainer._data.order import Order
from mtf_trainer.errors import DataError

DATA: Any = list(range(10))


def drawn(loader: DataLoader[Any], key: int = 1, epoch: int = 0) -> list[Any]:
    """Return all units of an epoch."""
    units = Order(loader).draw(key, epoch)
    return list(units[: len(units)])


def test_a_loader_without_shuffling_keeps_the_order() -> None:
    """Whatever the key, each sample comes in its place."""
    assert drawn(DataLoader(DATA), key=8) == DATA
    assert Order(DataLoader(DATA)).length() == 10


SAMPLERS: list[Any] = [
    RandomSampler(DATA),
    RandomSampler(DATA, generator=torch.Generator()),
    RandomSampler(DATA, replacement=True),
    RandomSampler(DATA, num_samples=7),
    SubsetRandomSampler(DATA),
    WeightedRandomSampler([1.0] * 10, 10),
    DistributedSampler(DATA, num_replicas=4, rank=2),
    DistributedSamplerWrapper(RandomSampler(DATA), num_replicas=4, rank=2),
]


class Asking(Sampler[int]):
    """A sampler that asks another one."""

    def __init__(self, inner: Sampler[int]) -> None:
        self.inner = inner

    def __iter__(self) -> Iterator[int]:
        return iter(self.inner)


@pytest.mark.parametrize(
    ("sampler", "told"),
    [
        (SequentialSampler(DATA), "sequential"),
        (RandomSampler(DATA), "shuffled"),
        (DistributedSampler(DATA, num_replicas=4, rank=2), "shuffled"),
        (DistributedSampler(DATA, num_replicas=1, rank=0, shuffle=False), "sequential"),
        (
            DistributedSamplerWrapper(RandomSampler(DATA), num_replicas=4, rank=2),
            "shuffled",
        ),
        (RandomSampler(DATA, num_samples=7), "RandomSampler without replacement"),
        (RandomSampler(DATA, replacement=True), "RandomSampler with replacement"),
        (SubsetRandomSampler(DATA), "SubsetRandomSampler"),
        (
            WeightedRandomSampler([1.0] * 10, 10, replacement=False),
            "WeightedRandomSampler without replacement",
        ),
        (Asking(RandomSampler(DATA)), "Asking over RandomSampler without replacement"),
    ],
)
def test_what_gives_the_order_is_told(sampler: Any, told: str) -> None:
    """Alike for what gives the same order, however the processes were started."""
    assert Order(DataLoader(DATA, sampler=sampler)).kind == told


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_a_random_order_follows_from_the_key(sampler: Any) -> None:
    """The same key gives the same order, another key another."""
    loader: DataLoader[Any] = DataLoader(DATA, sampler=sampler)
    torch.rand(5)

    first = drawn(loader, key=1)

    assert first == drawn(loader, key=1)
    assert first != drawn(loader, key=2)
    assert len(first) == Order(loader).length()


def test_a_distributed_sampler_gives_the_order_of_all() -> None:
    """Each sample once, though the sampler would give a quarter and repeat some."""
    shuffled: Any = DistributedSampler(DATA, num_replicas=4, rank=2)
    plain: Any = DistributedSampler(DATA, num_replicas=4, rank=2, shuffle=False)

    assert sorted(drawn(DataLoader(DATA, sampler=shuffled))) == DATA
    assert drawn(DataLoader(DATA, sampler=plain)) == DATA


class Own(Sampler[int]):
    """Draws from everything there is, and is told the epoch."""

    def __init__(self) -> None:
        self.python = random.Random(1)  # noqa: S311
        self.numpy = np.random.default_rng(1)
        self.torch = torch.Generator()
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield self.epoch
        for _ in range(3):
            yield self.python.randrange(1000)
            yield int(self.numpy.integers(1000))
            yield int(torch.randint(1000, (), generator=self.torch))
            yield random.randrange(1000)  # noqa: S311
            yield np.random.randint(1000)  # noqa: NPY002
            yield int(torch.randint(1000, ()))


class Holder(Sampler[list[int]]):
    """A batch sampler with a sampler in a list."""

    def __init__(self, inner: Own) -> None:
        self.inner = [inner]
        self.me = self

    def __iter__(self) -> Iterator[list[int]]:
        indices = list(self.inner[0])
        yield indices[:2]
        yield indices[2:]


def test_a_samplers_own_generators_are_seeded_and_put_back() -> None:
    """Every draw follows from the key; neither sampler nor process goes on elsewhere."""
    sampler = Own()
    before = (
        sampler.python.getstate(),
        sampler.numpy.bit_generator.state,
        sampler.torch.get_state().tolist(),
        random.getstate(),
        torch.get_rng_state().tolist(),
    )

    for loader in (
        DataLoader(DATA, sampler=sampler),
        DataLoader(DATA, batch_sampler=Holder(sampler)),
    ):
        assert drawn(loader, epoch=3) == drawn(loader, epoch=3)
        assert drawn(loader, key=2) != drawn(loader, key=1)
        assert sampler.epoch == 0

    after = (
        sampler.python.getstate(),
        sampler.numpy.bit_generator.state,
        sampler.torch.get_state().tolist(),
        random.getstate(),
        torch.get_rng_state().tolist(),
    )
    assert after == before


def test_a_batch_sampler_keeps_its_batches() -> None:
    """A unit is one of its batches, dealt out whole."""
    loader: DataLoader[Any] = DataLoader(DATA, batch_sampler=Holder(Own()))

    order = Order(loader)

    assert order.of_batches
    assert order.batch_size == 1
    assert order.length() is None
    assert [len(unit) for unit in drawn(loader)] == [2, 17]


def test_torchs_own_batch_sampler_is_seen_through() -> None:
    """One that only cuts is a batch size and a flag."""
    cuts = BatchSampler(SequentialSampler(DATA), 4, drop_last=True)

    order = Order(DataLoader(DATA, batch_sampler=cuts))

    assert (order.of_batches, order.batch_size, order.drop_last) == (False, 4, True)
    assert list(order.draw(1, 0)) == DATA


class Cuts(BatchSampler):
    """Only its class is new."""


def test_a_sampler_that_shards_itself_is_refused() -> None:
    """Nobody can make the order of all out of the part of one."""
    shards: Any = DistributedSampler(DATA, num_replicas=2, rank=0)

    class Sharding(DistributedSampler[Any]):
        pass

    for loader in (
        DataLoader(DATA, batch_sampler=Cuts(shards, 4, drop_last=False)),
        DataLoader(DATA, sampler=Sharding(DATA, num_replicas=2, rank=0)),
    ):
        with pytest.raises(DataError, match="order of its own"):
            Order(loader)
    alone: Any = Sharding(DATA, num_replicas=1, rank=0)
    assert sorted(drawn(DataLoader(DATA, sampler=alone))) == DATA


class Endless(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return count()


class NoLength:
    def __getitem__(self, index: int) -> int:
        return index


def test_a_sampler_without_an_end_is_refused() -> None:
    """An order that is never whole would fill the memory."""
    with pytest.raises(DataError, match="gave more than 1000 samples"):
        drawn(DataLoader(DATA, sampler=Endless()))
    with pytest.raises(DataError, match="gave more than 100 samples"):
        drawn(DataLoader(NoLength(), sampler=Endless()))  # type: ignore[arg-type]
