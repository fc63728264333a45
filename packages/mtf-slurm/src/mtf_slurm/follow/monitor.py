"""Follow jobs: their changes as events, at few questions to Slurm.

    monitor = JobMonitor("experiments")
    for change in monitor.events():
        print(change)

One ``squeue`` tells of all jobs, and one ``sacct`` of those that it does not show. Slurm is
asked once in *interval_s* at most, and less often while nothing changes; threads may share a
monitor, and processes that follow the same folder share the answers (`mtf_slurm.follow._source`).
Nothing else is kept: a monitor that is killed loses nothing, and the next one begins with the
states as they are then.

While nobody answers, or with something that cannot be read, the states stay as they were and
`JobStatus.is_stale` is true; the log of ``mtf_slurm.follow`` says so once, and once when there
is an answer again. It is asked on, less and less often.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Literal

from mtf_slurm import _again
from mtf_slurm._answers import Answer
from mtf_slurm._outcomes import Outcomes, task_of
from mtf_slurm.command import Commands, NoAnswerError
from mtf_slurm.errors import UnreadableReplyError
from mtf_slurm.follow._blame import Blame
from mtf_slurm.follow._jobs import Followed, Jobs
from mtf_slurm.follow._source import Source
from mtf_slurm.follow.changes import JobStatus, Seen, StateChange
from mtf_slurm.query import Form, Known
from mtf_slurm.states import JobState

__all__ = ["JobMonitor", "JobStatus", "StateChange"]

_log = logging.getLogger("mtf_slurm.follow")
_SLOWER = 1.5


class JobMonitor:
    """Follows the last job of each experiment in folders, and jobs of given ids.

    It may be used by several threads. What has ended is not asked for again: a job that
    somebody requeues later is seen by a new monitor.

    Args:
        folders: Of experiments, as launchers take them; they may grow.
        job_ids: Of more jobs.
        interval_s: Between two questions to Slurm, at least, in seconds.
        longest_interval_s: Between two while nothing changes, in seconds.
        unknown_s: How long a job that Slurm does not show is waited for, in seconds; then it
            is given up and stays ``unknown``.
        brings_back: Whether to requeue jobs that ask for it where there is no ``scontrol``:
            see `SLURMLauncher.bring_back`.
        form: In which ``squeue`` answers; ``auto`` is JSON from Slurm 23.11 on.
        commands: Runs Slurm's commands; by default each question is asked once.
        clock: In seconds; for tests.

    Raises:
        ValueError: If a number or an id is none.
    """

    def __init__(  # noqa: PLR0913 -- each is set by name
        self,
        folders: str | PathLike[str] | Iterable[str | PathLike[str]] = (),
        *,
        job_ids: Iterable[str] = (),
        interval_s: float = 30.0,
        longest_interval_s: float = 300.0,
        unknown_s: float = 900.0,
        brings_back: bool = False,
        form: Form | Literal["auto"] = "auto",
        commands: Commands | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < interval_s <= longest_interval_s or not unknown_s >= 0:
            msg = "give 0 < interval_s <= longest_interval_s, and unknown_s of 0 or more"
            raise ValueError(msg)
        given = [folders] if isinstance(folders, str | PathLike) else folders
        self._jobs = Jobs([Path(folder).absolute() for folder in given], job_ids)
        self._commands = commands or Commands(num_attempts=1)
        self._source = Source(
            self._jobs.folders,
            interval_s=interval_s,
            form=form,
            clock=clock,
        )
        self._interval_s = interval_s
        self._longest_s = longest_interval_s
        self._unknown_s = unknown_s
        self._brings_back = brings_back
        self._clock = clock
        self._wait_s = interval_s
        self._due_s = clock()
        self._seen: dict[str, Seen] = {}
        self._heard: dict[str, Seen] = {}  # from others, and not asked for yet
        self._followed: dict[str, Followed] = {}
        self._blame = Blame()
        self._stamp = ""
        self._trouble = ""
        self._is_stopped = False
        self._callbacks: list[Callable[[StateChange], object]] = []
        self._queues: list[deque[StateChange]] = []
        self._polling = threading.Lock()
        self._news = threading.Condition()

    # ------------------------------------------------------------ look

    @property
    def trouble(self) -> str:
        """Why the last question to Slurm got no answer; empty if it got one."""
        return self._trouble

    @property
    def is_done(self) -> bool:
        """Whether all jobs have ended, or are given up."""
        return bool(self._stamp) and not self._open()

    @property
    def due_in_s(self) -> float:
        """When `poll` may find something new, in seconds from now."""
        return max(0.0, self._due_s - self._clock())

    def statuses(self) -> list[JobStatus]:
        """Return how each job is, without asking Slurm."""
        known, now_s = self._seen, self._clock()
        found = []
        for job_id, job in self._followed.items():
            seen = known.get(job_id) or self._heard.get(job_id, Seen())
            is_over = seen.is_over(now_s, self._unknown_s)
            is_stale = bool(self._trouble)
            found.append(seen.status(job, is_stale=is_stale, is_over=is_over))
        return found

    # ------------------------------------------------------------ follow

    def subscribe(self, callback: Callable[[StateChange], object]) -> None:
        """Call *callback* with each change, in the thread that polls.

        Its errors are written to the log, and touch nothing else.
        """
        self._callbacks.append(callback)

    def poll(self, *, timeout_s: float | None = None) -> list[StateChange]:
        """Look for changes, once, and return them; ask Slurm only if it is time to.

        Args:
            timeout_s: How long Slurm may take to answer, in seconds; what is left open then
                stays as it was.

        Raises:
            SchedulerUnreachableError: If there is no Slurm on this machine.
            SchedulerCommandError: If it refuses to answer.
        """
        commands = self._commands
        if timeout_s is not None:
            commands = commands.within(timeout_s)
        if not self._polling.acquire(blocking=False):
            return []  # another thread does this
        try:
            changes = self._poll(commands)
        finally:
            self._polling.release()
        for change in changes:
            for callback in self._callbacks:
                try:
                    callback(change)
                except Exception:  # noqa: BLE001 -- it is not ours
                    _log.exception("a callback failed at: %s", change)
        return changes

    def follow_again(self, job_ids: Iterable[str]) -> None:
        """Take up jobs that had ended and were requeued since."""
        with self._news:
            again = {*job_ids}
            self._seen = {i: seen for i, seen in self._seen.items() if i not in again}
            self._wait_s = self._interval_s
            self._due_s = min(self._due_s, self._clock() + self._interval_s)

    def events(self, *, timeout_s: float | None = None) -> Iterator[StateChange]:
        """Yield changes as they come, until all jobs have ended or `stop` is called.

        The first is each job's state as it is. Ctrl-C ends it at any time; nothing is left
        behind.

        Args:
            timeout_s: After which it ends in any case, in seconds.

        Raises:
            SchedulerUnreachableError: If there is no Slurm on this machine.
            SchedulerCommandError: If it refuses to answer.
        """
        deadline = None if timeout_s is None else self._clock() + timeout_s
        queue: deque[StateChange] = deque()
        with self._news:
            self._queues.append(queue)
            at = datetime.now(UTC)  # others may follow already
            queue.extend(
                seen.change(Seen(), self._followed[job_id], at)
                for job_id, seen in self._seen.items()
                if seen.state is not JobState.UNKNOWN
            )
        try:
            while True:
                left_s = None if deadline is None else deadline - self._clock()
                self.poll(timeout_s=left_s)
                while queue:
                    yield queue.popleft()
                if self._is_stopped or self.is_done:
                    return
                wait_s = max(0.01, self.due_in_s)
                if deadline is not None:
                    wait_s = min(wait_s, deadline - self._clock())
                    if wait_s <= 0:
                        return
                with self._news:
                    if not queue and not self._is_stopped:
                        self._news.wait(wait_s)
        finally:
            with self._news:
                self._queues.remove(queue)

    def wait(self, *, timeout_s: float | None = None) -> bool:
        """Follow until all jobs have ended; return whether they have.

        Raises:
            SchedulerUnreachableError: If there is no Slurm on this machine.
            SchedulerCommandError: If it refuses to answer.
        """
        for _ in self.events(timeout_s=timeout_s):
            pass
        return self.is_done

    def stop(self) -> None:
        """Let all iterators end, in whatever threads they are."""
        with self._news:
            self._is_stopped = True
            self._news.notify_all()

    # ------------------------------------------------------------ within

    def _open(self) -> list[str]:
        now_s = self._clock()
        seen = self._seen
        return [
            job_id
            for job_id in self._followed
            if job_id not in seen or not seen[job_id].is_over(now_s, self._unknown_s)
        ]

    def _poll(self, commands: Commands) -> list[StateChange]:
        if self._clock() < self._due_s:
            return []
        self._followed = self._jobs.now()
        ids = self._open()
        if not ids:
            self._stamp = self._stamp or "nothing"
            self._due_s = self._clock() + self._wait_s
            return []
        answer = self._source.ask(commands, ids, self._blame.suspects)
        if answer.stamp in {self._stamp, ""}:  # somebody asked not long ago
            self._due_s = self._clock() + max(0.05, self._source.due_in_s)
            return []
        self._say(answer.trouble)
        seen, changes = self._seen, list[StateChange]()
        self._hear(commands, answer, ids)
        if not answer.trouble:
            seen, changes = self._take(commands, answer, ids)
        self._wait_s = (
            self._interval_s if changes else min(self._longest_s, self._wait_s * _SLOWER)
        )
        self._due_s = self._clock() + self._wait_s
        with self._news:
            self._seen, self._stamp = seen, answer.stamp
            for queue in self._queues:
                queue.extend(changes)
            self._news.notify_all()
        return changes

    def _say(self, trouble: str) -> None:
        if trouble and not self._trouble:
            _log.warning("states stay as they were, for now: %s", trouble)
        if self._trouble and not trouble:
            _log.warning("Slurm answers again")
        self._trouble = trouble

    def _hear(self, commands: Commands, answer: Answer, ids: list[str]) -> None:
        """Note how jobs had ended that others do not ask for any more.

        They may have been requeued since, so they are asked for all the same.
        """
        rows = dict(answer.ended)
        ended = [i for i in ids if i not in answer.asked and task_of(i) in rows]
        known = Known(rows, is_whole=False)
        outcomes = Outcomes(commands, ended, self._jobs.folders, known=known)
        self._heard = {
            i: Seen(state=outcomes.state(i), row=rows[task_of(i)]) for i in ended
        }

    def _take(
        self, commands: Commands, answer: Answer, ids: list[str]
    ) -> tuple[dict[str, Seen], list[StateChange]]:
        """Return what is known after an answer, and what is new."""
        told = [job_id for job_id in ids if job_id in answer.asked]
        known = Known(dict(answer.rows), answer.is_whole)
        outcomes = Outcomes(commands, told, self._jobs.folders, known=known)
        at, now_s = datetime.now(UTC), self._clock()
        seen, changes, failed = dict(self._seen), [], []
        states = {job_id: outcomes.state(job_id) for job_id in told}
        if self._brings_back:
            ended = [i for i, state in states.items() if state in _again.MAY_COME_BACK]
            try:
                back = _again.bring_back(commands, outcomes, ended, self._jobs.folders)
                states |= dict.fromkeys(back, JobState.PENDING)
            except (NoAnswerError, UnreadableReplyError) as error:
                self._say(str(error))
                states = {i: s for i, s in states.items() if i not in ended}
        for job_id, state in states.items():
            before = seen.get(job_id, Seen())
            row = outcomes.row(job_id) or before.row
            if row is not None and row.state is not state:
                # The experiment says how it ended, and Slurm's reason is of something else.
                reason = "TimeLimit" if state is JobState.TIMEOUT else ""
                row = replace(row, reason=reason)
            after = before.then(state, row, now_s)
            seen[job_id] = after
            if before.is_back(after.state, row):
                self._blame.suspect(job_id)
            if after.times > 1 or (not before.times and after.state is JobState.UNKNOWN):
                continue
            changes.append(after.change(before, self._followed[job_id], at))
            if after.state is JobState.NODE_FAILED:
                failed.append(job_id)
        dated_s = at.timestamp()
        self._blame.take(answer, failed, seen, self._followed, dated_s, commands)
        return seen, changes
