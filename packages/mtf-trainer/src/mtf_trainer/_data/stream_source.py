"""Batches of an iterable data set.

Each process reads a stream of its own, in one place: here, or in one worker. What is
drawn while a sample is read follows from seed, epoch, process and the sample's number.
Where the stream stands is asked of it right behind each batch, and travels with the
batch, so reading ahead changes nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from itertools import chain, repeat
from typing import Any, NamedTuple

from lightning.fabric import Fabric
from torch.utils.data import DataLoader

from mtf_trainer._data.beginning import Beginning
from mtf_trainer._data.reader import Reader, in_worker
from mtf_trainer._data.source import Batch, Cursor
from mtf_trainer._data.streams import KeptStreams, mix, mix_in, seed_streams
from mtf_trainer.errors import DataError

__all__ = ["StreamSource"]

_OPEN, _SAMPLE, _COLLATE, _WORKERS = range(4)


class StreamSource:
    """A `Source` of what *loader* reads; the contract says what its methods do.

    A data set with ``state_dict()`` and ``load_state_dict()`` goes on where its state
    says. Both are called on the one that is read, also before it is read, and each epoch
    begins from the state it had then, which `close` gives back to it. Others may read it
    meanwhile. ``set_epoch(epoch)`` is called where there is one.

    Args:
        fabric: Says which process this is, and takes batches to the device.
        loader: Over an iterable data set, which gives this process's share.
        seed: What every draw follows from.
        accumulation: Batches in a window.
        num_samples: Counts samples where the data set gives whole batches.
        skip_to_resume: Whether a stream without a state is read again from its beginning,
            and what was used is passed over.

    Raises:
        DataError: If the stream has no state, and may not be read again.
    """

    num_batches: int | None

    def __init__(
        self,
        fabric: Fabric,
        loader: DataLoader[Any],
        *,
        seed: int,
        accumulation: int,
        num_samples: Callable[[Any], int],
        skip_to_resume: bool,
    ) -> None:
        if not (skip_to_resume or _has_state(loader.dataset)):
            message = (
                f"{type(loader.dataset).__name__} cannot say where it is, so a run could "
                f"not go on inside an epoch: give it state_dict() and "
                f"load_state_dict(state), or set skip_to_resume=True to read it again "
                f"from its beginning and pass over what was used"
            )
            raise DataError(message)
        if loader.num_workers > 1:
            message = (
                f"{type(loader.dataset).__name__} is iterable and will be read by 1 "
                f"worker, not {loader.num_workers}: split among workers, its order would "
                f"depend on their number"
            )
            warnings.warn(message, UserWarning, stacklevel=3)
        self._fabric = fabric
        self._seed = mix(seed, fabric.global_rank)
        self._num_samples = num_samples
        self._batched = loader.batch_size is not None
        self._per_window = (loader.batch_size or 1) * accumulation
        self.num_batches = _length(loader)
        self._fetcher = _StreamFetcher(
            loader, seed=self._seed, per_window=self._per_window
        )
        workers = min(loader.num_workers, 1)
        self._reader = Reader(loader, self._fetcher, num_workers=workers)

    def batches(self, epoch: int, cursor: Cursor | None) -> Iterator[Batch]:
        """Return what follows *cursor* in *epoch*."""
        if cursor is not None and cursor.get("ended"):
            self._reader.stop()
            return iter(())
        begin = _Begin(epoch, cursor)
        self._fetcher.recall()
        answers = self._reader.read(
            lambda: chain([begin], repeat(None)), mix(self._seed, epoch, _WORKERS)
        )
        return self._follow(answers)

    def _follow(self, answers: Iterator[_Read | None]) -> Iterator[Batch]:
        world_size = self._fabric.world_size
        read = next(answers)
        while read is not None:
            following = next(answers)
            cursor: Cursor = {"samples": read.position, "processes": world_size}
            is_last = following is None
            if is_last:
                # The state may be that of a beginning, once the end was seen.
                cursor["ended"] = True
            elif read.state is not None:
                cursor["state"] = read.state
            yield Batch(
                data=self._fabric.to_device(read.data),
                num_samples=read.num_samples
                if self._batched
                else self._num_samples(read.data),
                window_samples=None,
                closes_window=is_last or read.position % self._per_window == 0,
                is_last=is_last,
                cursor=cursor,
            )
            read = following
        self._reader.stop()

    def adopt(self, cursors: Sequence[Cursor]) -> Cursor:
        """Return this process's cursor; the number of processes must be the same."""
        world_size = self._fabric.world_size
        saved = {cursor.get("processes") for cursor in cursors}
        if saved != {len(cursors)}:
            message = (
                f"the processes of the checkpoint stood at {list(cursors)}, which is no "
                f"place in a stream: another kind of loader wrote it"
            )
            raise DataError(message)
        if len(cursors) != world_size:
            message = (
                f"each of {len(cursors)} processes read a stream of its own, and nobody "
                f"knows how {world_size} would share the rest: go on with {len(cursors)} "
                f"processes until the epoch ends, or use a map-style data set"
            )
            raise DataError(message)
        return dict(cursors[self._fabric.global_rank])

    def layout(self) -> Mapping[str, int | str]:
        """Return the size of a window over all processes."""
        return {"global_batch": self._per_window * self._fabric.world_size}

    def close(self) -> None:
        """End the worker, and put what was read here back to its beginning."""
        self._reader.close()
        self._fetcher.end()

    def stop(self) -> None:
        """End a worker that would not be used again."""
        self._reader.stop()


class _Begin(NamedTuple):
    """Asks for the first batch behind a cursor; None asks for the next one."""

    epoch: int
    cursor: Cursor | None


class _Read(NamedTuple):
    """A batch, its samples, how far the epoch is read, and the state behind it."""

    data: Any
    num_samples: int
    position: int
    state: Any


class _StreamFetcher:
    """Reads the stream on and on; past its end it answers None."""

    def __init__(self, loader: DataLoader[Any], *, seed: int, per_window: int) -> None:
        self.dataset: Any = loader.dataset
        self._collate: Callable[[Any], Any] = loader.collate_fn
        self._seed = seed
        self._batch_size = loader.batch_size
        self._per_window = per_window
        self._drop_last = loader.drop_last
        self._has_state = _has_state(self.dataset)
        self._beginning: Beginning | None = None
        self._samples: Iterator[Any] = iter(())
        self._epoch = self._position = 0
        self._state: Any = None
        self._is_over = False

    def __getitem__(self, request: _Begin | None) -> _Read | None:
        if in_worker():
            return self._answer(request)
        with KeptStreams():
            return self._answer(request)

    def recall(self) -> None:
        """See where the stream begins, as far as this process knows; for a worker's copy."""
        if self._has_state and self._beginning is None:
            with KeptStreams():
                self._beginning = Beginning.known(self.dataset)

    def end(self) -> None:
        """Let go of what the stream holds open in this process, and give it back."""
        self._samples = iter(())
        beginning, self._beginning = self._beginning, None
        if beginning is not None and beginning.is_taken_by(self):
            with KeptStreams():
                beginning.give_back(self.dataset)

    def vacate(self) -> None:
        """See whether the stream has ended, which its state behind the last batch hides."""
        position = self._position
        with suppress(Exception):  # which comes again when it is read on
            self._is_over = not self._take()
        self._samples, self._position = iter(()), position

    def _answer(self, request: _Begin | None) -> _Read | None:
        beginning = self._beginning
        if request is not None:
            self._open(request)
        elif beginning is not None and not beginning.is_taken_by(self):
            # Another has read it: it goes on as a run that was stopped here would.
            if self._is_over:
                return None
            state = {} if self._state is None else {"state": self._state}
            self._open(_Begin(self._epoch, {"samples": self._position, **state}))
        return self._next()

    def _open(self, begin: _Begin) -> None:
        dataset, cursor = self.dataset, begin.cursor
        self._samples, self._epoch, self._position = iter(()), begin.epoch, 0
        self._is_over = False
        if self._has_state:
            if self._beginning is None:
                self._beginning = Beginning.of(dataset)
            if not in_worker():  # whose copy nobody else reads
                self._beginning.vacate(self)
        seed_streams(mix(self._seed, begin.epoch, _OPEN))
        if self._beginning is not None:
            self._beginning.take(dataset, self)
        if callable(tell := getattr(dataset, "set_epoch", None)):
            tell(begin.epoch)
        if cursor is not None and "state" in cursor:
            dataset.load_state_dict(deepcopy(cursor["state"]))
            self._position = cursor["samples"]
        self._samples = iter(dataset)
        while cursor is not None and self._position < cursor["samples"]:
            if not self._take():
                message = (
                    f"{type(dataset).__name__} ended after {self._position} samples, "
                    f"where {cursor['samples']} had been used: it is no longer the same"
                )
                raise DataError(message)

    def _take(self) -> list[Any]:
        """Return the next sample in a list; an empty one at the end."""
        key = mix(self._seed, self._epoch, _SAMPLE)
        seed_streams(mix_in(key, self._position))
        for sample in self._samples:
            self._position += 1
            return [sample]
        return []

    def _next(self) -> _Read | None:
        first, size = self._position, self._batch_size or 1
        size = min(size, self._per_window - first % self._per_window)
        samples: list[Any] = []
        while len(samples) < size and (taken := self._take()):
            samples += taken
        count = len(samples)
        if count == 0 or (self._drop_last and count < size):
            self._samples = iter(())
            return None
        self._state = deepcopy(self.dataset.state_dict()) if self._has_state else None
        seed_streams(mix(self._seed, self._epoch, _COLLATE, first))
        data = self._collate(samples[0] if self._batch_size is None else samples)
        return _Read(data, count, self._position, self._state)


def _has_state(dataset: Any) -> bool:
    names = ("state_dict", "load_state_dict")
    return all(callable(getattr(dataset, name, None)) for name in names)


def _length(loader: DataLoader[Any]) -> int | None:
    """Return how many batches *loader* says it has; None if it cannot say."""
    try:
        length = len(loader.dataset)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None
    size = loader.batch_size or 1
    return length // size if loader.drop_last else -(-length // size)
