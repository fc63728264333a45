from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
)

from mtf_trainer import _data

X_BD = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (X_BD, 3),
        ([X_BD, torch.zeros(5)], 3),
        ({"names": ["a"], "x": X_BD}, 3),
        ((torch.tensor(1.0), {"deep": (X_BD,)}), 3),
        (torch.tensor(1.0), 1),
        ("text", 1),
        (torch.zeros(0, 2), 1),
    ],
)
def test_samples_are_counted_by_the_first_tensor(batch: object, expected: int) -> None:
    """The first tensor with a dimension says how many there are; else it is one."""
    assert _data.count_samples(batch) == expected


class Stream(IterableDataset[int]):
    """Cannot say how long it is."""

    def __iter__(self) -> Iterator[int]:
        yield from range(3)


def test_length_may_be_unknown(data: TensorDataset) -> None:
    """A loader over a stream has no length, one over a table has."""
    assert _data.num_batches(DataLoader(data, batch_size=8)) == 6
    assert _data.num_batches(DataLoader(Stream())) is None


def test_loader_that_fabric_has_set_up_stays(
    fabric: Fabric, loader: DataLoader[Any]
) -> None:
    """A loader that is set up already is used as it is."""
    prepared = fabric.setup_dataloaders(loader)

    assert _data.set_up(fabric, prepared, 0) is prepared
    assert _data.set_up(fabric, loader, 0) is not loader


def test_own_distributed_sampler_keeps_its_seed(
    fabric: Fabric, data: TensorDataset
) -> None:
    """The seed of a sampler that the caller made is the caller's."""
    sampler: DistributedSampler[Any] = DistributedSampler(
        data, num_replicas=1, rank=0, seed=11
    )

    prepared = _data.set_up(fabric, DataLoader(data, sampler=sampler), 5)

    assert prepared.sampler.seed == 11


class Told(BatchSampler):
    """Notes the epochs it is told."""

    def __init__(self, data: TensorDataset) -> None:
        super().__init__(SequentialSampler(data), 8, drop_last=False)
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def test_batch_sampler_is_told_the_epoch(fabric: Fabric, data: TensorDataset) -> None:
    """A batch sampler that wants to know the epoch is told, though Fabric does not."""
    sampler = Told(data)
    prepared = _data.set_up(fabric, DataLoader(data, batch_sampler=sampler), 0)

    _data.set_epoch(prepared, 4)
    list(prepared)

    assert sampler.epochs == [4]


def test_generators_are_found_once(data: TensorDataset) -> None:
    """The generator a loader shares with its sampler counts once; none is none."""
    generator = torch.Generator()

    shared = DataLoader(data, shuffle=True, generator=generator)

    assert _data.generators(shared) == [generator]
    assert _data.generators(DataLoader(data, shuffle=True)) == []
