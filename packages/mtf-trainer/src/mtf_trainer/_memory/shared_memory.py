"""Copies of a training's state in shared memory, which outlive its process.

`SnapshotArea` hands out at most three segments, and uses the memory of those that are
free again; `put` then costs about one copy of the tensors. Nothing is deleted when the
process ends: a later one finds what was kept. It knows nothing of models or checkpoints,
and is used from one thread. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtf_trainer._memory.flat import flatten
from mtf_trainer._memory.room import check_folder, check_room
from mtf_trainer._memory.segment import Segment, size_needed
from mtf_trainer._memory.segment_file import Committed, Name, is_alive, owner_of, read
from mtf_trainer.errors import SnapshotError

__all__ = ["Found", "Segment", "SnapshotArea"]

_MOST = 3
_SLOTS = 100
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Found:
    """A snapshot that an earlier process left.

    Args:
        path: Its file.
        epoch: Epochs finished.
        global_step: Optimizer steps taken.
        taken_at: When, in seconds since 1970.
    """

    path: Path
    epoch: int
    global_step: int
    taken_at: float

    def load(self) -> Any:
        """Return a copy of the content.

        Raises:
            SnapshotError: If it is not, or no longer, what was found; says why.
        """
        committed = _read_left(self.path)
        if (committed.epoch, committed.global_step) != (self.epoch, self.global_step):
            message = f"the snapshot {self.path} was replaced by another"
            raise SnapshotError(message)
        content = committed.content(copy=True)
        if read(self.path).sequence != committed.sequence:
            message = f"the snapshot {self.path} changed while it was read"
            raise SnapshotError(message)
        return content


class SnapshotArea:
    """The segments of one process of one run.

    A segment that `put` returned is held until `release`; `keep` takes it over.

    Args:
        folder: A file system in memory.
        run_id: 32 hexadecimal digits.
        rank: Number of this process in the run.

    Raises:
        ValueError: If `run_id` or `rank` is not of that form.
    """

    def __init__(self, folder: Path, run_id: str, rank: int) -> None:
        self._folder = folder
        self._name = _checked_name(run_id, rank)
        self._holds: dict[Segment, int] = {}
        self._kept: Segment | None = None
        self._spared: frozenset[Path] | None = None
        # Never that of an earlier process's content: it may be looked for in our file still.
        self._sequence = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._reserving: threading.Thread | None = None

    def reserve(self, size_bytes: int, *, segments: int = 2) -> None:
        """Claim and map memory for *segments* contents in the background.

        The first calls of `put` are as fast as later ones then. What cannot be had is
        not reported here but by `put`.

        Args:
            size_bytes: Of all tensors of a content, with something to spare.
            segments: How many contents, at most 3.
        """
        self._settle()
        missing = min(segments, _MOST) - len(self._holds)

        def make() -> None:
            try:
                for _ in range(missing):
                    segment = self._create(_rounded(size_bytes))
                    self._holds[segment] = 0
                    segment.prefault()
            except SnapshotError:
                return

        # Joined by whatever is called next.
        self._reserving = threading.Thread(target=make, name="mtf-reserve", daemon=True)
        self._reserving.start()

    def put(self, content: Any, *, epoch: int, global_step: int) -> Segment:
        """Copy *content* into a segment, which the caller holds until `release`.

        If there is no room, what earlier processes of this run and rank left goes, but
        what `spare` names. Once `spare` was called, it goes before there is a new file.

        Raises:
            SnapshotError: If there is no memory for it, or all three segments are held.
            TypeError: If something in it cannot be saved; names where.
        """
        self._settle()
        skeleton, tensors = flatten(content)
        segment = self._free_segment(size_needed(skeleton, tensors))
        self._sequence += 1
        segment.write(
            skeleton,
            tensors,
            epoch=epoch,
            global_step=global_step,
            sequence=self._sequence,
        )
        self._holds[segment] = 1
        return segment

    def hold(self, segment: Segment) -> None:
        """Hold *segment* once more: each hold needs its own `release`."""
        self._check(segment)
        self._holds[segment] += 1

    def release(self, segment: Segment) -> None:
        """Give a hold back; the memory of one that nobody holds may be used again.

        Raises:
            ValueError: If the caller does not hold it.
        """
        self._check(segment)
        if self._holds[segment] == 1 and segment is self._kept:
            message = f"{segment.path.name} is the kept snapshot: keep another instead"
            raise ValueError(message)
        self._holds[segment] -= 1

    def keep(self, segment: Segment) -> None:
        """Take *segment* over from the caller, as the newest snapshot.

        The one that was kept before is released, and all that earlier processes of this
        run and rank left is deleted: call it once every process has put its part. Who
        still needs the segment calls `hold` first.

        Raises:
            ValueError: If the caller does not hold it.
        """
        self._settle()
        self._check(segment)
        previous, self._kept = self._kept, segment
        if previous is not None and previous is not segment:
            self._holds[previous] -= 1
        self._spared = frozenset()
        self._delete_leftovers()

    def spare(self, paths: Iterable[Path]) -> None:
        """Let *paths*, which an earlier process left, stay until the next `keep`."""
        self._spared = frozenset(paths)

    def shrink(self) -> None:
        """Delete all but the kept segment, or else what `spare` named.

        Held segments as well: whoever has one mapped can go on reading it.
        """
        self._settle()
        for segment in [each for each in self._holds if each is not self._kept]:
            segment.unlink()
            del self._holds[segment]
        self._delete_leftovers()

    def remove(self) -> None:
        """Delete all segments, and what earlier processes of this run and rank left.

        Held segments as well: whoever has one mapped can go on reading it.
        """
        self._settle()
        for segment in self._holds:
            segment.unlink()
        self._holds.clear()
        self._kept = None
        self._spared = frozenset()
        self._delete_leftovers()

    def close(self) -> None:
        """Delete all segments but the kept one; it is for another process then."""
        self._settle()
        for segment in self._holds:
            if segment is self._kept:
                segment.disown()
            else:
                segment.unlink()
        self._holds.clear()
        self._kept = None

    @staticmethod
    def find(folder: Path, run_id: str, rank: int) -> list[Found]:
        """Return the snapshots that earlier processes left, newest first.

        Only those are returned that are whole, and were written by this user, for this
        run and rank, since the machine started, by a process that is gone.

        Raises:
            ValueError: If *run_id* or *rank* is not of the right form.
        """
        left = []
        for path in _files(folder, _checked_name(run_id, rank)):
            try:
                left.append((path, _read_left(path)))
            except SnapshotError:
                continue
        left.sort(key=lambda each: each[1].taken_ns, reverse=True)
        started_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return [
            Found(
                path, found.epoch, found.global_step, (started_ns + found.taken_ns) / 1e9
            )
            for path, found in left
        ]

    def _check(self, segment: Segment) -> None:
        if not self._holds.get(segment):
            message = f"{segment.path.name} is not held"
            raise ValueError(message)

    def _settle(self) -> None:
        if self._reserving is not None:
            self._reserving.join()
            self._reserving = None

    def _free_segment(self, size_bytes: int) -> Segment:
        """Return the longest free segment that is large enough, or a new one."""
        free = [each for each, holds in self._holds.items() if holds == 0]
        free.sort(key=lambda each: each.sequence)
        for segment in free:
            if segment.size_bytes >= size_bytes:
                return segment
        if free:
            del self._holds[free[0]]
            free[0].unlink()
        if len(self._holds) == _MOST:
            message = f"all {_MOST} snapshots are in use: release one first"
            raise SnapshotError(message)
        if self._spared is not None:
            self._delete_leftovers()
        try:
            segment = self._create(_rounded(size_bytes))
        except SnapshotError:
            self._delete_leftovers()
            segment = self._create(_rounded(size_bytes))
        self._holds[segment] = 0
        return segment

    def _create(self, size_bytes: int) -> Segment:
        check_folder(self._folder)
        check_room(self._folder, size_bytes)
        for slot in range(_SLOTS):
            name = replace(self._name, slot=slot)
            try:
                return Segment.create(self._folder, name, size_bytes)
            except FileExistsError:
                continue
            except OSError as error:
                message = (
                    f"a snapshot of {size_bytes:,} bytes cannot be made in "
                    f"{self._folder}: {error.strerror}"
                )
                raise SnapshotError(message) from error
        message = (
            f"{self._folder} is full of files that are named as this run's snapshots"
        )
        raise SnapshotError(message)

    def _delete_leftovers(self) -> None:
        stay = {segment.path for segment in self._holds} | (self._spared or frozenset())
        for path in _files(self._folder, self._name):
            if path not in stay and not is_alive(owner_of(path)):
                # One that another user put there stays.
                with contextlib.suppress(OSError):
                    path.unlink()


def _checked_name(run_id: str, rank: int) -> Name:
    text = f"mtf-{os.getuid()}-{run_id}-{rank}-0"
    name = Name.parse(text)
    if name is None:
        message = f"32 hexadecimal digits and a rank are needed, not {run_id!r}, {rank!r}"
        raise ValueError(message)
    return name


def _rounded(size_bytes: int) -> int:
    # A skeleton of another day is a little longer: counters grow.
    return -(-(size_bytes + 2**16) // _MIB) * _MIB


def _files(folder: Path, like: Name) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names are what is wanted
    except OSError:
        return
    for each in names:
        name = Name.parse(each)
        if name is not None and replace(name, slot=like.slot) == like:
            yield folder / each


def _read_left(path: Path) -> Committed:
    committed = read(path)
    if is_alive(committed.owner):
        message = (
            f"the snapshot {path} belongs to process {committed.owner[0]}, which runs"
        )
        raise SnapshotError(message)
    return committed
