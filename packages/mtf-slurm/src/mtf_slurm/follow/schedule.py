"""Experiments that wait for each other, for room, and for their turn.

    schedule = ExperimentSchedule(launcher, "experiments", quotas=[Quota(max_jobs=8)])
    schedule.add([prepare, train, report], after={"train": {"prepare": "afterok"}, ...})
    states = schedule.run()

What may go is submitted at once, as arrays, and waits in Slurm for what is submitted, too:
then nobody has to be there when its turn comes. What a quota holds back, and what waits for
that, is submitted by `step` when there is room, by priority.

Everything lies in the folder: the experiments in ``.slurm/schedule.json``, the jobs where the
launcher keeps them. Whoever calls `run` or `step` next goes on, on this machine or another,
after a kill, too; an experiment that has a job is not submitted, whatever was written when.
Several processes may call `step`; one at a time does something.

Where Slurm has no room for all that may go, fewer are submitted: see `mtf_slurm.follow._room`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Protocol

from mtf_slurm import _once
from mtf_slurm.after import After, checked
from mtf_slurm.command import NoRoomError
from mtf_slurm.errors import (
    SchedulerUnreachableError,
    SubmissionError,
    UnreadableReplyError,
)
from mtf_slurm.experiments import (
    BatchSubmissionResult,
    Experiment,
    checked_name,
    config_text,
    has_other_config,
    write_text,
)
from mtf_slurm.follow import _schedule_file
from mtf_slurm.follow._jobs import Jobs
from mtf_slurm.follow._room import Rooms
from mtf_slurm.follow._schedule_file import Entry
from mtf_slurm.follow._turns import Quota, Turns
from mtf_slurm.follow.changes import StateChange
from mtf_slurm.follow.monitor import JobMonitor
from mtf_slurm.states import JobState

__all__ = ["ExperimentSchedule", "Quota", "Submitter"]

_log = logging.getLogger("mtf_slurm.follow")
_NO_ANSWER = SchedulerUnreachableError.prefix
_MAX_REFUSALS = 3
_WAIT_S = 1.0
_LOOK_S = 5.0  # what others have added


class Submitter(Protocol):
    """What a schedule needs of a launcher; `mtf_slurm.launcher.SLURMLauncher` is one."""

    def submit(
        self,
        experiments: Sequence[Experiment],
        *,
        folder: Path,
        after: After | None = None,
    ) -> BatchSubmissionResult:
        """Submit each experiment that has no job; return one row for each, in order."""


class ExperimentSchedule:
    """Submits experiments in their order, and follows them.

    Args:
        launcher: Submits them.
        folder: Where they lie: the launcher's folder of experiments, or another.
        quotas: All of which hold.
        max_resubmissions: How often an experiment is submitted again that was preempted, or
            lost its node, and did not come back by itself.
        monitor: Follows them; one for the folder by default.

    Raises:
        ValueError: If *max_resubmissions* is below 0.
    """

    def __init__(
        self,
        launcher: Submitter,
        folder: str | PathLike[str],
        *,
        quotas: Iterable[Quota] = (),
        max_resubmissions: int = 3,
        monitor: JobMonitor | None = None,
    ) -> None:
        if max_resubmissions < 0:
            msg = f"max_resubmissions is {max_resubmissions}: give 0 or more"
            raise ValueError(msg)
        self._launcher = launcher
        self._folder = Path(folder).absolute()
        self._quotas = tuple(quotas)
        self._max_resubmissions = max_resubmissions
        self._monitor = monitor or JobMonitor(self._folder)
        self._callbacks: list[Callable[[StateChange], object]] = []
        self._stopped = threading.Event()
        self._pause_s = 0.0
        self._rooms = Rooms()
        self._jobs = Jobs((self._folder,), ())
        self._before: dict[str, JobState] | None = None  # ended before this looked
        self._monitor.subscribe(self._hear)

    def subscribe(self, callback: Callable[[StateChange], object]) -> None:
        """Call *callback* with each change of a job, and with each end without a job.

        An experiment that ends without a job, since what it waited for cannot come true or
        Slurm does not take it, has an empty ``job_id``. An end that an earlier run of the
        schedule noted is not told again. Errors of *callback* are written to the log, and
        touch nothing else.
        """
        self._callbacks.append(callback)

    def add(
        self,
        experiments: Sequence[Experiment],
        *,
        after: After | None = None,
        priority: int = 0,
        user: str = "",
        timeout_s: float = 60.0,
    ) -> None:
        """Add experiments; those that are there stay as they are, so it may be repeated.

        Args:
            experiments: Which; their configs are written.
            after: For which others each waits: ``{"train": {"prepare": "afterok"}}``; with
                ``afterany``, ``afterok`` or ``afternotok``. Others are added, too, or before.
            priority: Of all of them; the higher goes first where there is no room for all.
            user: Whose they are, for quotas.
            timeout_s: How long to wait for another process, in seconds.

        Raises:
            SubmissionError: If a name is none, a file cannot be written, or an experiment is
                here, or has a job, with another config.
            ValueError: If they wait for each other, or for what is not there.
        """
        experiments = [*experiments]
        names = [checked_name(experiment.experiment_name) for experiment in experiments]
        after = checked(after, names)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                with _schedule_file.opened(self._folder) as entries:
                    known = entries.keys() | set(names)
                    for name, others in after.items():
                        if missing := sorted(others.keys() - known):
                            msg = f"{name} waits for {', '.join(missing)}: add it, too"
                            raise ValueError(msg)
                    texts = {
                        n: config_text(e) for n, e in zip(names, experiments, strict=True)
                    }
                    new = texts.keys() - entries.keys()
                    with _once.lock(self._folder, timeout_s=timeout_s):
                        self._check(texts, entries.keys())
                        for name in new:
                            write_text(self._folder / name, name, texts[name])
                    for name, experiment in zip(names, experiments, strict=True):
                        if name not in new:
                            continue
                        entries[name] = Entry(
                            experiment_name=name,
                            values=experiment.model_dump(mode="json"),
                            after=dict(after.get(name, {})),
                            priority=priority,
                            user=user,
                        )
                    return
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    reason = "another process works on this schedule: try again"
                    raise SubmissionError(str(self._folder), reason) from error
                time.sleep(0.02)

    def _check(self, texts: Mapping[str, str], entries: Collection[str]) -> None:
        """Refuse configs that are not those of what is here, or has a job.

        Raises:
            SubmissionError: Naming one.
        """
        jobs = self._jobs.ids_in(self._folder)
        for name, text in texts.items():
            is_known = name in entries or name in jobs
            if is_known and has_other_config(self._folder / name, text):
                what = f"has a job, {jobs[name][-1]}," if name in jobs else "is here"
                reason = f"it {what} with another config: give this one a name of its own"
                raise SubmissionError(name, reason)

    def states(self) -> dict[str, JobState]:
        """Return how each experiment is, by name; ``pending`` while it is held back.

        Raises:
            SubmissionError: If the schedule's file is damaged.
        """
        now = {status.experiment_name: status for status in self._monitor.statuses()}
        found = {}
        for name, entry in _schedule_file.read(self._folder).items():
            status = now.get(name)
            if entry.ended is not None:
                found[name] = entry.ended
            else:
                found[name] = status.state if status else JobState.PENDING
        return found

    def run(self, *, timeout_s: float | None = None) -> dict[str, JobState]:
        """Go on until all experiments have ended; return how.

        Args:
            timeout_s: After which to return, in seconds, when a submission under way is done;
                another `run` goes on.

        Raises:
            MtfSlurmError: If Slurm refuses to answer, or the schedule's file is damaged.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self._step(None if deadline is None else deadline - time.monotonic()):
            wait_s = min(_LOOK_S, max(0.02, self._monitor.due_in_s))
            if deadline is not None:
                wait_s = min(wait_s, deadline - time.monotonic())
            if wait_s <= 0 or self._stopped.wait(wait_s):
                break
        return self.states()

    def stop(self) -> None:
        """Let `run` end, from another thread or a callback; jobs go on."""
        self._stopped.set()

    def step(self) -> bool:
        """Look what has ended and submit what may go; return whether anything is left.

        Slurm is asked for states no more often than the monitor's interval allows.

        Raises:
            MtfSlurmError: If Slurm refuses to answer, or the schedule's file is damaged.
        """
        return self._step(None)

    def _step(self, timeout_s: float | None) -> bool:
        if self._before is None:
            entries = _schedule_file.read(self._folder)
            self._before = {e.job_id: e.ended for e in entries.values() if e.ended}
        if any(
            change.after.is_final for change in self._monitor.poll(timeout_s=timeout_s)
        ):
            self._rooms.look_again()
        try:
            with _schedule_file.opened(self._folder) as entries:
                turns = Turns(
                    entries=entries,
                    ids=self._jobs.ids_in(self._folder),
                    statuses={s.job_id: s for s in self._monitor.statuses()},
                    quotas=self._quotas,
                    max_resubmissions=self._max_resubmissions,
                )
                turns.note()
                turns.take_up()
                told = [_end(entry, why) for entry, why in turns.give_up()]
                if time.monotonic() >= self._pause_s:
                    told += self._submit(entries, turns.choose())
                is_left = turns.is_left()
        except BlockingIOError:  # another process does this
            return True
        for change in told:
            self._tell(change)
        return is_left

    # ------------------------------------------------------------ within

    def _submit(
        self, entries: Mapping[str, Entry], chosen: Sequence[Entry]
    ) -> list[StateChange]:
        chosen = self._rooms.fitting(chosen, time.monotonic())
        if not chosen:
            return []
        after = {
            entry.experiment_name: {
                other: kind
                for other, kind in entry.after.items()
                if entries[other].ended is None
            }
            for entry in chosen
        }
        try:
            rows = self._launcher.submit(chosen, folder=self._folder, after=after)
        except (SchedulerUnreachableError, UnreadableReplyError) as error:
            _log.warning("nothing is submitted, for now: %s", error)
            self._pause()
            return []
        refused = {row.experiment_name for row in rows if row.job_id is None}
        told: list[StateChange] = []
        without_room = dict[str, str]()
        for entry, row in zip(chosen, rows, strict=True):
            why = row.error or "it has no job"
            if row.job_id is not None:
                entry.refusals = 0
                self._monitor.follow_again([row.job_id])
            elif why.startswith(NoRoomError.prefix):
                without_room[entry.experiment_name] = why
            elif not refused & entry.after.keys():
                self._pause()
                if not why.startswith(_NO_ANSWER):
                    told += self._refused(entry, why)
        if self._rooms.note(chosen, without_room, time.monotonic()):
            _log.warning("fewer go at once: %s", next(iter(without_room.values())))
        return told

    def _pause(self) -> None:
        """Submit nothing until there is something new."""
        self._pause_s = time.monotonic() + max(_WAIT_S, self._monitor.due_in_s)

    def _refused(self, entry: Entry, why: str) -> list[StateChange]:
        _log.warning("%s: not submitted: %s", entry.experiment_name, why)
        entry.refusals += 1
        if entry.refusals < _MAX_REFUSALS:
            return []
        jobs = self._jobs.ids_in(self._folder).get(entry.experiment_name, [""])
        entry.ended, entry.job_id = JobState.FAILED, jobs[-1]
        return [_end(entry, why)]

    def _hear(self, change: StateChange) -> None:
        """Tell what happened to a job, unless that was noted before this looked."""
        if (self._before or {}).pop(change.job_id, None) is not change.after:
            self._tell(change)

    def _tell(self, change: StateChange) -> None:
        for callback in self._callbacks:
            try:
                callback(change)
            except Exception:  # noqa: BLE001 -- it is not ours
                _log.exception("a callback failed at: %s", change)


def _end(entry: Entry, reason: str) -> StateChange:
    assert entry.ended is not None  # noqa: S101 -- it has just ended
    return StateChange(
        job_id="",
        experiment_name=entry.experiment_name,
        before=JobState.PENDING,
        after=entry.ended,
        at=datetime.now(UTC),
        reason=reason,
        node="",
    )
