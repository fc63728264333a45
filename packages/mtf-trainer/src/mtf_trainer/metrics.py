"""The stream of metrics: ``metrics.jsonl``, one JSON object a line.

============= ======= ============================================================
key           type    meaning
============= ======= ============================================================
``step``      int     optimizer steps taken so far, from 1
``epoch``     int     the epoch the line belongs to, from 1
``split``     string  ``"train"`` or ``"val"``
``samples``   int     samples the means are taken over, of all processes
``loss``      number  mean loss over these samples
``lr``        number  ``train``: learning rate of the first group behind ``step``
``grad_norm`` number  ``train``: gradient norm before clipping, at ``step``
other keys    number  means of what else the step functions return
============= ======= ============================================================

A ``train`` line covers the steps since the line before it, so that the lines of one
epoch cover each of its samples once; a ``val`` line covers a whole validation. JSON has
no word for values that are not finite: they are the strings ``"NaN"``, ``"Infinity"``
and ``"-Infinity"``, which ``float()`` reads.

Each line is one ``write`` to a file opened for appending. What a crash leaves after the
last checkpoint, a torn line included, is cut off when the run goes on. This module loads
neither torch nor lightning.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mtf_trainer.errors import MetricsFileError

__all__ = ["RESERVED", "MetricsWriter", "read_metrics"]

RESERVED = frozenset({"step", "epoch", "split", "samples", "lr", "grad_norm"})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of *path* in order, with numbers that are not finite as floats.

    A last line without an end, as a crash or a write in progress leaves it, is left out.

    Raises:
        OSError: If the file cannot be read.
        MetricsFileError: If another line is not one that was written.
    """
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    rows = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = dict(json.loads(line))
            rows.append({key: _decode(key, value) for key, value in row.items()})
        except (TypeError, ValueError) as error:
            message = f"line {number} is damaged: it is no JSON object of metrics"
            raise MetricsFileError(path, message) from error
    return rows


def _decode(key: str, value: object) -> object:
    return float(value) if isinstance(value, str) and key != "split" else value


def _encode(value: float) -> float | str:
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


class MetricsWriter:
    """Appends to a file of metrics. One process, one writer; not for several threads.

    Args:
        path: The file; its folder must exist.
        keep_bytes: What follows is cut off: the file's size at the checkpoint a run
            goes on from, 0 for a new run. Of a shorter file the whole lines stay, and
            `missing_bytes` says what is not there.

    Raises:
        MetricsFileError: If the file cannot be opened, cut or written.
    """

    def __init__(self, path: Path, *, keep_bytes: int) -> None:
        self._path = path
        self._place = path.absolute()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            self._fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise self._failure(error, "opened") from error
        try:
            self.missing_bytes = max(0, keep_bytes - self.size())
            if self.missing_bytes:
                # A stump of a line must not become the beginning of another.
                keep_bytes = path.read_bytes().rfind(b"\n") + 1
            if self.size() > keep_bytes:
                os.ftruncate(self._fd, keep_bytes)
        except OSError as error:
            os.close(self._fd)
            raise self._failure(error, "cut to length") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def append(
        self, *, step: int, epoch: int, split: str, values: Mapping[str, Any]
    ) -> None:
        """Write one line: the keys above, then *values* (numbers) in their order.

        Raises:
            MetricsFileError: If it cannot be written whole; nothing of it is kept then.
                If the file was deleted.
        """
        row: dict[str, Any] = {"step": step, "epoch": epoch, "split": split}
        row |= {key: _encode(value) for key, value in values.items()}
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        found = os.fstat(self._fd)
        if found.st_nlink == 0:
            raise self._lost()
        before = found.st_size
        try:
            written = os.write(self._fd, line)
            if written < len(line):
                os.write(self._fd, line[written:])
        except OSError as error:
            os.ftruncate(self._fd, before)
            raise self._failure(error, "written") from error

    def flush(self) -> int:
        """Bring all lines to the disk, and return the file's size in bytes.

        Raises:
            MetricsFileError: If that fails, or `check` does.
        """
        self.check()
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._failure(error, "written") from error
        return os.fstat(self._fd).st_size

    def check(self) -> None:
        """See that the file is still the one at its path, where readers look for it.

        Raises:
            MetricsFileError: If it was deleted or replaced, or that cannot be told.
        """
        try:
            if os.path.samestat(os.fstat(self._fd), self._place.stat()):
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise self._failure(error, "found") from error
        raise self._lost()

    def size(self) -> int:
        """Return the file's size in bytes, of which the last may not be on the disk."""
        return os.fstat(self._fd).st_size

    def cut(self, size_bytes: int) -> None:
        """Take back the lines behind the first *size_bytes*.

        Raises:
            MetricsFileError: If that fails.
        """
        try:
            os.ftruncate(self._fd, min(size_bytes, self.size()))
        except OSError as error:
            raise self._failure(error, "cut to length") from error

    def close(self) -> None:
        """Close the file; again is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _lost(self) -> MetricsFileError:
        return MetricsFileError(
            self._path, "was deleted or replaced while it was written"
        )

    def _failure(self, error: OSError, verb: str) -> MetricsFileError:
        return MetricsFileError(
            self._path, f"cannot be {verb}: {error.strerror or error}"
        )
