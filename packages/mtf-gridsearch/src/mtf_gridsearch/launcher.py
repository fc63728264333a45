"""What a search asks of the place where experiments run.

A launcher starts experiments, tells how they are and ends them. Local processes, Slurm
and Kubernetes implement it and use the same words; `mtf_gridsearch.testing` has the suite
that each must pass. Nothing here knows how experiments are named or chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Experiment", "JobState", "Launcher", "Outcome", "Submission", "Submitted"]


class JobState(StrEnum):
    """How a job is. A launcher may return these or plain texts equal to them."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    TIMEOUT = "timeout"
    NODE_FAILED = "node_failed"
    UNKNOWN = "unknown"

    @property
    def is_final(self) -> bool:
        """Whether the job will not change any more. Nothing is known of `UNKNOWN`."""
        return self not in {JobState.PENDING, JobState.RUNNING, JobState.UNKNOWN}


class Experiment(Protocol):
    """What is run once: named, and dumped to plain values."""

    @property
    def experiment_name(self) -> str:
        """Matches ``[A-Za-z0-9][A-Za-z0-9._-]{0,127}``."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return all values; with ``mode="json"`` such as JSON has."""


class Submitted(Protocol):
    """What became of one experiment of a batch: a job, or the reason why not."""

    @property
    def experiment_name(self) -> str:
        """Whose."""

    @property
    def job_id(self) -> str | None:
        """The job's, unique for the launcher; None if it was not started."""

    @property
    def error(self) -> str | None:
        """Why it was not started; None if it was."""


class Outcome(Protocol):
    """What a launcher knows of how a job ended, besides its state; None where it does not."""

    @property
    def reason(self) -> str:
        """Why it failed; empty where there is nothing to say."""

    @property
    def wall_s(self) -> float | None:
        """How long it ran, in seconds."""

    @property
    def cpu_s(self) -> float | None:
        """What its processes used of all CPUs together, in seconds."""

    @property
    def max_rss_bytes(self) -> int | None:
        """The most memory that it held."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A `Submitted`, as this package's launcher makes it."""

    experiment_name: str
    job_id: str | None = None
    error: str | None = None


class Launcher(Protocol):
    """Starts experiments, tells how they are, ends them. Used by one thread.

    State lies where jobs run, not in the object: another object, in another process, gives
    the same answers.
    """

    @property
    def max_running(self) -> int | None:
        """How many jobs have a place at once; None where a queue takes any number."""

    @property
    def poll_interval_s(self) -> float:
        """How long to wait between two questions, in seconds."""

    def submit(
        self, experiments: Sequence[Experiment], *, folder: Path
    ) -> Iterable[Submitted]:
        """Start *experiments*, and return one entry for each, in order.

        ``folder/<experiment_name>/config.yaml`` is written already; that folder is where
        the experiment runs and leaves what it makes. An experiment that is pending or
        running there, or has succeeded, is not started again: its job's id is returned.
        One that cannot be started has an entry that says why, and touches no other.

        Raises:
            Exception: If nothing could be started at all.
        """

    def states(self, job_ids: Sequence[str]) -> Sequence[str]:
        """Return one state a job, in order; ``unknown`` for what it does not know."""

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Ask jobs to end, without waiting for them. What has ended stays as it is."""
