"""Which number stands for an experiment, and why an experiment has none."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, TypeAlias

from mtf_gridsearch.records import ExperimentRecord, Status

__all__ = ["At", "Mode", "reason_to_leave_out", "value_of"]

Mode: TypeAlias = Literal["min", "max"]
"""Whether a low or a high value of a metric is good."""

At: TypeAlias = Literal["best", "last"]
"""Which value of a run stands for it: its best over all steps, or the one it ended with."""

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


def reason_to_leave_out(record: ExperimentRecord, metrics: Iterable[str]) -> str | None:
    """Return why no ranking by *metrics* holds the experiment; None if one does.

    A run that ended with a value that is not finite has diverged: no earlier value of it
    stands for it.
    """
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
