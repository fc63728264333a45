"""Report metrics while an experiment runs.

A script that a search runs calls `report`; the search reads the lines as they come, shows
them, stops what is bad early, and gathers them when the experiment has ended. See
`mtf_gridsearch.metrics_file` for the file.
"""

from __future__ import annotations

import json
import math
import operator
import os
import sys
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

__all__ = ["METRICS_NAME", "report"]

METRICS_NAME = "metrics.jsonl"
_RESERVED = ("step", "split", "job")


def report(step: SupportsIndex, /, **metrics: SupportsFloat) -> None:
    """Write one line of metrics to the experiment's ``metrics.jsonl``.

    The experiment's folder is named by the environment variable ``MTF_EXPERIMENT_DIR``,
    which the launcher sets. Without it, as when the script is run by hand, the line goes to
    standard output instead. Where several processes share an experiment, one reports.

    Args:
        step: Counts what the metrics are a curve over: steps or epochs, not negative.
        metrics: Numbers, or what has one such as a tensor of one element. Names that are
            no Python names are given as ``**{"val/loss": 0.25}``.

    Raises:
        TypeError: If *step* is no integer, or a metric no number.
        ValueError: If *step* is negative, there is no metric, or one is named ``step``,
            ``split`` or ``job``.
        OSError: If the line cannot be written whole; nothing of it counts then.

    >>> report(1, loss=0.5, accuracy=0.75)
    {"step": 1, "loss": 0.5, "accuracy": 0.75}
    """
    row: dict[str, Any] = {"step": operator.index(step)}
    if row["step"] < 0:
        msg = f"step {row['step']} is negative: count from 0"
        raise ValueError(msg)
    if not metrics or any(name in metrics for name in _RESERVED):
        msg = "give at least one metric, and name none of them 'step', 'split' or 'job'"
        raise ValueError(msg)
    row |= {name: _number(name, value) for name, value in metrics.items()}
    folder = os.environ.get("MTF_EXPERIMENT_DIR")
    if folder and (job_id := os.environ.get("MTF_JOB_ID")):
        # Another attempt that begins before where this one came to replaces the rest.
        row["job"] = Path(job_id).name
    line = json.dumps(row, allow_nan=False) + "\n"
    if folder:
        _append(Path(folder) / METRICS_NAME, line.encode())
    else:
        sys.stdout.write(line)


def _number(name: str, value: SupportsFloat) -> float | str:
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        msg = f"metric {name!r} is {value!r}, not a number"
        raise TypeError(msg)
    number = float(value)
    if math.isfinite(number):
        return number
    if math.isnan(number):
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"


def _append(path: Path, line: bytes) -> None:
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        size_bytes = os.fstat(fd).st_size
        if size_bytes and os.pread(fd, 1, size_bytes - 1) != b"\n":
            line = (
                b"\n" + line
            )  # behind what a crash tore off, which must not take it along
        if os.write(fd, line) < len(line):
            msg = f"{path}: only a part of a line could be written: is the disk full?"
            raise OSError(msg)
    finally:
        os.close(fd)
