"""The global order of a map-style loader: what all processes together read in an epoch.

It follows from a seed and the epoch alone, whatever sampler the loader has. A process
asks for the same order as any other, and picks its part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
)
from torch.utils.data.distributed import DistributedSampler

from mtf_trainer._data.streams import KeptStreams, keep_and_seed, mix_in, seed_streams
from mtf_trainer.errors import DataError

__all__ = ["Order"]

# A sampler that does not say how long it is may give each sample so often, and no more.
_MAX_REPEATS = 100


class Order:
    """What the sampler of *loader* gives, in units that are dealt out to processes.

    Attributes:
        batch_size: Units in a micro-batch of one process.
        drop_last: Whether what does not fill a window is left out.
        of_batches: Whether a unit is a batch that a custom batch sampler made, and not
            one sample.
        kind: What gives the order, in words.

    >>> Order(DataLoader(range(4), shuffle=True)).kind
    'shuffled'
    >>> Order(DataLoader(range(4), sampler=RandomSampler(range(4), True))).kind
    'RandomSampler with replacement'

    Raises:
        DataError: If the sampler gives each process an order of its own.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        sampler: Any = loader.sampler
        self.batch_size = loader.batch_size or 1
        self.drop_last = loader.drop_last
        self.of_batches = False
        own = loader.batch_sampler
        if own is not None and loader.batch_size is None:
            if type(own) is BatchSampler:
                sampler, self.batch_size = own.sampler, own.batch_size
                self.drop_last = own.drop_last
            else:
                sampler, self.of_batches = own, True
        while isinstance(sampler, DistributedSamplerWrapper):
            sampler = sampler.dataset._sampler  # type: ignore[attr-defined] # noqa: SLF001
        self._sampler = sampler
        self._num_samples = _num_samples(loader)
        # Whether it is drawn here, at once: True and False are shuffled and not shuffled.
        self._shuffled: bool | None = None
        self._source: Any = None
        if type(sampler) is DistributedSampler:
            self._shuffled, self._source = sampler.shuffle, sampler.dataset
        elif type(sampler) is SequentialSampler:
            self._shuffled, self._source = False, sampler.data_source
        elif type(sampler) is RandomSampler and _is_permutation(sampler):
            self._shuffled, self._source = True, sampler.data_source
        else:
            for part in _parts(sampler):
                _refuse_shards(part)
        self.kind = "shuffled" if self._shuffled else "sequential"
        if self._shuffled is None:
            self.kind = " over ".join(map(_kind, _parts(sampler)))

    def length(self) -> int | None:
        """Return how many units an epoch should have; None if the sampler cannot say."""
        try:
            return len(self._source if self._shuffled is not None else self._sampler)
        except (TypeError, NotImplementedError):
            return None

    def draw(self, key: int, epoch: int) -> Sequence[Any]:
        """Return the units of *epoch*; *key* is the 64 bits that all draws follow from.

        Raises:
            DataError: If the sampler does not end.
        """
        if self._shuffled is not None:
            count = len(self._source)
            if not self._shuffled:
                return range(count)
            generator = torch.Generator().manual_seed(key)
            return _Indices(torch.randperm(count, generator=generator))
        return self._draw_from_sampler(key, epoch)

    def _draw_from_sampler(self, key: int, epoch: int) -> Sequence[Any]:
        parts = list(_parts(self._sampler))
        for part in parts:
            if callable(tell := getattr(part, "set_epoch", None)):
                tell(epoch)
        length = self.length()
        most = _MAX_REPEATS * max(self._num_samples or 0, length or 0, 1)
        with ExitStack() as kept:
            kept.enter_context(KeptStreams())
            seed_streams(key)
            values = (value for part in parts for value in _attributes(part))
            for number, value in enumerate(values, start=1):
                restore = keep_and_seed(value, mix_in(key, number))
                if restore is not None:
                    kept.callback(restore)
            units = list(islice(self._sampler, most + 1))
        if len(units) > most:
            message = (
                f"{type(self._sampler).__name__} gave more than {most} "
                f"{'batches' if self.of_batches else 'samples'} and goes on: the sampler "
                f"of a loader must end, and say by __len__ when"
            )
            raise DataError(message)
        return units


class _Indices(Sequence[int]):
    """A permutation as a tensor; a list of it would take five times the memory."""

    def __init__(self, values: Tensor) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, at: Any) -> Any:
        return self._values[at].tolist()


def _num_samples(loader: DataLoader[Any]) -> int | None:
    try:
        return len(loader.dataset)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def _is_permutation(sampler: RandomSampler) -> bool:
    return not sampler.replacement and sampler.num_samples == len(sampler.data_source)


def _parts(sampler: Any) -> Iterator[Any]:
    """Give *sampler* and the samplers it holds, each once."""
    waiting, seen = [sampler], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        for value in _attributes(part):
            items = value if isinstance(value, list | tuple) else (value,)
            waiting += [item for item in items if isinstance(item, Sampler)]


def _kind(part: Any) -> str:
    """Return the class of a sampler, and whether it gives samples more than once."""
    told = [type(part).__name__]
    if isinstance(replacement := getattr(part, "replacement", None), bool):
        told.append("with replacement" if replacement else "without replacement")
    return " ".join(told)


def _attributes(part: Any) -> list[Any]:
    return list(getattr(part, "__dict__", {}).values())


def _refuse_shards(part: Any) -> None:
    shards = getattr(part, "num_replicas", 1)
    if isinstance(shards, int) and shards > 1:
        message = (
            f"{type(part).__name__} gives each process an order of its own, so nobody "
            f"knows the order of all: give the loader a sampler or batch sampler for "
            f"one process, and do not set it up with Fabric; the trainer deals out what "
            f"it gives"
        )
        raise DataError(message)
