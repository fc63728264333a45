from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
)

from mtf_trainer._data.source import Source
from mtf_trainer._data.sources import count_samples, make_source
from mtf_trainer.errors import DataError
from mtf_trainer.multi_loader import MultiLoader

X_BD = torch.zeros(3, 2)
DATA = TensorDataset(torch.arange(10))


@pytest.fixture
def fabric() -> Fabric:
    """One process on the CPU."""
    return Fabric(accelerator="cpu", devices=1)


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
    assert count_samples(batch) == expected


def make(fabric: Fabric, loader: Any, **options: Any) -> Source:
    """Return the source of *loader*."""
    defaults = {"seed": 0, "accumulation": 1, "num_samples": count_samples}
    return make_source(fabric, loader, **defaults | options)  # type: ignore[arg-type]


class Stream(IterableDataset[int]):
    """Cannot say where it is."""

    def __iter__(self) -> Iterator[int]:
        yield from range(3)


def test_each_kind_of_loader_has_a_source(fabric: Fabric) -> None:
    """Tables, streams, several at once."""
    table: DataLoader[Any] = DataLoader(DATA, 4)
    stream: DataLoader[Any] = DataLoader(Stream(), 2)
    several = MultiLoader({"table": table, "stream": stream}, epoch_length=4)

    read = [
        [
            batch.num_samples
            for batch in make(fabric, loader, training=False).batches(0, None)
        ]
        for loader in (table, stream, several)
    ]

    assert read == [[4, 4, 2], [2, 1], [4, 2, 4, 1]]


def test_a_loader_that_fabric_has_set_up_is_the_same(fabric: Fabric) -> None:
    """What Fabric wraps around it, a sampler for two processes included, is undone."""
    sampler: DistributedSampler[Any] = DistributedSampler(DATA, num_replicas=2, rank=1)
    loaders: list[DataLoader[Any]] = [
        DataLoader(DATA, 4, shuffle=True),
        fabric.setup_dataloaders(DataLoader(DATA, 4, shuffle=True)),  # type: ignore[list-item]
        fabric.setup_dataloaders(DataLoader(DATA, 4, sampler=sampler)),  # type: ignore[list-item]
    ]

    read = [
        [batch.data[0].tolist() for batch in make(fabric, loader).batches(3, None)]
        for loader in loaders
    ]

    assert read[0] == read[1] == read[2]


def test_batches_come_to_the_device(
    monkeypatch: pytest.MonkeyPatch, fabric: Fabric
) -> None:
    """By Fabric, which knows the device of this process."""
    monkeypatch.setattr(fabric, "to_device", lambda data: ("moved", data))

    for loader in (DataLoader(DATA), DataLoader(Stream())):
        batches = make(fabric, loader, training=False).batches(0, None)
        assert next(batches).data[0] == "moved"


def test_a_stream_without_a_state_trains_only_where_it_may_be_read_again(
    fabric: Fabric,
) -> None:
    """Also as one of several."""
    for loader in (
        DataLoader(Stream()),
        MultiLoader({"a": DataLoader(Stream())}, epoch_length=2),
    ):
        with pytest.raises(DataError, match="cannot say where it is"):
            make(fabric, loader)
        make(fabric, loader, skip_to_resume=True).close()
        make(fabric, loader, training=False).close()


@pytest.mark.parametrize("loader", [[1, 2], MultiLoader({"a": []}, epoch_length=2)])  # type: ignore[dict-item]
def test_what_is_no_loader_is_refused(fabric: Fabric, loader: Any) -> None:
    """A list of batches cannot say what follows from a seed."""
    with pytest.raises(TypeError, match=r"must be a .*DataLoader.* not list"):
        make(fabric, loader)
