"""The journal of a search: what happened to its experiments, append only.

``journal.jsonl`` is the one truth about the state of a search. Each line is a JSON object,
on disk before the executor goes on:

* ``planned``: *name*, *identity*, *parameters*
* ``submitted``: *name*, *job_id*
* ``stopping``: *name*, *reason*: a rule decided, the job is about to be cancelled
* ``ended``: *name*, *job_id*, *status*, *reason*, *usage*, and *metrics*, which holds
  ``[last, last_step, min, min_step, max, max_step]`` by name
* ``dropped``: *name*: it is no longer in the grid; ``restored``: *name*: it is again

each with *event* first and *at*, seconds since 1970, for people alone. A *job_id* that is a
path within the folder is written from there, ``./<experiment>/<job>``, so that the folder
may be moved; whoever reads it gets the whole path again. A line counts once its newline is
there, so what a kill tore off counts for nobody. Numbers that JSON lacks are
written as Python's `json` does: ``NaN``, ``Infinity``.

Knows nothing of launchers, and does not lock: one executor writes, anyone reads.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from mtf_gridsearch.errors import DamagedJournalError, SearchFolderError
from mtf_gridsearch.records import (
    ExperimentRecord,
    GridExperiment,
    MetricSummary,
    Status,
    Usage,
)

__all__ = ["JOURNAL_NAME", "Journal", "placed_id", "read_records"]

JOURNAL_NAME = "journal.jsonl"

_now: Callable[[], float] = time.time  # noqa: TID251 -- stamps are for people


@dataclass(slots=True)
class _Entry:
    """A record while the lines about it are read."""

    identity: str
    parameters: Mapping[str, Any]
    status: Status = Status.MISSING
    job_id: str | None = None
    attempts: int = 0
    reason: str = ""
    metrics: Mapping[str, MetricSummary] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    started_at: float | None = None
    ended_at: float | None = None
    is_stopping: bool = False
    failed_jobs: tuple[str, ...] = ()
    is_dropped: bool = False
    has_failed: bool = False

    def submitted(self, job_id: str, at: float) -> None:
        """Begin an attempt; the same job once more is the same attempt."""
        if job_id != self.job_id or self.ended_at is not None:
            self.attempts += 1
        if self.status is Status.FAILED and self.job_id and self.job_id != job_id:
            self.failed_jobs += (self.job_id,)
        self.status, self.job_id, self.reason = Status.PENDING, job_id, ""
        self.metrics, self.usage = {}, Usage()
        self.started_at, self.ended_at, self.is_stopping = at, None, False

    def record(self, name: str) -> ExperimentRecord:
        """Return what is known, frozen."""
        return ExperimentRecord(
            experiment_name=name,
            identity=self.identity,
            parameters=self.parameters,
            status=self.status,
            job_id=self.job_id,
            attempts=self.attempts,
            reason=self.reason,
            metrics=self.metrics,
            usage=self.usage,
            started_at=self.started_at,
            ended_at=self.ended_at,
            failed_jobs=self.failed_jobs,
            is_dropped=self.is_dropped,
            has_failed=self.has_failed,
        )


_Entries = dict[str, _Entry]


def _summary(values: list[Any]) -> MetricSummary:
    last, last_step, low, low_step, high, high_step = values
    return MetricSummary(
        last=last,
        last_step=last_step,
        min=low,
        min_step=low_step,
        max=high,
        max_step=high_step,
    )


def placed_id(job_id: str, folder: str) -> str:
    """Return *job_id* as it is written of a search in *folder*, an absolute path.

    >>> (
    ...     placed_id("/searches/one/a/a.1", "/searches/one"),
    ...     placed_id("4711", "/searches/one"),
    ... )
    ('./a/a.1', '4711')
    """
    if job_id.startswith(f"{folder}/"):
        return f".{job_id[len(folder) :]}"
    return f"./{job_id}" if job_id.startswith("./") else job_id


def _found(written: Any, folder: str) -> Any:
    """Return the job's id that `placed_id` wrote, for where the folder is now."""
    if not isinstance(written, str) or not written.startswith("./"):
        return written
    rest = written[2:]
    return rest if rest.startswith("./") else f"{folder}/{rest}"


def _fold(entries: _Entries, line: Mapping[str, Any], folder: str) -> None:
    """Apply one line; a KeyError, TypeError or ValueError says that it is none of ours."""
    event, name, at = line["event"], line["name"], float(line["at"])
    if event == "planned":
        entries.setdefault(name, _Entry(line["identity"], dict(line["parameters"])))
        return
    entry = entries[name]
    if event == "submitted":
        entry.submitted(_found(line["job_id"], folder), at)
    elif event == "stopping":
        entry.reason, entry.is_stopping = line["reason"], True
    elif event == "ended":
        entry.status = Status(line["status"])
        entry.has_failed |= entry.status in (Status.FAILED, Status.TIMEOUT)
        entry.job_id = _found(line["job_id"], folder)
        entry.reason, entry.ended_at, entry.is_stopping = line["reason"], at, False
        entry.metrics = {name: _summary(v) for name, v in line["metrics"].items()}
        entry.usage = Usage(**line["usage"])
    elif event == "used":
        if entry.job_id == _found(line["job_id"], folder):
            entry.usage = Usage(**line["usage"])
    elif event in ("dropped", "restored"):
        entry.is_dropped = event == "dropped"
    else:
        msg = f"unknown event {event!r}"
        raise ValueError(msg)


def _read(folder: Path) -> tuple[_Entries, int]:
    """Return what the journal says, and the size of the part that counts."""
    try:
        data = (folder / JOURNAL_NAME).read_bytes()
    except FileNotFoundError:
        return {}, 0
    except OSError as error:
        raise SearchFolderError(folder, f"its journal cannot be read: {error}") from error
    size_bytes = data.rfind(b"\n") + 1
    entries: _Entries = {}
    place = _absolute(folder)
    for number, line in enumerate(data[:size_bytes].split(b"\n")[:-1], 1):
        try:
            _fold(entries, json.loads(line), place)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            reason = (
                f"line {number} of {JOURNAL_NAME} is not one that was written ({error!r}); "
                f"restore it, or delete the line to go on without what it said"
            )
            raise DamagedJournalError(folder, reason) from error
    return entries, size_bytes


def read_records(folder: Path) -> dict[str, ExperimentRecord]:
    """Return one record for each experiment of the search in *folder*, in planned order.

    May be called while an executor writes. What is submitted and not seen to have ended is
    ``pending``. A folder without a journal has no experiments.

    Raises:
        DamagedJournalError: If a line is not one that was written.
        SearchFolderError: If the journal cannot be read.
    """
    entries, _ = _read(folder)
    return {name: entry.record(name) for name, entry in entries.items()}


class Journal:
    """Writes the journal of one search; its owner holds the lock of the folder.

    What was torn off the end by a kill is cut away when it is opened. Each method returns
    once its lines are on disk.

    Args:
        folder: Of the search; must exist.

    Raises:
        DamagedJournalError: If a line is not one that was written.
        SearchFolderError: If the journal cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._place = folder, _absolute(folder)
        self._entries, self._size_bytes = _read(folder)
        path = folder / JOURNAL_NAME
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._fd, self._size_bytes)
            _sync_folder(folder)
        except OSError as error:
            raise self._cannot_write(error) from error

    @property
    def records(self) -> dict[str, ExperimentRecord]:
        """What it says now, in planned order."""
        return {name: entry.record(name) for name, entry in self._entries.items()}

    def record(self, name: str) -> ExperimentRecord | None:
        """Return what it says of one experiment; None if that was never planned."""
        entry = self._entries.get(name)
        return None if entry is None else entry.record(name)

    def is_stopping(self, name: str) -> bool:
        """Tell whether a rule decided to stop *name*, and it was not seen to have ended."""
        return name in self._entries and self._entries[name].is_stopping

    def planned(self, experiments: Iterable[GridExperiment[Any]]) -> None:
        """Note experiments that will be run; those it knows are left out.

        Raises:
            SearchFolderError: If it cannot be written; then none is noted.
        """
        self._write(
            {
                **_head("planned", experiment.experiment_name),
                "identity": experiment.identity,
                "parameters": dict(experiment.parameters),
            }
            for experiment in experiments
            if experiment.experiment_name not in self._entries
        )

    def dropped(self, names: frozenset[str]) -> None:
        """Note that *names*, and no others, are no longer in the grid.

        Raises:
            SearchFolderError: If it cannot be written.
        """
        self._write(
            _head("dropped" if name in names else "restored", name)
            for name, entry in self._entries.items()
            if entry.is_dropped != (name in names)
        )

    def submitted(self, job_ids: Mapping[str, str]) -> None:
        """Note the jobs that were started, by name.

        Raises:
            SearchFolderError: If it cannot be written.
        """
        self._write(
            {**_head("submitted", name), "job_id": placed_id(job_id, self._place)}
            for name, job_id in job_ids.items()
        )

    def stopping(self, name: str, reason: str) -> None:
        """Note that a rule decided to stop *name*.

        Raises:
            SearchFolderError: If it cannot be written.
        """
        self._write([{**_head("stopping", name), "reason": reason}])

    def ended(self, records: Iterable[ExperimentRecord]) -> None:
        """Note how experiments ended: each record's job, status, reason, metrics, usage.

        Raises:
            SearchFolderError: If it cannot be written.
        """
        self._write(
            {
                **_head("ended", record.experiment_name),
                "job_id": record.job_id and placed_id(record.job_id, self._place),
                "status": record.status,
                "reason": record.reason,
                "metrics": {name: astuple(m) for name, m in record.metrics.items()},
                "usage": asdict(record.usage),
            }
            for record in records
        )

    def used(self, usages: Mapping[str, Usage]) -> None:
        """Note what the last jobs of experiments used, known only after their ends.

        Raises:
            SearchFolderError: If it cannot be written.
        """
        self._write(
            {
                **_head("used", name),
                "job_id": placed_id(self._entries[name].job_id or "", self._place),
                "usage": asdict(usage),
            }
            for name, usage in usages.items()
        )

    def close(self) -> None:
        """Write nothing more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append *lines* and wait for the disk; on failure leave the file as it was."""
        new = list(lines)
        if not new:
            return
        data = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in new)
        try:
            _write_at(self._fd, data.encode(), self._size_bytes)
            os.fsync(self._fd)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._fd, self._size_bytes)
            raise self._cannot_write(error) from error
        self._size_bytes += len(data)
        for line in new:
            _fold(self._entries, line, self._place)

    def _cannot_write(self, error: OSError) -> SearchFolderError:
        reason = (
            f"its journal cannot be written: {error.strerror or error}; nothing that it "
            f"says is lost, and what runs goes on: repair that and run the command again"
        )
        return SearchFolderError(self._folder, reason)


def _head(event: str, name: str) -> dict[str, Any]:
    return {"event": event, "at": round(_now(), 3), "name": name}


def _absolute(folder: Path) -> str:
    return os.path.abspath(folder)  # noqa: PTH100 -- without following links


def _write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of *data*: a full disk may take a part."""
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _sync_folder(folder: Path) -> None:
    """Wait until the names in *folder* are on disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
