"""How a job is, and what happened to it: the words in which followers speak."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mtf_slurm.follow._jobs import Followed
from mtf_slurm.follow.reasons import Explanation, explain
from mtf_slurm.query import Row
from mtf_slurm.states import JobState

__all__ = ["NOT_LAUNCHED", "JobStatus", "Seen", "StateChange"]

NOT_LAUNCHED = "launch_failed_requeued_held"
"""Slurm's reason for holding a job that its node could not start."""

# In these, a job may be for a moment before it comes back.
_MAY_COME_BACK = frozenset({JobState.PREEMPTED, JobState.TIMEOUT, JobState.NODE_FAILED})


@dataclass(frozen=True, kw_only=True, slots=True)
class StateChange:
    """What happened to a job.

    Attributes:
        job_id: Which.
        experiment_name: What it runs; empty if that is not known.
        before: How it was; ``unknown`` when it is seen for the first time.
        after: How it is. The same as *before* if it ended, came back and runs again.
        at: When that was seen, in UTC.
        reason: In words; may be empty.
        node: Where it runs or ran, as Slurm writes it; may be empty.
    """

    job_id: str
    experiment_name: str
    before: JobState
    after: JobState
    at: datetime
    reason: str
    node: str

    def __str__(self) -> str:
        who = f"{self.experiment_name} ({self.job_id})"
        where = f" on {self.node}" if self.node else ""
        why = f": {self.reason}" if self.reason else ""
        return f"{who if self.experiment_name else self.job_id} {self.after}{where}{why}"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStatus:
    """How a job was when Slurm last told of it.

    Attributes:
        job_id: Which.
        experiment_name: What it runs; empty if that is not known.
        state: How it is.
        why: Why it waits or ended so, as far as Slurm says.
        node: Where it runs or ran, as Slurm writes it; may be empty.
        start: When it began or, while it waits, is expected to; None if that is not said.
        is_stale: Whether the last question to Slurm got no answer.
        is_over: Whether it has ended for good or, ``unknown``, is given up.
    """

    job_id: str
    experiment_name: str
    state: JobState
    why: Explanation
    node: str
    start: datetime | None
    is_stale: bool
    is_over: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a job.

    Attributes:
        state: How it was when Slurm last told of it.
        row: What it told; None if it never showed the job.
        times: In how many answers it was so.
        since_s: When it was so for the first time, by the follower's clock.
    """

    state: JobState = JobState.UNKNOWN
    row: Row | None = None
    times: int = 0
    since_s: float = 0.0

    def is_over(self, now_s: float, unknown_s: float) -> bool:
        """Return whether it is not to be asked for any more."""
        if self.state is JobState.UNKNOWN:
            return self.times > 0 and now_s - self.since_s >= unknown_s
        return self.state.is_final and self.times > (self.state in _MAY_COME_BACK)

    def is_back(self, state: JobState, row: Row | None) -> bool:
        """Return whether it ended and came back since, if it is like this now."""
        if row is None or self.row is None:
            return False
        has_begun = self.state is JobState.RUNNING or self.state.is_final
        if state is JobState.PENDING:
            return has_begun or row.reason == NOT_LAUNCHED != self.row.reason
        if state is not JobState.RUNNING or row.start_s is None:
            return False
        return has_begun and self.row.start_s not in {None, row.start_s}

    def then(self, state: JobState, row: Row | None, now_s: float) -> Seen:
        """Return what is known when another answer has come."""
        if self.times and state is self.state and not self.is_back(state, row):
            return replace(self, row=row, times=self.times + 1)
        return Seen(state=state, row=row, times=1, since_s=now_s)

    def status(self, job: Followed, *, is_stale: bool, is_over: bool) -> JobStatus:
        """Return how the job is."""
        start_s = self.row.start_s if self.row else None
        return JobStatus(
            job_id=job.job_id,
            experiment_name=job.experiment_name,
            state=self.state,
            why=explain(self.row.reason if self.row else ""),
            node=self.row.nodes if self.row else "",
            start=None if start_s is None else datetime.fromtimestamp(start_s, UTC),
            is_stale=is_stale,
            is_over=is_over,
        )

    def change(self, before: Seen, job: Followed, at: datetime) -> StateChange:
        """Return what happened between two answers."""
        why = explain(self.row.reason if self.row else "")
        is_back = before.is_back(self.state, self.row)
        said = ["it came back" if is_back else "", str(why)]
        return StateChange(
            job_id=job.job_id,
            experiment_name=job.experiment_name,
            before=before.state,
            after=self.state,
            at=at,
            reason="; ".join(filter(None, said)),
            node=self.row.nodes if self.row else "",
        )
