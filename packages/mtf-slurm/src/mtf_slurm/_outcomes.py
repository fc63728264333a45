"""How jobs are, from what Slurm says and what jobs left behind.

Slurm knows tasks; of the experiments in them, and of exit statuses while accounting lags,
the files of `mtf_slurm.arrays` tell. What neither knows is ``unknown``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from mtf_slurm import arrays, query
from mtf_slurm.arrays import Job
from mtf_slurm.command import Commands
from mtf_slurm.experiments import NAME
from mtf_slurm.query import Known, Row
from mtf_slurm.states import JobState, from_exit_status

__all__ = ["Outcomes", "task_of"]


def task_of(job_id: str) -> str:
    """Return the id that Slurm knows.

    >>> task_of("12_3.1")
    '12_3'
    """
    return job_id.partition(".")[0]


class Outcomes:
    """What is known of some jobs at one moment.

    Args:
        commands: Asks Slurm, once.
        job_ids: Of the jobs; what can be none is unknown.
        folders: Of experiments, to be searched for jobs that Slurm does not know.
        known: What Slurm has said already; it is not asked then.

    Raises:
        SchedulerUnreachableError: If Slurm cannot be asked.
        SchedulerCommandError: If it refuses to answer.
        UnreadableReplyError: If its answer cannot be parsed.
    """

    def __init__(
        self,
        commands: Commands,
        job_ids: Sequence[str],
        folders: Iterable[Path],
        *,
        known: Known | None = None,
    ) -> None:
        if known is None:
            known = query.rows(commands, job_ids)
        self._rows: Mapping[str, Row] = known.rows
        self._is_whole = known.is_whole
        self._siblings = {
            job_id.partition("_")[0]: row for job_id, row in known.rows.items()
        }
        self._folders = tuple(folders)
        self._names: dict[Job, dict[str, str]] = {}
        self._jobs: dict[str, Job | None] = {}

    def state(self, job_id: str) -> JobState:
        """Return how a job is."""
        base = query.base_of(job_id)
        if base is None:
            return JobState.UNKNOWN
        row = self._rows.get(task_of(job_id))
        if row is None:
            return self._without_row(base, job_id)
        if "." in job_id:
            status = self._exit_status(self._job_at(row.folder), base, job_id)
            if status is not None:
                return from_exit_status(status)
            # One that has no end yet waits for those before it, or runs.
            return JobState.UNKNOWN if row.state is JobState.SUCCEEDED else row.state
        if row.state is JobState.FAILED and not row.has_exit_code:
            status = self._exit_status(self._job_at(row.folder), base, job_id)
            return from_exit_status(status) if status else row.state
        return row.state

    def _without_row(self, base: str, job_id: str) -> JobState:
        """Return how a job is that Slurm does not show."""
        sibling = self._siblings.get(base)
        job = self._job_at(sibling.folder) if sibling else self._known.get(base)
        status = self._exit_status(job, base, job_id)
        if status is not None:
            return from_exit_status(status)
        is_task = job is not None and job_id in self._names_of(job, base)
        if sibling is not None and is_task and self._is_whole:
            # One that began has a row, and so has one that waits. What was cancelled
            # before it began disappears from its array without a trace.
            return JobState.CANCELLED
        return JobState.UNKNOWN

    def sharing(self, job_id: str) -> list[str]:
        """Return the ids of all experiments that the same task runs."""
        base = query.base_of(job_id)
        row = self._rows.get(task_of(job_id))
        job = None
        if base is not None:
            job = self._known.get(base) if row is None else self._job_at(row.folder)
        if base is None or job is None:
            return [job_id]
        return [i for i in self._names_of(job, base) if task_of(i) == task_of(job_id)]

    @cached_property
    def _known(self) -> dict[str, Job]:
        jobs = (job for folder in self._folders for job in arrays.jobs_in(folder))
        return {base: job for job in jobs if (base := job.base_id())}

    def _job_at(self, folder: str) -> Job | None:
        if folder not in self._jobs:
            self._jobs[folder] = arrays.job_at(Path(folder))
        return self._jobs[folder]

    def _names_of(self, job: Job, base: str) -> dict[str, str]:
        if job not in self._names:
            self._names[job] = {i: name for name, i in job.ids(base).items()}
        return self._names[job]

    def _exit_status(self, job: Job | None, base: str, job_id: str) -> int | None:
        """Return the exit status that an experiment left; None for none."""
        name = self._names_of(job, base).get(job_id) if job else None
        if job is None or name is None or not NAME.fullmatch(name):
            return None
        path = job.experiments_folder / name / f"{job_id}.exit"
        try:
            return int(path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
