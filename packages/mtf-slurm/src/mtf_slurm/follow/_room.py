"""How many experiments go at once where Slurm has not room for all of them.

An array is taken as a whole or not at all: after a refusal half as many are tried, down to one,
which is tried less and less often; more again when they are taken. Sites set limits by
account, partition and QOS: what has others does not wait.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from mtf_slurm.follow._schedule_file import Entry

__all__ = ["Rooms"]

_WAIT_S = 1.0
_LONGEST_WAIT_S = 300.0


@dataclass(slots=True)
class _Room:
    """Of experiments of the same account, partition and QOS.

    Attributes:
        count: How many are tried at once.
        wait_s: Between the last attempts.
        until_s: Before which nothing is tried.
    """

    count: int
    wait_s: float = 0.0
    until_s: float = 0.0


class Rooms:
    """What refusals have told; nothing at first."""

    def __init__(self) -> None:
        self._rooms: dict[tuple[str, ...], _Room] = {}

    def fitting(self, chosen: Iterable[Entry], now_s: float) -> list[Entry]:
        """Return which experiments to try now; what waits for another, not without it."""
        left = {
            key: room.count * (now_s >= room.until_s) for key, room in self._rooms.items()
        }
        held: set[str] = set()
        fitting = []
        for entry in chosen:
            key = entry.limits
            if left.get(key) == 0 or held & entry.after.keys():
                held.add(entry.experiment_name)
                continue
            if key in left:
                left[key] -= 1
            fitting.append(entry)
        return fitting

    def note(
        self, tried: Sequence[Entry], refused: Collection[str], now_s: float
    ) -> bool:
        """Note for which there was no room; return whether that is new.

        Args:
            tried: That were submitted.
            refused: Names of those for which there was none.
            now_s: The time.
        """
        is_new = False
        for key in {entry.limits for entry in tried}:
            names = {e.experiment_name for e in tried if e.limits == key}
            room = self._rooms.get(key)
            if count := len(names & {*refused}):
                is_new |= room is None
                room = self._rooms.setdefault(key, _Room(count))
                room.count = max(1, count // 2)
                if count == 1:
                    room.wait_s = min(_LONGEST_WAIT_S, max(_WAIT_S, 2 * room.wait_s))
                room.until_s = now_s + max(_WAIT_S, room.wait_s)
            elif room is not None:
                room.count, room.wait_s = 2 * room.count, 0.0
        return is_new

    def look_again(self) -> None:
        """Let all be tried at once: a job has ended."""
        for room in self._rooms.values():
            room.until_s = 0.0
