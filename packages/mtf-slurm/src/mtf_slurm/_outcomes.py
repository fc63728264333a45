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
from mtf_slurm.states import JobState

__all__ = ["Outcomes", "task_of"]

# States of which what the experiment left says more.
_TOLD_BY_EXIT = frozenset({JobState.FAILED, JobState.PREEMPTED})
_ACTIVE = frozenset({JobState.PENDING, JobState.RUNNING})
_DONE = frozenset({JobState.SUCCEEDED, JobState.FAILED})


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
        job_ids: Iterable[str],
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
        self._tasks: dict[Job, dict[str, list[str]]] = {}
        self._jobs: dict[str, Job | None] = {}

    def state(self, job_id: str) -> JobState:
        """Return how a job is."""
        base = query.base_of(job_id)
        if base is None:
            return JobState.UNKNOWN
        job, is_shown = self._owner(base)
        row = self.row(job_id)
        left = self._left(job, base, job_id)
        if row is None:
            return left or self._without_row(job if is_shown else None, base, job_id)
        if "." in job_id:
            return self._of_several(job, base, job_id, row)
        if row.state in _TOLD_BY_EXIT:
            return left or row.state
        return row.state

    def _of_several(self, job: Job | None, base: str, job_id: str, row: Row) -> JobState:
        """Return how one of several in a task is, of which Slurm shows *row*."""
        left = self._left(job, base, job_id)
        # What asked to be continued runs again with its task, as what was requeued does.
        if left is not None and (row.state not in _ACTIVE or self.has_ended(job_id)):
            return left
        if row.state in _TOLD_BY_EXIT:
            return self._broke_off(job, base, job_id) or row.state
        # One that has no end yet waits for those before it, or runs.
        return JobState.UNKNOWN if row.state is JobState.SUCCEEDED else row.state

    def has_ended(self, job_id: str) -> bool:
        """Tell whether an experiment left that it ended by itself, and is not to run again."""
        known = self.experiment(job_id)
        if known is None or known[0].left(known[1], job_id) not in _DONE:
            return False
        return not known[0].is_requeued(known[1], job_id)

    def row(self, job_id: str) -> Row | None:
        """Return what Slurm shows of a job itself, and of no other with its id."""
        base = query.base_of(job_id)
        if base is None or not self._owner(base)[1]:
            return None
        return self._rows.get(task_of(job_id))

    def experiment(self, job_id: str) -> tuple[Job, str] | None:
        """Return the submission that a job is of, and the experiment that it runs."""
        base = query.base_of(job_id)
        job = None if base is None else self._owner(base)[0]
        if job is None or base is None:
            return None
        name = self._names_of(job, base).get(job_id)
        return None if name is None else (job, name)

    def files(self, job_id: str) -> dict[str, Path]:
        """Return where the files lie of all that the same task runs, without their ends.

        Of a whole array, those of all its tasks.
        """
        base = query.base_of(job_id)
        job = None if base is None else self._owner(base)[0]
        if job is None or base is None:
            return {}
        names = self._names_of(job, base)
        ids = self._same_task(job, base, job_id) or (names if job_id == base else ())
        return {i: job.experiments_folder / names[i] / i for i in ids}

    def is_others(self, job_id: str) -> bool:
        """Tell whether Slurm has given the id of a job that it lost to another's."""
        base = query.base_of(job_id)
        if base is None or base not in self._siblings:
            return False
        return not self._owner(base)[1]

    def sharing(self, job_id: str) -> list[str]:
        """Return the ids of all that the same task runs, or will when it comes back."""
        base = query.base_of(job_id)
        job = None if base is None else self._owner(base)[0]
        if base is None or job is None:
            return [job_id]
        names, same = self._names_of(job, base), self._same_task(job, base, job_id)
        comes_back = any(job.asks_to_come_back(names[i], i) for i in same)
        return [
            i
            for i in same
            if not self.state(i).is_final or (comes_back and not self.has_ended(i))
        ]

    def _owner(self, base: str) -> tuple[Job | None, bool]:
        """Return whose submission a job is, and whether what Slurm shows is that.

        A controller that restarts without its last state gives ids anew: what it shows under
        one may be another's. The folder where it runs tells.
        """
        row = self._siblings.get(base)
        if row is None:
            return self._known.get(base), False
        there = self._job_at(row.folder)
        is_here = there is not None and there.experiments_folder in self._folders
        if there is not None and is_here and there.base_id() == base:
            return there, True
        own = self._known.get(base)
        if own is None:
            return there, True  # of no folder that is known here: as Slurm says
        return own, not row.folder or (there is not None and _is_moved(there, own))

    def _without_row(self, job: Job | None, base: str, job_id: str) -> JobState:
        """Return how a task is that Slurm does not show, though it shows others of *job*."""
        name = self._names_of(job, base).get(job_id) if job else None
        if job is None or name is None or not self._is_whole:
            return JobState.UNKNOWN
        # One that began has output, and in time a row. What was cancelled before it began
        # disappears from its array without a trace.
        began = (job.experiments_folder / name / f"{job_id}.out").exists()
        return JobState.UNKNOWN if began else JobState.CANCELLED

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

    def _same_task(self, job: Job, base: str, job_id: str) -> Sequence[str]:
        """Return the ids of all experiments that the same task runs."""
        if job not in self._tasks:
            found: dict[str, list[str]] = {}
            for each in self._names_of(job, base):
                found.setdefault(task_of(each), []).append(each)
            self._tasks[job] = found
        return self._tasks[job].get(task_of(job_id), [])

    def _left(self, job: Job | None, base: str, job_id: str) -> JobState | None:
        """Return how an experiment says that it ended; None where it does not."""
        name = self._names_of(job, base).get(job_id) if job else None
        if job is None or name is None or not NAME.fullmatch(name):
            return None
        return job.left(name, job_id)

    def _broke_off(self, job: Job | None, base: str, job_id: str) -> JobState | None:
        """Return how the one ended in a task that asked to be continued, before its end."""
        same = self._same_task(job, base, job_id) if job else ()
        ends = (self._left(job, base, i) for i in same)
        return next((end for end in ends if end not in {None, *_DONE}), None)


def _is_moved(there: Job, own: Job) -> bool:
    """Tell whether a submission is the same at another place, and no copy of it."""
    if there.folder.name != own.folder.name:
        return False
    return not there.folder.is_dir() or there.folder.samefile(own.folder)
