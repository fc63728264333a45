"""Copies of the state in shared memory: when to take one, and which to go on from.

`SnapshotArea` keeps the memory; this module decides. The interval between two follows
from what they are measured to cost, so that they take at most a stated share of the time:
``interval = cost / (share * time of a step)``. All processes measure, and the largest
values decide for all.

With several processes each keeps what is its own, and the first of each node the rest as
well. A start uses a moment that every process has, or none. The newest moment is given up
once all have committed the next one; where there is no room for both, it stays until a
checkpoint that is not older is on the disk.

A counter of the steps done lies beside them, so that a start can say what was lost.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from mtf_trainer._memory.shared_memory import Found, Segment, SnapshotArea
from mtf_trainer._ranks.collectives import gather
from mtf_trainer.config import SnapshotSettings
from mtf_trainer.errors import CheckpointWarning, SnapshotError

__all__ = ["Moment", "Snapshots"]

Moment = tuple[int, int]
"""Epochs finished and optimizer steps taken."""

_MEASURED_STEPS = 5
_LEAST_COST_S = 0.005
_GUESSED_BYTES_PER_S = 1e9


class Snapshots:
    """The snapshots of one run, as one process sees them.

    Args:
        settings: How often, and where.
        run_id: Which run.
        fabric: Launched.
        agree: The largest values of all processes: ``agree(a, b) -> (A, B)``.
        state_bytes: About how much there is to copy.
    """

    def __init__(
        self,
        settings: SnapshotSettings,
        run_id: str,
        fabric: Fabric,
        agree: Callable[..., tuple[int, ...]],
        state_bytes: int,
    ) -> None:
        rank = fabric.global_rank
        self._settings = settings
        self._run_id = run_id
        self._fabric = fabric
        self._agree = agree
        self._leader = rank - fabric.local_rank
        self._area = SnapshotArea(settings.folder, run_id, rank)
        self._counter = _StepCounter(
            settings.folder / f"mtf-{os.getuid()}-{run_id}-{rank}-steps"
        )
        self._guess_s = _LEAST_COST_S + state_bytes / _GUESSED_BYTES_PER_S
        self._given_up = False
        self.moment: Moment | None = None
        """The newest that is known: taken by this process, or found by it."""
        self._looked = False
        self._kept: Segment | None = None
        self._cost_s: float | None = None
        self._since: tuple[int, float] | None = None
        self._next = 0

    @property
    def is_leader(self) -> bool:
        """Whether this process keeps what all processes of its node have in common."""
        return self._leader == self._fabric.global_rank

    def due(self, step: int) -> bool:
        """Count optimizer step *step*, and tell whether to take a snapshot behind it."""
        self._counter.write(step)
        if self._given_up:
            return False
        if self._since is None:
            self._since = step, time.monotonic()
            self._next = step + (self._settings.every_n_steps or _MEASURED_STEPS)
            return False
        return step >= self._next

    def take(
        self, capture: Callable[[], dict[str, Any]], *, epoch: int, step: int
    ) -> None:
        """Keep what *capture* returns, if it is worth its cost by now."""
        first, began = self._since or (step, time.monotonic())
        now = time.monotonic()
        step_s = (now - began) / max(1, step - first)
        if self._cost_s is None and self._settings.every_n_steps is None:
            # Nothing was measured yet: wait until a guess is worth its share.
            self._cost_s = self._guess_s
            if self._wait(step, step_s):
                return
        problem = ""
        segment = None
        try:
            segment = self._area.put(capture(), epoch=epoch, global_step=step)
        except SnapshotError as error:
            problem = str(error)
        self._cost_s = time.monotonic() - now
        failed = any(gather(self._fabric, segment is None))
        if failed or segment is None:
            self._give_up(problem)
            return
        # Only now: no process needs the moment before any more.
        self._area.keep(segment)
        self._kept = segment
        self.moment = epoch, step
        self._since = step, time.monotonic()
        self._wait(step, step_s)

    def _wait(self, step: int, step_s: float) -> bool:
        """Choose the next step for a snapshot; tell whether it is beyond *step*."""
        if self._settings.every_n_steps is not None:
            self._next = step + self._settings.every_n_steps
            return True
        cost_us, step_us = self._agree(
            round(1e6 * (self._cost_s or 0)), round(1e6 * step_s)
        )
        share = self._settings.max_overhead
        first = step if self._since is None else self._since[0]
        self._next = first + max(1, math.ceil(cost_us / (share * max(1, step_us))))
        return self._next > step

    def _give_up(self, problem: str) -> None:
        self._given_up = True
        # The newest moment that all have stays, for a start after a kill.
        self._area.shrink()
        if problem and self._fabric.is_global_zero:
            message = f"no snapshots are taken in shared memory: {problem}"
            warnings.warn(message, CheckpointWarning, stacklevel=4)

    def newest(self, newer_than: Moment | None) -> tuple[dict[str, Any], Path] | None:
        """Return the newest snapshot of which every process has its part, and its file.

        It must have more steps than *newer_than*. ``locals`` of what is returned holds
        this process's part alone.
        """
        own = self._find(self._fabric.global_rank)
        self._looked = True
        least = (-1, -1) if newer_than is None else newer_than
        moments = gather(self._fabric, [m for m in own if m[1] > least[1]])
        common = set(moments[0]).intersection(*moments[1:])
        loaded = None
        while common and loaded is None:
            moment = max(common, key=lambda m: (m[1], m[0]))
            common.discard(moment)
            loaded = self._load(own, moment)
            if not all(gather(self._fabric, loaded is not None)):
                loaded = None
            elif loaded is not None:
                self.moment = moment
        # Without a common one, a start with other processes may find one among the rest.
        spared = [m for m in own if m[1] > least[1]] if loaded is None else [self.moment]
        self._area.spare(own[m].path for m in spared if m is not None)
        return loaded

    def _find(self, rank: int) -> dict[Moment, Found]:
        found = SnapshotArea.find(self._settings.folder, self._run_id, rank)
        return {(each.epoch, each.global_step): each for each in reversed(found)}

    def _load(
        self, own: dict[Moment, Found], moment: Moment
    ) -> tuple[dict[str, Any], Path] | None:
        try:
            content = own[moment].load()
            if not self.is_leader:
                shared = self._find(self._leader)[moment].load()
                content = {**shared, "locals": content["locals"]}
        except (SnapshotError, KeyError) as error:
            message = f"a snapshot in shared memory is passed over: {error}"
            warnings.warn(message, CheckpointWarning, stacklevel=4)
            return None
        return content, own[moment].path

    def kept(self) -> Segment | None:
        """Return the newest snapshot that this process took."""
        return self._kept

    def steps_done(self) -> int:
        """Return how many steps an earlier process had counted; 0 if that is not known."""
        return self._counter.read()

    def give_back(self, durable: Moment | None) -> bool:
        """Give the memory back, unless it holds more than the disk; tell whether it did.

        Args:
            durable: The newest moment that is proven to be on the disk.
        """
        ahead = self.moment is not None and (
            durable is None or durable[::-1] < self.moment[::-1]
        )
        if ahead or not self._looked:
            return False
        self.remove()
        return True

    def relieve(self, durable: Moment | None) -> None:
        """Give the memory back where there is no room for the next one, as `give_back`."""
        if self._given_up:
            self.give_back(durable)

    def remove(self) -> None:
        """Give all the memory back, and begin to count anew."""
        self._kept = self.moment = self._since = None
        self._area.remove()
        self._counter.remove()

    def close(self) -> None:
        """Let go of the memory, and leave in it what another process may go on from."""
        self._area.close()
        self._counter.close()


class _StepCounter:
    """Eight bytes in shared memory, which survive this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: mmap.mmap | None = None
        self._failed = False

    def write(self, step: int) -> None:
        if self._map is None:
            if self._failed:
                return
            self._map = self._open(os.O_RDWR | os.O_CREAT)
            self._failed = self._map is None
        if self._map is not None:
            struct.pack_into("<q", self._map, 0, step)

    def read(self) -> int:
        found = self._open(os.O_RDWR)
        if found is None:
            return 0
        with found:
            step: int = struct.unpack_from("<q", found)[0]
        return step

    def _open(self, flags: int) -> mmap.mmap | None:
        try:
            fd = os.open(self._path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        try:
            if os.fstat(fd).st_uid != os.getuid():
                return None
            os.posix_fallocate(fd, 0, 8)
            return mmap.mmap(fd, 8)
        except OSError:
            return None
        finally:
            os.close(fd)

    def remove(self) -> None:
        self.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None
