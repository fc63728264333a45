"""Read what an experiment reported while it ran: ``metrics.jsonl``, one object a line.

Each line has an integer ``step``; its other numbers are metrics. In a line with a text
under ``split`` their names are ``<split>/<name>``, as in ``val/loss``; ``epoch`` and
``samples`` count what is elsewhere, and are left out of those. Numbers that JSON lacks are the
texts ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``. `mtf_gridsearch.report` writes such
files, and so does any trainer that keeps to this.

Values come in the order of their steps: a metric that is reported again at an earlier step
or the same one takes the place of all from there on, since an experiment that was started
again repeats itself. ``job``, which `mtf_gridsearch.report` writes, tells attempts apart: one
that was interrupted is continued by the next, whose first line takes the place of all from
its step on; what one that failed of itself reported can be left out. A line counts once its newline is there. A line that is not an object
with a step counts for nobody and is counted as damaged: what is left of a write that was cut
off must not take the rest with it.
"""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mtf_gridsearch.records import Curve, MetricSummary
from mtf_gridsearch.report import METRICS_NAME

__all__ = ["METRICS_NAME", "CurveReader", "read_curves", "summarise"]

_COUNTS = frozenset({"epoch", "samples"})
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class CurveReader:
    """Reads a file of metrics that grows; each `read` takes what is new.

    A file that is missing is empty. One that was replaced, or is shorter than it was, is
    read from its beginning. For one thread.

    Args:
        path: The file.
        failed_jobs: Attempts that are over, whose lines do not count.

    Attributes:
        curves: Step and value by metric. Changes with each `read`.
        num_damaged: How many lines could not be read.
    """

    def __init__(self, path: Path, failed_jobs: Iterable[str] = ()) -> None:
        self._path = path
        self._failed_jobs = frozenset(Path(job).name for job in failed_jobs)
        self._file: tuple[int, int] | None = None
        self._forget()

    def read(self) -> bool:
        """Take what was written since the last call; return whether there was anything.

        A file that cannot be read now is left for the next call.
        """
        with suppress(OSError), self._path.open("rb") as file:
            info = os.fstat(file.fileno())
            known = (info.st_dev, info.st_ino)
            if known != self._file or info.st_size < self._offset:
                self._forget()
                self._file = known
            file.seek(self._offset)
            return self._take(file.read(info.st_size - self._offset))
        return False

    def _forget(self) -> None:
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.num_damaged = 0
        self._offset = 0
        self._job: object = None

    def _take(self, data: bytes) -> bool:
        end = data.rfind(b"\n") + 1
        for line in data[:end].splitlines():
            self._take_line(line)
        self._offset += end
        return end > 0

    def _take_line(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            row = json.loads(line)
            step = row["step"]
        except (KeyError, TypeError, ValueError, RecursionError):
            self.num_damaged += 1
            return
        if type(row) is not dict or type(step) is not int:
            self.num_damaged += 1
            return
        job = row.get("job")
        if isinstance(job, str) and job in self._failed_jobs:
            return
        if job != self._job:
            self._job = job
            for curve in self.curves.values():
                del curve[bisect_left(curve, step, key=lambda point: point[0]) :]
        for name, value in _metrics(row):
            curve = self.curves.setdefault(name, [])
            if curve and curve[-1][0] >= step:
                del curve[bisect_left(curve, step, key=lambda point: point[0]) :]
            curve.append((step, value))


def _metrics(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    split = row.get("split")
    has_split = isinstance(split, str)
    for key, value in row.items():
        if key in {"step", "split", "job"} or (has_split and key in _COUNTS):
            continue
        number = _WORDS.get(value) if isinstance(value, str) else value
        if isinstance(number, int | float) and not isinstance(number, bool):
            with suppress(OverflowError):
                yield (f"{split}/{key}" if has_split else key), float(number)


def read_curves(
    path: Path, failed_jobs: Iterable[str] = ()
) -> dict[str, list[tuple[int, float]]]:
    """Return step and value of each metric in *path*; nothing where there is no file.

    Args:
        path: The file.
        failed_jobs: Attempts whose lines do not count: `ExperimentRecord.failed_jobs`.
    """
    reader = CurveReader(path, failed_jobs)
    reader.read()
    return reader.curves


def summarise(curves: Mapping[str, Curve]) -> dict[str, MetricSummary]:
    """Return the last, least and greatest value of each metric.

    A value that is not finite is neither the least nor the greatest, unless there is no
    other. A metric without values has no summary.

    >>> summarise({"loss": [(1, 0.5), (2, 0.25), (3, 0.75)]})["loss"].min_step
    2
    """
    return {name: _summary(curve) for name, curve in curves.items() if curve}


def _summary(curve: Curve) -> MetricSummary:
    last_step, last = curve[-1]
    numbers = [point for point in curve if math.isfinite(point[1])] or curve
    min_step, low = min(numbers, key=lambda point: point[1])
    max_step, high = max(numbers, key=lambda point: point[1])
    return MetricSummary(
        last=last,
        last_step=last_step,
        min=low,
        min_step=min_step,
        max=high,
        max_step=max_step,
    )
