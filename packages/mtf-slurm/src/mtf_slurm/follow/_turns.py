"""Whose turn it is: what of a schedule has ended, cannot run any more, or may go now.

Nothing here asks Slurm or touches a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mtf_slurm import query
from mtf_slurm.follow._schedule_file import Entry
from mtf_slurm.follow.changes import JobStatus
from mtf_slurm.states import JobState

__all__ = ["Quota", "Turns"]

_RUN_AGAIN = frozenset({JobState.PREEMPTED, JobState.NODE_FAILED})


@dataclass(frozen=True, kw_only=True, slots=True)
class Quota:
    """How many jobs of a kind may wait or run in Slurm at once.

    Attributes:
        max_jobs: So many.
        name: Of experiments that count, as a pattern: ``sweep-*``.
        user: Whose count; None for all. It is what `ExperimentSchedule.add` was told.
        partition: Whose jobs count, as configs name it; None for all.
    """

    max_jobs: int
    name: str = "*"
    user: str | None = None
    partition: str | None = None

    def __post_init__(self) -> None:
        if self.max_jobs < 1:
            msg = f"max_jobs is {self.max_jobs}: with less than 1 nothing would ever run"
            raise ValueError(msg)

    def counts(self, entry: Entry) -> bool:
        """Return whether an experiment takes a place."""
        return (
            fnmatchcase(entry.experiment_name, self.name)
            and self.user in {None, entry.user}
            and self.partition in {None, entry.partition}
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """A schedule at one moment.

    Attributes:
        entries: By experiment.
        ids: Of all jobs that an experiment has had, the last one last.
        statuses: By job.
        quotas: All of which hold.
        max_resubmissions: Of an experiment that did not come back by itself.
    """

    entries: Mapping[str, Entry]
    ids: Mapping[str, Sequence[str]]
    statuses: Mapping[str, JobStatus]
    quotas: Sequence[Quota] = ()
    max_resubmissions: int = 0

    def note(self) -> None:
        """Note how jobs ended; that of an experiment that is to run again has not."""
        for name in self.ids:
            entry = self.entries.get(name)
            if entry is None:
                continue
            if entry.ended is not None and self._is_open_again(entry):
                entry.ended, entry.job_id, entry.refusals = None, "", 0
            status = self._over(name)
            goes_on = self._is_let_go(name) or self._runs_again(name)
            if entry.ended is None and status is not None and not goes_on:
                entry.ended, entry.job_id = status.state, status.job_id
                entry.refusals = 0
        for name, entry in self.entries.items():
            was_cancelled = entry.ended is JobState.CANCELLED and bool(entry.job_id)
            if was_cancelled and self._never_began(name) and self._in_vain(entry):
                entry.job_id = ""  # Slurm gave it up, as `give_up` would have

    def _is_open_again(self, entry: Entry) -> bool:
        """Return whether the job that an experiment ended with says something else now."""
        is_given_up = entry.ended is JobState.CANCELLED and not entry.job_id
        if is_given_up:
            return False
        if entry.job_id != self.ids[entry.experiment_name][-1]:
            return True  # somebody has submitted it again
        now = self._status(entry.experiment_name)
        if now is None or now.state is JobState.UNKNOWN:
            return False
        if entry.refusals:  # it ended without a job, after one that was to run again
            return now.state not in {*_RUN_AGAIN, JobState.CANCELLED}
        return now.state is not entry.ended

    def take_up(self) -> None:
        """Let go on what was given up, if what it waits for may come true after all."""
        has_more = True
        while has_more:
            has_more = False
            for name, entry in self.entries.items():
                was_given_up = entry.ended is JobState.CANCELLED and not entry.job_id
                if was_given_up and not self._in_vain(entry):
                    entry.ended, has_more = None, True
                    entry.job_id = self.ids[name][-1] if name in self.ids else ""

    def give_up(self) -> Iterator[tuple[Entry, str]]:
        """Cancel what waits for what cannot come true any more; yield it, and why."""
        has_more = True
        while has_more:
            has_more = False
            for entry in self.entries.values():
                if entry.ended is not None or self._is_active(entry.experiment_name):
                    continue
                if why := self._in_vain(entry):
                    entry.ended, has_more = JobState.CANCELLED, True
                    yield entry, why

    def _in_vain(self, entry: Entry) -> str:
        """Return why an experiment waits in vain; empty if it does not."""
        for other, kind in entry.after.items():
            state = self.entries[other].ended
            if state is not None and not _is_true(kind, state):
                return f"it waits for {other} ({kind}), which is {state}"
        return ""

    def is_left(self) -> bool:
        """Return whether something has not ended, or may have come back since it did."""
        return any(
            entry.ended is None or self._is_hearsay(name)
            for name, entry in self.entries.items()
        )

    def _is_hearsay(self, name: str) -> bool:
        """Return whether an end is what others heard, some time ago."""
        status = self._status(name)
        if status is None or status.is_stale:  # nobody answers
            return False
        return status.state.is_final and not status.is_over

    def choose(self) -> list[Entry]:
        """Return what may be submitted now: for what it waits has a job, or gets one."""
        active = {name for name in self.entries if self._is_active(name)}
        taken = [sum(q.counts(self.entries[n]) for n in active) for q in self.quotas]
        left = [
            entry
            for name, entry in self.entries.items()
            if entry.ended is None and name not in active
        ]
        left.sort(key=lambda entry: -entry.priority)
        awaitable = {name for name in active if self._is_awaitable(name)}
        chosen: list[Entry] = []
        has_more = True
        while has_more:
            held = []
            for entry in left:
                mine = [at for at, quota in enumerate(self.quotas) if quota.counts(entry)]
                waits = any(
                    self.entries[other].ended is None and other not in awaitable
                    for other in entry.after
                )
                if waits or any(taken[at] >= self.quotas[at].max_jobs for at in mine):
                    held.append(entry)
                    continue
                for at in mine:
                    taken[at] += 1
                chosen.append(entry)
                awaitable.add(entry.experiment_name)
            has_more = len(held) < len(left)
            left = held
        return chosen

    def _is_active(self, name: str) -> bool:
        """Return whether an experiment has a job that may wait or run."""
        has_ended = self.entries[name].ended is not None
        return name in self.ids and not has_ended and self._over(name) is None

    def _is_awaitable(self, name: str) -> bool:
        """Return whether Slurm can let others wait for the job of an experiment."""
        if "." in self.ids[name][-1]:  # one of several in a task, which it does not know
            return False
        status = self._status(name)
        return status is None or not status.state.is_final

    def _status(self, name: str) -> JobStatus | None:
        """Return how the last job of an experiment is, if that is known."""
        return self.statuses.get(self.ids[name][-1]) if name in self.ids else None

    def _is_let_go(self, name: str) -> bool:
        """Return whether an experiment is to get a job after one that never began."""
        entry = self.entries[name]
        is_last = entry.ended is None and entry.job_id == self.ids[name][-1]
        return is_last and self._never_began(name)

    def _never_began(self, name: str) -> bool:
        """Return whether the job of an experiment was cancelled before it had a node."""
        status = self._over(name)
        is_cancelled = status is not None and status.state is JobState.CANCELLED
        return is_cancelled and status is not None and not status.node

    def _over(self, name: str) -> JobStatus | None:
        """Return how the last job of an experiment ended; None if it did not."""
        status = self._status(name)
        return status if status is not None and status.is_over else None

    def _runs_again(self, name: str) -> bool:
        """Return whether an experiment whose job is over is to be submitted again."""
        status = self._over(name)
        if status is None or len(self.ids[name]) > self.max_resubmissions:
            return False
        if not self._never_began(name):
            return status.state in _RUN_AGAIN
        # Slurm cancels what waits for one that ended early, and knows not that it goes on.
        others = self.entries[name].after
        return any(self._is_later(o, name) or self._goes_on(o) for o in others)

    def _is_later(self, other: str, name: str) -> bool:
        """Return whether *other* was submitted again since *name* was."""
        if other not in self.ids:
            return False
        theirs, own = (query.base_of(self.ids[n][-1]) or "0" for n in (other, name))
        return int(theirs) > int(own)

    def _goes_on(self, name: str) -> bool:
        status = self._status(name)
        return (
            self.entries[name].ended is None
            and status is not None
            and status.state in _RUN_AGAIN
        )


def _is_true(kind: str, state: JobState) -> bool:
    """Return whether what is waited for is true of what has ended so."""
    if kind == "afterany":
        return True
    if state is JobState.UNKNOWN:
        return False
    return (state is JobState.SUCCEEDED) == (kind == "afterok")
