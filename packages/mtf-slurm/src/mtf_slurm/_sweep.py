"""Remove the checkouts of jobs that were killed before they could do it themselves."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from mtf_slurm._outcomes import task_of
from mtf_slurm.arrays import Job
from mtf_slurm.git import checkout
from mtf_slurm.states import JobState

__all__ = ["sweep"]


def sweep(job: Job, states: Mapping[str, JobState], cleanup: str) -> None:
    """Remove the checkouts of a submission's tasks that have ended.

    Args:
        job: The submission.
        states: By job, of those that are known; a task with others is left alone.
        cleanup: When a job removes its checkout: ``always``, ``success`` or ``never``.
    """
    base, folder = job.base_id(), job.folder / "code"
    if base is None or not folder.is_dir():
        return
    by_task: dict[str, list[JobState]] = {}
    for job_id in job.ids(base).values():
        state = states.get(job_id, JobState.UNKNOWN)
        by_task.setdefault(task_of(job_id), []).append(state)
    with suppress(OSError):
        for path in [*folder.iterdir()]:
            own = by_task.get(path.name, [JobState.UNKNOWN])
            if all(state.is_final for state in own):
                status = int({*own} != {JobState.SUCCEEDED})
                with suppress(checkout.CheckoutError):
                    checkout.remove(path, when=cleanup, status=status)
