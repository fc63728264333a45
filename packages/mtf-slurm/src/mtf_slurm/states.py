"""Slurm's words for how a job is, and ours.

`JobState` has the words that every launcher of this framework uses. Nothing here runs a
command.

Source: Slurm 22.05 to 24.05, ``squeue(1)``, JOB STATE CODES; ``sacct(1)``.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["EXIT_TO_BE_CONTINUED", "JobState", "from_exit_status", "from_slurm"]

EXIT_TO_BE_CONTINUED = 75
"""Exit status of an experiment that saved and asks to be run again: EX_TEMPFAIL."""


class JobState(StrEnum):
    """How a job is."""

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


_WORDS = {
    JobState.PENDING: (
        *("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD"),
        *("RESV_DEL_HOLD", "SPECIAL_EXIT", "POWER_UP_NODE", "EXPEDITING"),
    ),
    # What is completing has processes left; how it ended is not said yet.
    JobState.RUNNING: (
        *("RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"),
        *("SUSPENDED", "UPDATE_DB"),
    ),
    JobState.SUCCEEDED: ("COMPLETED",),
    JobState.FAILED: ("FAILED", "OUT_OF_MEMORY"),
    JobState.CANCELLED: ("CANCELLED", "REVOKED"),
    JobState.PREEMPTED: ("PREEMPTED",),
    JobState.TIMEOUT: ("TIMEOUT", "DEADLINE"),
    JobState.NODE_FAILED: ("NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL"),
}
_STATES = {word: state for state, words in _WORDS.items() for word in words}


def from_slurm(text: str, exit_code: str = "") -> JobState:
    """Return our word for Slurm's.

    Args:
        text: As ``squeue`` and ``sacct`` have it: ``CANCELLED by 1000``, ``COMPLETED+``.
        exit_code: As ``sacct`` has it, ``75:0``: status and signal. A job that failed with
            the status of one that asks to be continued is ``preempted``.

    >>> from_slurm("CANCELLED by 1000"), from_slurm("FAILED", "75:0"), from_slurm("?")
    (<JobState.CANCELLED: 'cancelled'>, <JobState.PREEMPTED: 'preempted'>, \
<JobState.UNKNOWN: 'unknown'>)
    """
    word = text.strip().partition(" ")[0].rstrip("+").upper()
    state = _STATES.get(word, JobState.UNKNOWN)
    if word == "FAILED" and exit_code.strip() == f"{EXIT_TO_BE_CONTINUED}:0":
        return JobState.PREEMPTED
    return state


def from_exit_status(status: int) -> JobState:
    """Return the word for how an experiment's own process ended.

    >>> from_exit_status(0), from_exit_status(3)
    (<JobState.SUCCEEDED: 'succeeded'>, <JobState.FAILED: 'failed'>)
    """
    if status == 0:
        return JobState.SUCCEEDED
    return JobState.PREEMPTED if status == EXIT_TO_BE_CONTINUED else JobState.FAILED
