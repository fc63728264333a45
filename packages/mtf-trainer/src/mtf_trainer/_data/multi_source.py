"""Batches of several loaders, as a `MultiLoader` wants them.

Each loader is a source of its own, read pass by pass: a pass is one of its epochs, of
which an epoch of the whole may hold several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol
from zlib import crc32

from mtf_trainer._data.schedule import Place, Plan
from mtf_trainer._data.source import Batch, Cursor, Source
from mtf_trainer._data.streams import mix
from mtf_trainer.errors import DataError
from mtf_trainer.multi_loader import MultiLoader

__all__ = ["MultiSource", "PartSource"]

_PASS = 1_000_000
_SCHEDULE = 0


class PartSource(Source, Protocol):
    """A source that can rest."""

    def stop(self) -> None:
        """End the workers that would not be used again."""


class MultiSource:
    """A `Source` of what *multi* reads; the contract says what its methods do.

    Args:
        multi: What is wanted.
        make: Makes the source of a loader, of windows of one batch, from a seed.
        seed: What every draw follows from.
        accumulation: Batches in a window.

    Raises:
        DataError: If the length of an epoch cannot be known, or is 0.
    """

    def __init__(
        self,
        multi: MultiLoader,
        make: Callable[[Any, int], PartSource],
        *,
        seed: int,
        accumulation: int,
    ) -> None:
        self._multi = multi
        self._names = list(multi.loaders)
        self._seed = seed
        self._accumulation = accumulation
        self._parts = {
            name: make(loader, mix(seed, crc32(name.encode())))
            for name, loader in multi.loaders.items()
        }
        lengths = [part.num_batches for part in self._parts.values()]
        self._plan = Plan(multi, lengths)
        self._lengths = dict(zip(self._names, lengths, strict=True))
        counts = [(k, v) for k, v in self.layout().items() if isinstance(v, int)]
        self._id = crc32(repr(sorted(counts)).encode())

    @property
    def num_batches(self) -> int:
        """Micro-batches of this process in an epoch."""
        return self._plan.total

    def batches(self, epoch: int, cursor: Cursor | None) -> Iterator[Batch]:
        """Return what follows *cursor* in *epoch*."""
        self.stop()
        place, places = self._plan.start, {name: _Part() for name in self._names}
        if cursor is not None:
            saved = cursor["loaders"]
            counts = tuple(saved[name]["count"] for name in self._names)
            place = Place(cursor["step"], cursor["turn"], counts)
            places = {name: _Part(**saved[name]) for name in self._names}
        return self._follow(epoch, place, places)

    def _follow(
        self, epoch: int, place: Place, places: dict[str, _Part]
    ) -> Iterator[Batch]:
        plan, key = self._plan, mix(self._seed, epoch, _SCHEDULE)
        saved = {name: part.to_plain() for name, part in places.items()}
        while place.step < plan.total:
            chosen, place = plan.next(place, key)
            name = self._names[chosen]
            part = places[name]
            batch = part.read(name, self._parts[name], epoch)
            if plan.reads_once and batch.is_last != (part.count == self._lengths[name]):
                message = (
                    f"loader {name!r} says it has {self._lengths[name]} batches and gave "
                    f"{part.count}{'' if batch.is_last else ' and more'}: give it the "
                    f"right length, or the epoch a number as its length"
                )
                raise DataError(message)
            saved = {**saved, name: part.to_plain()}
            batch.is_last = place.step == plan.total
            batch.closes_window = batch.is_last or place.step % self._accumulation == 0
            if self._accumulation > 1:
                batch.window_samples = None
            batch.cursor = {
                "layout": self._id,
                "step": place.step,
                "turn": place.turn,
                "loaders": saved,
            }
            batch.loader, batch.loss_weight = name, self._multi.loss_weights[name]
            yield batch
        self.stop()

    def adopt(self, cursors: Sequence[Cursor]) -> Cursor:
        """Return the place in the schedule all *cursors* name, with this process's parts."""
        places = [_place(cursor, self._names) for cursor in cursors]
        if None in places or any(place != places[0] for place in places):
            message = (
                f"the processes of the checkpoint stood at {list(cursors)}, which is no "
                f"place in a schedule of {', '.join(self._names)}: another kind of "
                f"loader, or another trainer, wrote it"
            )
            raise DataError(message)
        if cursors[0]["layout"] != self._id:
            message = (
                f"the schedule of {', '.join(self._names)} counts batches, which are no "
                f"longer what they were: go on with the same loaders and schedule, and "
                f"with the same batch size times number of processes for each"
            )
            raise DataError(message)
        loaders = {}
        for name, part in self._parts.items():
            saved = [cursor["loaders"][name] for cursor in cursors]
            loaders[name] = dict(saved[0])
            if saved[0]["cursor"] is not None:
                loaders[name]["cursor"] = part.adopt([each["cursor"] for each in saved])
        return {**cursors[0], "loaders": loaders}

    def layout(self) -> Mapping[str, int | str]:
        """Return the layouts of all loaders, and what makes the schedule."""
        told = f"{self._names} {self._multi.schedule} {self._multi.epoch_length}"
        sizes: dict[str, int | str] = {
            "accumulation": self._accumulation,
            "epoch_batches": self._plan.total,
            "schedule": crc32(told.encode()),
        }
        for name, part in self._parts.items():
            sizes |= {f"{name}.{key}": value for key, value in part.layout().items()}
        return sizes

    def close(self) -> None:
        """End the workers of all loaders."""
        with ExitStack() as stack:
            for part in self._parts.values():
                stack.callback(part.close)

    def stop(self) -> None:
        """End the workers that would not be used again."""
        for part in self._parts.values():
            part.stop()


class _Part:
    """One loader within an epoch: how far it was read."""

    def __init__(
        self, count: int = 0, passed: int = 0, cursor: Cursor | None = None
    ) -> None:
        self.count = count
        self._passed = passed
        self._cursor = cursor
        self._batches: Iterator[Batch] | None = None

    def to_plain(self) -> dict[str, Any]:
        return {"count": self.count, "passed": self._passed, "cursor": self._cursor}

    def read(self, name: str, source: Source, epoch: int) -> Batch:
        """Return the next batch, if need be of the next pass."""
        if self._batches is None:
            self._batches = source.batches(epoch + _PASS * self._passed, self._cursor)
        batch = next(self._batches, None)
        if batch is None:
            message = f"loader {name!r} has no batches"
            raise DataError(message)
        self.count += 1
        self._cursor = batch.cursor
        if batch.is_last:
            self._passed, self._cursor, self._batches = self._passed + 1, None, None
        return batch


def _place(cursor: Cursor, names: Sequence[str]) -> tuple[Any, ...] | None:
    """Return what is the same for all processes; None if it is not such a cursor."""
    loaders = cursor.get("loaders")
    if not isinstance(loaders, Mapping) or list(loaders) != list(names):
        return None
    parts = [(part["count"], part["passed"]) for part in loaders.values()]
    return cursor["step"], cursor["turn"], *parts
