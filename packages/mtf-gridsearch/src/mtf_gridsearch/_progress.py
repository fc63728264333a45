"""How a run of a search goes: what its loop is told, what it knows, and what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mtf_gridsearch.launcher import JobState
from mtf_gridsearch.metrics_file import CurveReader
from mtf_gridsearch.records import ExperimentRecord, GridExperiment, Status

__all__ = [
    "NOT_STARTED",
    "PATIENCE_S",
    "UNKNOWN_GRACE_S",
    "Progress",
    "Running",
    "Settings",
    "View",
    "is_settled",
    "is_to_start",
]

NOT_STARTED = "could not be started"
"""How the reason begins of what the launcher refused; it is as it was before."""

UNKNOWN_GRACE_S = 60.0
PATIENCE_S = 600.0

_SETTLED = (Status.SUCCEEDED, Status.STOPPED)
_BROKEN = (Status.FAILED, Status.TIMEOUT)
_DONE = (*_SETTLED, *_BROKEN)


def is_to_start(status: Status, *, has_failed: bool, only: str | None) -> bool:
    """Tell whether a run starts an experiment of *status*, if nothing runs it.

    Args:
        status: How it is now.
        has_failed: Whether an attempt failed or ran out of time: a run of what failed goes
            on with what another such run left unfinished.
        only: ``"failed"`` for such a run.
    """
    if only == "failed":
        return status not in _SETTLED and (has_failed or status in _BROKEN)
    return status not in _DONE


def is_settled(status: Status) -> bool:
    """Tell whether an experiment of *status* is never started again."""
    return status in _SETTLED


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a loop behaves.

    Attributes:
        max_running: How many may run at once, besides what the launcher allows.
        retries: How often an experiment is started again in this run, by how it ended.
        unknown_grace_s: How long a launcher may know nothing of a job before that counts
            as its end, in seconds.
        patience_s: How long a launcher that worked before may fail to answer, in seconds.
    """

    max_running: int | None = None
    retries: Mapping[str, int] = field(default_factory=dict)
    unknown_grace_s: float = UNKNOWN_GRACE_S
    patience_s: float = PATIENCE_S


@dataclass(slots=True)
class Running:
    """One experiment that has a job which was not seen to have ended."""

    job_id: str
    reader: CurveReader
    experiment: GridExperiment[Any] | None  # None until the supply has handed it out
    since_s: float  # on the monotonic clock; when this loop began to watch it
    state: JobState = JobState.PENDING
    unknown_since_s: float | None = None
    is_cancelled: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What a view shows.

    Attributes:
        counts: Of all experiments that are planned, by status.
        total: How many there will be in all; None where that is not known.
        running: By name.
        ended: How many this loop saw end.
        elapsed_s: Since it began.
        has_ended: What ended since the last time.
    """

    counts: Mapping[Status, int]
    total: int | None
    running: Mapping[str, Running]
    ended: int
    elapsed_s: float
    has_ended: Sequence[ExperimentRecord]

    @property
    def num_done(self) -> int:
        """How many have ended in a way that starts no other attempt by itself."""
        return sum(self.counts.get(status, 0) for status in _DONE)

    @property
    def left_s(self) -> float | None:
        """How long it may take yet, at the pace so far; None where that is not known."""
        if self.total is None or not self.ended:
            return None
        left = max(self.total - self.num_done, len(self.running))
        return left * self.elapsed_s / self.ended


class View(Protocol):
    """Shows how a search goes."""

    def update(self, progress: Progress) -> None:
        """Show the state after one look."""

    def note(self, text: str) -> None:
        """Tell the user something that matters now."""
