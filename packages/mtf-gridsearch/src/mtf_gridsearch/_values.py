"""Which number stands for an experiment, and why an experiment has none."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Literal, TypeAlias

from mtf_gridsearch.records import ExperimentRecord, Status

__all__ = [
    "DROPPED",
    "At",
    "Mode",
    "deviation_of",
    "mean_of",
    "reason_to_leave_out",
    "value_of",
]

Mode: TypeAlias = Literal["min", "max"]
"""Whether a low or a high value of a metric is good."""

At: TypeAlias = Literal["best", "last"]
"""Which value of a run stands for it: its best over all steps, or the one it ended with."""

DROPPED = "no longer in the grid"

_WITH_RESULT = frozenset({Status.SUCCEEDED, Status.STOPPED})


def value_of(
    record: ExperimentRecord, metric: str, mode: Mode = "min", at: At = "best"
) -> float | None:
    """Return the value of *metric* that stands for an experiment; None if it has none.

    Raises:
        ValueError: If *mode* or *at* is another word than those of `Mode` and `At`.
    """
    if mode not in {"min", "max"}:
        msg = f"mode is 'min' or 'max', not {mode!r}"
        raise ValueError(msg)
    if at not in {"best", "last"}:
        msg = f"at is 'best' or 'last', not {at!r}"
        raise ValueError(msg)
    summary = record.metrics.get(metric)
    if summary is None:
        return None
    if at == "last":
        return summary.last
    return summary.min if mode == "min" else summary.max


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of *values*, also where their sum is too large for a float."""
    if not all(map(math.isfinite, values)):
        return sum(values) / len(values)
    try:
        return statistics.fmean(values)
    except OverflowError:
        return float(sum(map(Fraction, values)) / len(values))


def deviation_of(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; infinite if no float can hold it."""
    try:
        return statistics.stdev(values)
    except OverflowError:
        return math.inf


def reason_to_leave_out(record: ExperimentRecord, metrics: Iterable[str]) -> str | None:
    """Return why no ranking by *metrics* holds the experiment; None if one does.

    A run that ended with a value that is not finite has diverged: no earlier value of it
    stands for it.
    """
    if record.is_dropped:
        return DROPPED
    if record.status not in _WITH_RESULT:
        return str(record.status)
    for metric in metrics:
        summary = record.metrics.get(metric)
        if summary is None:
            return "not reported"
        values = (summary.last, summary.min, summary.max)
        if any(map(math.isnan, values)):
            return "not a number"
        if any(map(math.isinf, values)):
            return "infinite"
    return None
