"""Which checkpoints go once a new one is proven. Pure: knows no files and no torch.

Three wishes are united: the last few, those of every n-th epoch's end, and those with the
best metric. Only what is older than the one just proven may go: a run that went back to
an older checkpoint deletes nothing of what lies ahead of it. A damaged one is kept for
none of the wishes, and goes once as many good ones as shall stay are newer than it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Entry", "to_delete"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What is known of a checkpoint.

    Args:
        name: Its file name.
        epoch: Epochs finished.
        global_step: Optimizer steps taken.
        metric: What tells the best; None, like NaN, never counts among them. Behind an
            epoch's first step it is that of the epoch before, and does not count either.
        is_epoch_end: Whether it has the weights that an epoch ended with.
        is_good: Whether it is what was written.
    """

    name: str
    epoch: int
    global_step: int
    metric: float | None = None
    is_epoch_end: bool = False
    is_good: bool = True

    @property
    def age(self) -> tuple[int, int]:
        """What orders checkpoints, oldest first."""
        return self.epoch, self.global_step


def to_delete(
    entries: Iterable[Entry],
    current: Entry,
    *,
    keep_last_n: int,
    keep_every_n_epochs: int | None = None,
    keep_best_k: int = 0,
    mode: Literal["min", "max"] = "min",
) -> list[str]:
    """Return the names of those to delete, oldest first.

    *current*, the one just proven, always stays, and so does whatever is newer.

    >>> entries = [Entry(name=f"e{n}", epoch=n, global_step=n) for n in range(1, 5)]
    >>> to_delete(entries, entries[3], keep_last_n=1, keep_every_n_epochs=2)
    ['e1', 'e2', 'e3']
    >>> ends = [
    ...     Entry(name=e.name, epoch=e.epoch, global_step=e.epoch, is_epoch_end=True)
    ...     for e in entries
    ... ]
    >>> to_delete(ends, ends[3], keep_last_n=1, keep_every_n_epochs=2)
    ['e1', 'e3']
    """
    older = sorted((e for e in entries if e.age < current.age), key=lambda e: e.age)
    good = [entry for entry in older if entry.is_good]
    last = good[max(0, len(good) - (keep_last_n - 1)) :] if keep_last_n > 1 else []
    kept = {entry.name for entry in last}
    if keep_every_n_epochs is not None:
        kept.update(
            entry.name
            for entry in good
            if entry.is_epoch_end and entry.epoch % keep_every_n_epochs == 0
        )
    kept.update(entry.name for entry in _best([*good, current], keep_best_k, mode))
    if len(last) < keep_last_n - 1:
        # Too few good ones yet: a damaged one might be all there is to repair.
        kept.update(entry.name for entry in older if not entry.is_good)
    else:
        oldest = last[0].age if last else current.age
        kept.update(e.name for e in older if not e.is_good and e.age > oldest)
    return [entry.name for entry in older if entry.name not in kept]


def _best(entries: list[Entry], count: int, mode: Literal["min", "max"]) -> list[Entry]:
    """Return the *count* best of those that a validation saw; of two alike, the newer."""
    sign = 1.0 if mode == "min" else -1.0
    ranked = [
        (sign * entry.metric, -entry.epoch, -entry.global_step, entry)
        for entry in entries
        if entry.is_epoch_end
        and entry.metric is not None
        and not math.isnan(entry.metric)
    ]
    ranked.sort(key=lambda row: row[:3])
    return [row[3] for row in ranked[:count]]
