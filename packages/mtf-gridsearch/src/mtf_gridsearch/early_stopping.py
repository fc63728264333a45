"""Rules that end bad experiments early, by the metrics they report while they run.

A rule sees one experiment at a time, as its curve grows, and compares it with what others
had reached at the same step. It never waits for others, so no place stays empty. What it
knows it learnt from curves: an executor that goes on after a kill shows them again.

Sources: `SuccessiveHalving` is the stopping variant of ASHA: L. Li et al., "A System for
Massively Parallel Hyperparameter Tuning", MLSys 2020. `MedianRule` is the median stopping
rule of D. Golovin et al., "Google Vizier", KDD 2017, section 3.2.2.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping
from itertools import accumulate, takewhile
from statistics import median
from typing import Literal, Protocol

from mtf_gridsearch.records import Curve

__all__ = ["EarlyStopping", "MedianRule", "Mode", "SuccessiveHalving"]

Mode = Literal["min", "max"]


class EarlyStopping(Protocol):
    """Decides which running experiments end early. Used by one thread.

    Each run of a search uses a deep copy of the rule as it was given, and tells that of all
    that ended before. Curves are as they count now: when an experiment that failed is begun
    again, the rule is shown them without what the failed attempt reported, so empty at first.
    """

    def observe(self, name: str, curves: Mapping[str, Curve]) -> str | None:
        """Look at the curves of the running experiment *name*; return why to stop it."""

    def tell(self, name: str, curves: Mapping[str, Curve], *, completed: bool) -> None:
        """Take note of the curves of one that has ended; *completed* if it succeeded."""


class SuccessiveHalving:
    """At steps that grow by a factor, only the best of those that came so far go on.

    When an experiment reaches ``min_step * factor**k`` for the first time, it goes on if
    its value there is among the best ``1/factor`` of all values seen there so far (rounded
    up, so that the first always goes on). A value that is not finite is
    worse than any other. Where a later attempt reports another value for a step, that one
    counts, and is judged anew.

    Args:
        metric: Which, by the name under which it is reported.
        mode: Whether ``"min"`` or ``"max"`` is better.
        min_step: The first step at which an experiment may be stopped.
        factor: One in how many goes on.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> rule = SuccessiveHalving("val/loss", "min", min_step=10, factor=2)
        >>> rule.observe("a", {"val/loss": [(10, 0.5)]})
        >>> rule.observe("b", {"val/loss": [(10, 0.9)]})
        'val/loss 0.9 at step 10 is not among the best 1 of 2'
    """

    def __init__(
        self, metric: str, mode: Mode, *, min_step: int, factor: int = 3
    ) -> None:
        _check(metric, mode, min_step)
        if factor < 2:  # noqa: PLR2004
            msg = f"factor must be at least 2, not {factor}"
            raise ValueError(msg)
        self.metric, self.mode = metric, mode
        self.min_step, self.factor = min_step, factor
        self._seen: dict[int, list[float]] = {}  # by rung; costs, best first
        self._reached: dict[str, list[float]] = {}  # by name; the cost at each rung

    def observe(self, name: str, curves: Mapping[str, Curve]) -> str | None:
        """Return why *name* is to stop: it reached a new step, and others did better."""
        reason = None
        for step, cost, value, seen in self._climb(name, curves):
            best = -(-len(seen) // self.factor)
            if cost > seen[best - 1] and reason is None:
                reason = (
                    f"{self.metric} {value:.6g} at step {step} is not among the best "
                    f"{best} of {len(seen)}"
                )
        return reason

    def tell(self, name: str, curves: Mapping[str, Curve], *, completed: bool) -> None:
        """Note what *name* reached, however it ended."""
        del completed
        for _ in self._climb(name, curves):
            pass

    def _climb(
        self, name: str, curves: Mapping[str, Curve]
    ) -> list[tuple[int, float, float, list[float]]]:
        """Note the steps that *name* newly reached: each with all costs seen there."""
        curve = curves.get(self.metric, ())
        values = self._at_rungs(curve)
        costs = [_cost(value, self.mode) for _, value in values]
        before = self._reached.get(name, [])
        pairs = zip(before, costs, strict=False)
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        for rung, cost in enumerate(before[known:], known):  # of an attempt that failed
            seen = self._seen[rung]
            del seen[bisect_left(seen, cost)]
        new = []
        for rung, cost in enumerate(costs[known:], known):
            seen = self._seen.setdefault(rung, [])
            insort(seen, cost)
            new.append((values[rung][0], cost, values[rung][1], seen))
        self._reached[name] = costs
        return new

    def _at_rungs(self, curve: Curve) -> list[tuple[int, float]]:
        """Return each rung's step that *curve* has reached, and the first value from there."""
        found = []
        step, last = self.min_step, _last_step(curve)
        while step <= last:
            found.append((step, next(value for s, value in curve if s >= step)))
            step *= self.factor
        return found


class MedianRule:
    """Stops what is worse at its best than the median of others on average so far.

    At each new step, the best value of an experiment is compared with the median, over all
    that succeeded, of the mean of their values up to that step.

    Args:
        metric: Which, by the name under which it is reported.
        mode: Whether ``"min"`` or ``"max"`` is better.
        min_step: The first step at which an experiment may be stopped.
        min_experiments: How many must have succeeded before any is stopped.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> rule = MedianRule("loss", "min", min_experiments=1)
        >>> rule.tell("a", {"loss": [(1, 0.5), (2, 0.3)]}, completed=True)
        >>> rule.observe("b", {"loss": [(1, 0.4), (2, 0.5)]})
        >>> rule.observe("c", {"loss": [(1, 0.9), (2, 0.8)]})
        'best loss 0.8 up to step 2 is worse than the median 0.4 of 1'
    """

    def __init__(
        self, metric: str, mode: Mode, *, min_step: int = 1, min_experiments: int = 5
    ) -> None:
        _check(metric, mode, min_step)
        if min_experiments < 1:
            msg = f"min_experiments must be at least 1, not {min_experiments}"
            raise ValueError(msg)
        self.metric, self.mode = metric, mode
        self.min_step, self.min_experiments = min_step, min_experiments
        # by name: steps, and the mean cost of all up to each
        self._completed: dict[str, tuple[list[int], list[float]]] = {}

    def observe(self, name: str, curves: Mapping[str, Curve]) -> str | None:
        """Return why *name* is to stop: others were better on average by that step."""
        del name
        curve = curves.get(self.metric, ())
        step = _last_step(curve)
        if step < self.min_step or len(self._completed) < self.min_experiments:
            return None
        begun = [c for c in self._completed.values() if c[0][0] <= step]
        if len(begun) < self.min_experiments:
            return None
        limit = median(means[bisect_right(steps, step) - 1] for steps, means in begun)
        best = min(_cost(value, self.mode) for _, value in curve)
        if best <= limit:
            return None
        sign = 1 if self.mode == "min" else -1
        return (
            f"best {self.metric} {sign * best:.6g} up to step {step} is worse than the "
            f"median {sign * limit:.6g} of {len(begun)}"
        )

    def tell(self, name: str, curves: Mapping[str, Curve], *, completed: bool) -> None:
        """Note the curve of *name*, if it succeeded."""
        if completed and (curve := curves.get(self.metric, ())):
            values = sorted(dict(curve).items())  # a step reported again counts once
            totals = accumulate(_cost(value, self.mode) for _, value in values)
            means = [total / count for count, total in enumerate(totals, 1)]
            steps = [step for step, _ in values]
            self._completed[name] = (steps, means)


def _check(metric: object, mode: str, min_step: int) -> None:
    if not isinstance(metric, str) or not metric:
        msg = "metric must name what experiments report"
        raise ValueError(msg)
    if mode not in ("min", "max"):
        msg = f"mode must be 'min' or 'max', not {mode!r}"
        raise ValueError(msg)
    if min_step < 1:
        msg = f"min_step must be at least 1, not {min_step}"
        raise ValueError(msg)


def _cost(value: float, mode: str) -> float:
    """Return what is smaller where *value* is better; what is not finite is worst."""
    if not math.isfinite(value):
        return math.inf
    return value if mode == "min" else -value


def _last_step(curve: Curve) -> int:
    return max((step for step, _ in curve), default=-1)
