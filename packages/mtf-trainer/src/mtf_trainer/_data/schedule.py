"""Which of several loaders gives the next batch.

A place in the schedule is three small things, whatever lies behind it, and what follows
is a function of place, seed and epoch. This module knows of loaders only how many batches
they have.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

from mtf_trainer._data.streams import mix_in
from mtf_trainer.errors import DataError
from mtf_trainer.multi_loader import MultiLoader

__all__ = ["Place", "Plan"]


class Place(NamedTuple):
    """Between two batches of an epoch.

    Args:
        step: Batches before it.
        turn: Where the pattern stands.
        counts: Batches before it, by loader.
    """

    step: int
    turn: int
    counts: tuple[int, ...]


class Plan:
    """The schedule of *multi* over loaders of known lengths.

    Attributes:
        total: Batches of an epoch.
        reads_once: Whether no loader begins again within an epoch.

    Args:
        multi: What is wanted.
        lengths: Batches of one pass, by loader, in the order of ``multi.loaders``; None
            where that is not known.

    Raises:
        DataError: If the length of the epoch does not follow from that, or is 0.
    """

    def __init__(self, multi: MultiLoader, lengths: Sequence[int | None]) -> None:
        names = list(multi.loaders)
        schedule, policy = multi.schedule, multi.epoch_length
        for name, length in zip(names, lengths, strict=True):
            if length == 0:
                message = f"loader {name!r} has no batches"
                raise DataError(message)
            if length is None and (schedule == "sequential" or isinstance(policy, str)):
                message = (
                    f"nobody knows how many batches loader {name!r} has: give its data "
                    f"set __len__, or the epoch a number as its length and another "
                    f"schedule than 'sequential'"
                )
                raise DataError(message)
        known = [length or 0 for length in lengths]
        self.start = Place(0, 0, (0,) * len(names))
        self.reads_once = policy == "sum"
        self._lengths = known
        self._pattern: list[int] = []
        self._weights: list[float] = []
        self._bounds: list[int] = []
        if isinstance(schedule, dict):
            self._weights = [float(schedule[name]) for name in names]
        elif schedule == "sequential":
            self._bounds = list(accumulate(_shares(known, policy)))
        else:
            order = names if schedule == "round_robin" else schedule
            self._pattern = [names.index(name) for name in order]
        self.total = self._count_all(policy)
        if self.total == 0:
            message = (
                "an epoch would be empty: the shortest loader has fewer batches than the "
                "schedule takes of it in one round; choose another epoch_length"
            )
            raise DataError(message)

    def next(self, place: Place, key: int) -> tuple[int, Place]:
        """Return the loader behind *place*, and the place behind its batch.

        *key* is what draws follow from, for one epoch.
        """
        step, turn, counts = place
        if self._pattern:
            while self._is_used_up(self._pattern[turn], counts):
                turn = (turn + 1) % len(self._pattern)
            chosen = self._pattern[turn]
            turn = (turn + 1) % len(self._pattern)
        elif self._bounds:
            chosen = bisect_right(self._bounds, step % self._bounds[-1])
        else:
            chosen = self._draw(counts, mix_in(key, step))
        following = (*counts[:chosen], counts[chosen] + 1, *counts[chosen + 1 :])
        return chosen, Place(step + 1, turn, following)

    def _draw(self, counts: tuple[int, ...], word: int) -> int:
        weights = [
            0.0 if self._is_used_up(index, counts) else weight
            for index, weight in enumerate(self._weights)
        ]
        sums = list(accumulate(weights))
        # 53 bits make a float in [0, 1); the product may round up to the sum itself.
        chosen = bisect_right(sums, (word >> 11) * 2.0**-53 * sums[-1])
        return min(chosen, max(i for i, weight in enumerate(weights) if weight))

    def _is_used_up(self, index: int, counts: tuple[int, ...]) -> bool:
        return self.reads_once and counts[index] >= self._lengths[index]

    def _count_all(self, policy: str | int) -> int:
        lengths = self._lengths
        if isinstance(policy, int):
            return policy
        if policy == "sum":
            return sum(lengths)
        if self._bounds:
            return self._bounds[-1]
        # A round has one batch on average of a loader whose share of it is 1.
        shares: list[Fraction] = [
            Fraction(self._pattern.count(i)) for i in range(len(lengths))
        ]
        size = len(self._pattern)
        if self._weights:
            shares = [Fraction(str(weight)) for weight in self._weights]
            total = sum(shares)
            shares, size = [share / total for share in shares], 1
        rounds = [length / share for length, share in zip(lengths, shares, strict=True)]
        if policy == "longest":
            return math.ceil(max(rounds)) * size
        return math.floor(min(rounds)) * size


def _shares(lengths: Sequence[int], policy: str | int) -> list[int]:
    """Return how many batches of each loader one sequence of all of them takes."""
    if policy == "longest":
        return [max(lengths)] * len(lengths)
    if policy == "shortest":
        return [min(lengths)] * len(lengths)
    return list(lengths)
