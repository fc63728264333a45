"""Batches of a map-style data set.

The global order of an epoch is cut into windows, one optimizer step each, whose size does
not change with the number of processes. Within a window the processes take slices in
turn. What is drawn for a sample, or while a batch is put together, follows from seed,
epoch and index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    StackDataset,
    Subset,
    TensorDataset,
    default_collate,
    default_convert,
)

from mtf_trainer._data.order import Order
from mtf_trainer._data.reader import Reader, in_worker
from mtf_trainer._data.source import Batch, Cursor
from mtf_trainer._data.streams import KeptStreams, mix, mix_in, seed_streams, word_of
from mtf_trainer.errors import DataError

__all__ = ["MapSource"]

_ORDER, _SAMPLE, _COLLATE, _WORKERS = range(4)
_PLAIN = (TensorDataset, Tensor, list, tuple, range)
_DTYPES = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    }
)


class MapSource:
    """A `Source` of what *loader* reads; the contract says what its methods do.

    Args:
        fabric: Says which process this is, and takes batches to the device.
        loader: Over a map-style data set.
        seed: What every draw follows from, with the epoch.
        accumulation: Micro-batches of a process in a window.
        num_samples: Counts samples where one index gives a whole batch.

    Raises:
        DataError: If the order of all processes cannot be known.
    """

    def __init__(
        self,
        fabric: Fabric,
        loader: DataLoader[Any],
        *,
        seed: int,
        accumulation: int,
        num_samples: Callable[[Any], int],
    ) -> None:
        self._fabric = fabric
        self._rank = fabric.global_rank
        self._seed = seed
        self._num_samples = num_samples
        self._batched = loader.batch_sampler is not None
        self._order = order = Order(loader)
        self._drop_last = order.drop_last
        self._step = order.batch_size * fabric.world_size
        self._window = self._step * accumulation
        self._drawn: tuple[int, Sequence[Any]] | None = None
        fetcher = _MapFetcher(loader, seed=seed, batched=self._batched)
        self._reader = Reader(loader, fetcher, num_workers=loader.num_workers)

    @property
    def num_batches(self) -> int | None:
        """Micro-batches of this process in an epoch."""
        length = self._order.length()
        if length is None:
            return None
        windows, rest = divmod(length, self._window)
        full = windows * (self._window // self._step)
        return full if self._drop_last else full - (-rest // self._step)

    def batches(self, epoch: int, cursor: Cursor | None) -> Iterator[Batch]:
        """Return what follows *cursor* in *epoch*."""
        units = self._units(epoch)
        begin = 0 if cursor is None else int(cursor[self._unit])
        stop = len(units)
        if self._drop_last:
            stop -= stop % self._window

        def requests() -> Iterator[tuple[int, list[Any]]]:
            for span in self._spans(begin, stop):
                yield epoch, self._indices(units, span)[0]

        answers = self._reader.read(requests, mix(self._seed, epoch, _WORKERS))
        return self._follow(answers, units, begin, stop)

    def _follow(
        self, answers: Iterator[Any], units: Sequence[Any], begin: int, stop: int
    ) -> Iterator[Batch]:
        to_device, unit, window = self._fabric.to_device, self._unit, self._window
        window_samples: int | None = None
        known = -1
        for span in self._spans(begin, stop):
            data = next(answers)
            indices, counts = self._indices(units, span)
            if self._batched:
                num_samples = len(indices) if counts else 0
                if known != span.window:
                    known = span.window
                    window_samples = self._count(units, known, min(known + window, stop))
            else:
                num_samples = self._num_samples(data) if counts else 0
            yield Batch(
                data=to_device(data),
                num_samples=num_samples,
                window_samples=window_samples,
                closes_window=span.end == stop or span.end % window == 0,
                is_last=span.end == stop,
                cursor={unit: span.end},
            )
        self._reader.stop()

    def adopt(self, cursors: Sequence[Cursor]) -> Cursor:
        """Return the place in the global order that all *cursors* name."""
        first = cursors[0]
        place = first.get(self._unit)
        strange = list(first) != [self._unit] or type(place) is not int or place < 0
        if strange or any(cursor != first for cursor in cursors):
            message = (
                f"the processes of the checkpoint stood at {list(cursors)}, which is no "
                f"place in an order of {self._unit}: another kind of loader, or another "
                f"trainer, wrote it"
            )
            raise DataError(message)
        return dict(first)

    def layout(self) -> Mapping[str, int | str]:
        """Return the size of a window and of the data set, and what gives the order."""
        window = f"global_{'batches' if self._order.of_batches else 'batch'}"
        sizes: dict[str, int | str] = {window: self._window, "order": self._order.kind}
        length = self._order.length()
        if length is not None:
            sizes[f"num_{self._unit}"] = length
        return sizes

    def close(self) -> None:
        """End the workers."""
        self._reader.close()

    def stop(self) -> None:
        """End the workers that would not be used again."""
        self._reader.stop()

    @property
    def _unit(self) -> str:
        return "batches" if self._order.of_batches else "samples"

    def _units(self, epoch: int) -> Sequence[Any]:
        if self._drawn is None or self._drawn[0] != epoch:
            key = mix(self._seed, epoch, _ORDER)
            self._drawn = None
            self._drawn = epoch, self._order.draw(key, epoch)
        return self._drawn[1]

    def _spans(self, begin: int, stop: int) -> Iterator[_Span]:
        """Give the micro-steps from *begin* on; none reaches over the end of a window."""
        while begin < stop:
            window = begin - begin % self._window
            end = min(begin + self._step, window + self._window, stop)
            yield _Span(window, begin, end)
            begin = end

    def _indices(self, units: Sequence[Any], span: _Span) -> tuple[list[Any], bool]:
        """Return this process's indices of *span*, and whether they count."""
        size = self._order.batch_size
        begin = span.begin + self._rank * size
        counts = begin < span.end
        if not counts:
            begin = span.window
        taken = units[begin : min(begin + size, span.end)]
        return (taken[0] if self._order.of_batches else list(taken)), counts

    def _count(self, units: Sequence[Any], begin: int, end: int) -> int:
        if self._order.of_batches:
            return sum(len(batch) for batch in units[begin:end])
        return end - begin


class _Span(NamedTuple):
    """A micro-step of all processes: where its window begins, and its own units."""

    window: int
    begin: int
    end: int


class _MapFetcher:
    """Fetches a batch by (epoch, indices), with the streams seeded for each sample."""

    def __init__(self, loader: DataLoader[Any], *, seed: int, batched: bool) -> None:
        self.dataset: Any = loader.dataset
        self._collate: Callable[[Any], Any] = loader.collate_fn
        self._seed = seed
        self._batched = batched
        self._seeds_samples = not _is_plain(self.dataset)
        self._seeds_collate = self._collate not in (default_collate, default_convert)
        is_default = batched and self._collate is default_collate
        self._takes_rows = is_default and _has_rows(self.dataset)

    def __getitem__(self, request: tuple[int, list[Any]]) -> Any:
        epoch, indices = request
        if self._takes_rows and all(type(index) is int for index in indices):
            rows = torch.tensor(indices)
            return [tensor[rows] for tensor in self.dataset.tensors]
        if not (self._seeds_samples or self._seeds_collate):
            return self._collate(self._fetch(indices))
        if in_worker():
            return self._fetch_seeded(epoch, indices)
        with KeptStreams():
            return self._fetch_seeded(epoch, indices)

    def _fetch(self, indices: list[Any]) -> Any:
        dataset = self.dataset
        if not self._batched:
            return dataset[indices[0]]
        if callable(fetch := getattr(dataset, "__getitems__", None)):
            return fetch(indices)
        return [dataset[index] for index in indices]

    def _fetch_seeded(self, epoch: int, indices: list[Any]) -> Any:
        fetched: Any
        if self._seeds_samples:
            key, dataset, fetched = mix(self._seed, epoch, _SAMPLE), self.dataset, []
            for index in indices:
                seed_streams(mix_in(key, word_of(index)))
                fetched.append(dataset[index])
            if not self._batched:
                fetched = fetched[0]
        else:
            fetched = self._fetch(indices)
        if self._seeds_collate:
            seed_streams(mix(self._seed, epoch, _COLLATE, word_of(indices[0])))
        return self._collate(fetched)


def _has_rows(dataset: Any) -> bool:
    """Return whether rows of tensors are what samples of *dataset*, collated, would be."""
    return type(dataset) is TensorDataset and all(
        type(tensor) is Tensor
        and tensor.layout is torch.strided
        and tensor.is_cpu
        and tensor.is_contiguous()
        and tensor.dtype in _DTYPES
        and not tensor.requires_grad
        for tensor in dataset.tensors
    )


def _is_plain(dataset: Any) -> bool:
    """Return whether nothing can be drawn where *dataset* gives a sample."""
    kind = type(dataset)
    if kind is Subset:
        return _is_plain(dataset.dataset)
    if kind is ConcatDataset:
        return all(map(_is_plain, dataset.datasets))
    if kind is StackDataset:
        parts = dataset.datasets
        return all(map(_is_plain, parts.values() if isinstance(parts, dict) else parts))
    return kind in _PLAIN
