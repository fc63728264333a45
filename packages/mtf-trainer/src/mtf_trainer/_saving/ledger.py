"""The ledger of a run's checkpoints: ``chain.jsonl``, one JSON object a line.

A line holds ``name``, ``epoch``, ``global_step``, ``is_epoch_end``, ``values`` (the
metrics then; null for what is not finite) and the digests of its certificate. It is
brought to the disk before the checkpoint gets its name, so that each checkpoint has its
line; a line may be of one that was deleted, replaced, or never came to be.

What a kill leaves of a line is cut off before the next one is written.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["LEDGER", "Ledger", "is_epoch_end", "plain_values"]

LEDGER = "chain.jsonl"


def plain_values(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return *metrics* as JSON can hold them.

    >>> plain_values({"loss": 0.5, "accuracy": float("nan")})
    {'loss': 0.5, 'accuracy': None}
    """
    values = {name: float(value) for name, value in metrics.items()}
    return {name: v if math.isfinite(v) else None for name, v in values.items()}


def is_epoch_end(content: Mapping[str, Any]) -> bool:
    """Tell whether *content* has the weights that an epoch ended with.

    It has them until the next epoch's first step. What a stop before that step saves has
    the name of the epoch's end and takes its place, so it must count as that.

    >>> def behind(num_batches, *, of_window):
    ...     train = {"batch_idx": num_batches, "window_batches": of_window}
    ...     return {"resume": {"epoch": 1, "train": train}}
    >>> is_epoch_end(behind(0, of_window=0)), is_epoch_end(behind(2, of_window=2))
    (True, True)
    >>> is_epoch_end(behind(2, of_window=0))
    False
    """
    resume = content.get("resume")
    train = resume.get("train") if isinstance(resume, Mapping) else None
    if not isinstance(resume, Mapping) or not isinstance(train, Mapping):
        return False
    has_ended = resume.get("epoch") not in (None, 0)
    return has_ended and train.get("batch_idx") == train.get("window_batches")


class Ledger:
    """The ledger in *folder*. One process writes to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER

    def read(self) -> list[dict[str, Any]]:
        """Return its lines in order; what is no JSON object is left out.

        Raises:
            OSError: If it is there and cannot be read.
        """
        try:
            whole, _, _ = self.path.read_bytes().rpartition(b"\n")
        except FileNotFoundError:
            return []
        return [row for line in whole.splitlines() if (row := _parse(line)) is not None]

    def problem(self, digest: str | None) -> str | None:
        """Return what is wrong with it behind the checkpoint with certificate *digest*.

        None if it has that certificate, and no line that is damaged.

        Raises:
            OSError: If it is there and cannot be read.
        """
        rows = self.read()
        if not self.path.exists():
            return "is missing"
        if len(rows) < self.path.read_bytes().count(b"\n"):
            return "has damaged lines"
        if digest not in {row.get("digest") for row in rows}:
            return "lacks the line of the checkpoint"
        return None

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write *rows* behind what is there, and bring them to the disk.

        Raises:
            OSError: If that fails; nothing of them is kept then, if it can be helped.
        """
        lines = [json.dumps(dict(row), allow_nan=False) + "\n" for row in rows]
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(self.path, flags, 0o666)
        with os.fdopen(fd, "r+b", buffering=0) as file:
            size = self._cut(fd)
            file.seek(size)
            try:
                view = memoryview("".join(lines).encode())
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            except OSError:
                os.ftruncate(fd, size)
                raise

    def cut(self) -> None:
        """Cut off what a kill left of a line.

        Raises:
            OSError: If that fails.
        """
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            self._cut(fd)
        finally:
            os.close(fd)

    @staticmethod
    def _cut(fd: int) -> int:
        """Cut off a last line that has no end, and return the size."""
        size = os.fstat(fd).st_size
        end = size
        while end > 0:
            start = max(0, end - 4096)
            found = os.pread(fd, end - start, start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            os.ftruncate(fd, end)
        return end


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
