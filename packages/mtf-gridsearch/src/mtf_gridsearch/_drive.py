"""The loop that runs a search: starts what has a place, watches, stops, notes what ended.

There is no batch: whatever ends makes room for the next at the next look. Everything that
the loop must know to go on stands in the journal before it is acted on, so the loop may be
killed between any two lines: another one watches what still runs, and starts the rest.

Knows nothing of grids, samplers and terminals.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mtf_gridsearch._account import outcomes
from mtf_gridsearch._plain import nearest
from mtf_gridsearch._progress import (
    NOT_STARTED,
    Progress,
    Running,
    Settings,
    View,
    is_settled,
)
from mtf_gridsearch.errors import LauncherError, SearchFolderError
from mtf_gridsearch.journal import Journal
from mtf_gridsearch.launcher import JobState, Launcher
from mtf_gridsearch.metrics_file import METRICS_NAME, CurveReader, summarise
from mtf_gridsearch.records import (
    ExperimentRecord,
    GridExperiment,
    Status,
    Supply,
    Usage,
)

__all__ = ["Drive", "Settings"]

T = TypeVar("T")

SLICE_S = 0.1  # a wait is cut into these, so that an interrupt is seen
BATCH = 100  # most that are submitted before it is noted


class Drive:
    """Runs one search to its end. Its owner holds the lock of the folder.

    Args:
        folder: Of the search.
        save: Writes an experiment's config to a path.
    """

    def __init__(  # noqa: PLR0913 -- each is another part of a run
        self,
        folder: Path,
        journal: Journal,
        launcher: Launcher,
        supply: Supply,
        *,
        save: Callable[[GridExperiment[Any], Path], None],
        view: View,
        settings: Settings,
    ) -> None:
        self._folder, self._journal = folder, journal
        self._launcher, self._supply = launcher, supply
        self._save, self._view, self._settings = save, view, settings
        self._running: dict[str, Running] = {}
        self._again: deque[GridExperiment[Any]] = deque()
        self._failed_here: set[str] = set()
        self._retried: Counter[tuple[str, Status]] = Counter()
        self._counts: Counter[Status] = Counter()
        self._ended = 0
        self._has_ended: list[ExperimentRecord] = []
        self._began_s = time.monotonic()
        self._launcher_failed_s: float | None = None
        self._launcher_worked = False
        self._has_judged = self._has_doubted = False
        self._is_interrupted = False

    def interrupt(self) -> None:
        """Make `run` return soon, with jobs left as they are. For signal handlers."""
        self._is_interrupted = True

    def run(self) -> bool:
        """Run until nothing is left; return False if it was interrupted before that.

        Raises:
            SearchFolderError: If the folder cannot be written.
            LauncherError: If the launcher starts nothing at all, or fails for long.
        """
        self._adopt()
        while not self._is_interrupted:
            num_ended = self._look()
            self._observe()
            num_started = self._fill()
            self._show()
            if self._is_done:
                return True
            if not num_ended and not num_started:
                self._wait(self._launcher.poll_interval_s)
        return False

    def cancel_all(self) -> None:
        """Cancel every job, and return when all have ended.

        Raises:
            SearchFolderError: If the folder cannot be written.
            LauncherError: If the launcher fails for long.
        """
        self._is_interrupted = False
        while self._running:
            job_ids = [running.job_id for running in self._running.values()]
            self._cancel(job_ids)
            self._look()
            self._show()
            if self._running:
                self._wait(self._launcher.poll_interval_s)

    @property
    def _is_done(self) -> bool:
        return not self._running and not self._again and self._supply.is_exhausted

    def _adopt(self) -> None:
        """Watch what an earlier loop started, and tell the supply what had ended."""
        for name, record in self._journal.records.items():
            self._counts[record.status] += 1
            if record.job_id is not None and record.ended_at is None:
                reader = self._reader(name, record.failed_jobs)
                self._watch(name, record.job_id, None, reader)
                self._count(record.status, Status.RUNNING)
            elif record.status is not Status.MISSING:
                self._supply.tell(record)

    def _watch(
        self,
        name: str,
        job_id: str,
        experiment: GridExperiment[Any] | None,
        reader: CurveReader,
    ) -> None:
        now = time.monotonic()
        self._running[name] = Running(job_id, reader, experiment, now)

    def _count(self, before: Status, after: Status) -> None:
        self._counts[before] -= 1
        self._counts[after] += 1

    def _look(self) -> int:
        """Ask how jobs are, and note which ended; return how many did."""
        names = list(self._running)
        if not names:
            return 0
        job_ids = [running.job_id for running in self._running.values()]
        words = self._ask(lambda: list(self._launcher.states(job_ids)))
        if words is None:
            return 0
        over = {}
        for name, word in zip(names, words, strict=True):
            running = self._running[name]
            running.state = JobState(word)
            if running.state.is_final or self._is_lost(running):
                over[name] = running
        told = self._told([running.job_id for running in over.values()])
        pairs = zip(over.items(), told, strict=True)
        records = [self._end(name, running, *how) for (name, running), how in pairs]
        self._journal.ended(records)
        for record in records:
            running = self._running.pop(record.experiment_name)
            self._count(Status.RUNNING, record.status)
            if record.status in {Status.FAILED, Status.TIMEOUT}:
                self._failed_here.add(record.experiment_name)
            self._supply.tell(self._known(record.experiment_name))
            self._doubt(record)
            self._retry(record, running)
        self._ended += len(records)
        self._has_ended.extend(records)
        return len(records)

    def _doubt(self, record: ExperimentRecord) -> None:
        """Say once that what is judged by is not what is reported."""
        metric = self._supply.metric
        if metric is None or self._has_judged or not record.metrics:
            return
        if metric not in record.metrics and not self._has_doubted:
            self._has_doubted = True
            hint = nearest(metric, record.metrics)
            self._view.note(
                f"Nothing is stopped early by {metric!r}, which was not reported: "
                f"{record.experiment_name} reported {', '.join(record.metrics)}"
                f"{hint if hint.startswith('; did') else ''}"
            )
        self._has_judged = metric in record.metrics

    def _is_lost(self, running: Running) -> bool:
        """Tell whether the launcher has known nothing of a job for too long."""
        if running.state is not JobState.UNKNOWN:
            running.unknown_since_s = None
            return False
        now = time.monotonic()
        if running.unknown_since_s is None:
            running.unknown_since_s = now
        return now - running.unknown_since_s >= self._settings.unknown_grace_s

    def _end(
        self, name: str, running: Running, reason: str, usage: Usage
    ) -> ExperimentRecord:
        """Return the record of an experiment whose job has ended."""
        record = self._known(name)
        status = Status(running.state)
        is_stopped = self._journal.is_stopping(name) and status is not Status.SUCCEEDED
        running.reader.read()
        told = [record.reason if is_stopped else reason]
        if number := running.reader.num_damaged:
            told.append(f"lines of {METRICS_NAME} that cannot be read: {number}")
        return replace(
            record,
            status=Status.STOPPED if is_stopped else status,
            reason="; ".join(filter(None, told)),
            metrics=summarise(running.reader.curves),
            usage=usage,
        )

    def _told(self, job_ids: list[str]) -> list[tuple[str, Usage]]:
        """Return why jobs failed and what they used, where the launcher tells."""
        told = self._ask(lambda: outcomes(self._launcher, job_ids))
        return told or [("", Usage())] * len(job_ids)

    def _retry(self, record: ExperimentRecord, running: Running) -> None:
        """Put an experiment back in the queue, if it may be started again."""
        key = (record.experiment_name, record.status)
        allowed = self._settings.retries.get(record.status, 0)
        if running.experiment is None or self._retried[key] >= allowed:
            return
        self._retried[key] += 1
        self._again.append(running.experiment)

    def _cancel(self, job_ids: list[str]) -> bool:
        """Ask jobs to end; return False if the launcher cannot be reached for now."""

        def call() -> bool:
            self._launcher.cancel(job_ids)
            return True

        return self._ask(call) is not None

    def _known(self, name: str) -> ExperimentRecord:
        """Return the record of an experiment that was planned."""
        record = self._journal.record(name)
        assert record is not None  # noqa: S101 -- nothing runs that was not
        return record

    def _observe(self) -> None:
        """Show new metrics to the supply, and cancel what it gives up."""
        for name, running in self._running.items():
            if running.reader.read() and not self._journal.is_stopping(name):
                record = replace(self._known(name), status=Status.RUNNING)
                reason = self._supply.observe(record, running.reader.curves)
                if reason is not None:
                    self._journal.stopping(name, reason)
            if self._journal.is_stopping(name) and not running.is_cancelled:
                running.is_cancelled = self._cancel([running.job_id])

    def _fill(self) -> int:
        """Start as many as have a place; return how many jobs were asked for."""
        num_started = 0
        while not self._is_interrupted and (free := self._free()) > 0:
            batch = [self._again.popleft() for _ in range(min(free, len(self._again)))]
            taken = self._supply.take(free - len(batch)) if len(batch) < free else ()
            if not batch and not taken:
                break
            batch += [experiment for experiment in taken if self._is_to_start(experiment)]
            if batch and not self._start(batch):
                break
            num_started += len(batch)
        return num_started

    def _free(self) -> int:
        limits = (self._launcher.max_running, self._settings.max_running)
        given = [limit - len(self._running) for limit in limits if limit is not None]
        return min([*given, BATCH])

    def _is_to_start(self, experiment: GridExperiment[Any]) -> bool:
        name = experiment.experiment_name
        if name in self._running:
            self._running[name].experiment = experiment
            return False
        # What failed while this run watched it is tried again as `retries` says, or not.
        record = self._journal.record(name)
        is_open = record is None or not is_settled(record.status)
        return is_open and name not in self._failed_here

    def _start(self, batch: list[GridExperiment[Any]]) -> bool:
        """Submit *batch*; return False if the launcher cannot be reached for now."""
        for experiment in batch:
            if self._journal.record(experiment.experiment_name) is None:
                self._counts[Status.MISSING] += 1
        self._journal.planned(batch)
        readers = {each.experiment_name: self._prepared(each) for each in batch}
        failed = {n for n in readers if self._known(n).status is Status.FAILED}
        submitted = self._ask(
            lambda: list(self._launcher.submit(batch, folder=self._folder))
        )
        if submitted is None:
            self._again.extendleft(reversed(batch))
            return False
        entries = {entry.experiment_name: entry for entry in submitted}
        started: dict[str, str] = {}
        refused: list[ExperimentRecord] = []
        for experiment in batch:
            record = self._known(experiment.experiment_name)
            entry = entries.get(experiment.experiment_name)
            if entry is not None and entry.job_id is not None:
                started[entry.experiment_name] = entry.job_id
                self._count(record.status, Status.RUNNING)
            else:
                said = "the launcher said nothing of it" if entry is None else entry.error
                refused.append(replace(record, reason=f"{NOT_STARTED}: {said}"))
        self._journal.submitted(started)
        self._journal.ended(refused)
        for experiment in batch:
            name = experiment.experiment_name
            if job_id := started.get(name):
                self._watch(name, job_id, experiment, readers[name])
        for name in failed & started.keys():  # whose last report counts no more
            record = replace(self._known(name), status=Status.RUNNING)
            self._supply.observe(record, readers[name].curves)
        for record in refused:  # which are as they were, and the next run tries again
            self._supply.tell(record)
        self._has_ended.extend(refused)
        return True

    def _prepared(self, experiment: GridExperiment[Any]) -> CurveReader:
        """Write an experiment's config, and return what will read its metrics."""
        self._write_config(experiment)
        name = experiment.experiment_name
        record = self._known(name)
        failed_jobs = record.failed_jobs
        if record.status is Status.FAILED and record.job_id is not None:
            failed_jobs += (record.job_id,)
        reader = self._reader(name, failed_jobs)
        if record.attempts:
            reader.read()  # what an earlier attempt reported is no reason to stop this one
        return reader

    def _reader(self, name: str, failed_jobs: tuple[str, ...]) -> CurveReader:
        return CurveReader(self._folder / name / METRICS_NAME, failed_jobs)

    def _write_config(self, experiment: GridExperiment[Any]) -> None:
        folder = self._folder / experiment.experiment_name
        try:
            folder.mkdir(exist_ok=True)
            self._save(experiment, folder / "config.yaml")
        except OSError as error:
            reason = (
                f"config.yaml cannot be written: {error.strerror or error}; what runs goes "
                f"on: repair that and run the command again"
            )
            raise SearchFolderError(folder, reason) from error

    def _ask(self, call: Callable[[], T]) -> T | None:
        """Return what the launcher answers; None where it fails and may work later."""
        try:
            answer = call()
        except Exception as error:
            now = time.monotonic()
            since = self._launcher_failed_s or now
            if not self._launcher_worked or now - since >= self._settings.patience_s:
                msg = (
                    f"the launcher fails: {error}; what runs goes on: "
                    f"repair that and run the command again"
                )
                raise LauncherError(msg) from error
            if self._launcher_failed_s is None:
                self._view.note(f"The launcher fails, will try again: {error}")
            self._launcher_failed_s = since
            return None
        self._launcher_failed_s, self._launcher_worked = None, True
        return answer

    def _show(self) -> None:
        progress = Progress(
            counts={status: n for status, n in self._counts.items() if n},
            total=self._supply.total,
            running=self._running,
            ended=self._ended,
            elapsed_s=time.monotonic() - self._began_s,
            has_ended=tuple(self._has_ended),
        )
        self._has_ended.clear()
        self._view.update(progress)
        notes = getattr(self._supply, "notes", [])  # of those that have something to say
        while notes:
            self._view.note(notes.pop(0))

    def _wait(self, seconds: float) -> None:
        """Wait, but not longer than until an interrupt."""
        deadline = time.monotonic() + seconds
        while not self._is_interrupted and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, SLICE_S))
