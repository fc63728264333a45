"""Remove the checkouts of jobs that were killed before they could do it themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from mtf_slurm._outcomes import Outcomes, task_of
from mtf_slurm.arrays import Job
from mtf_slurm.command import Commands
from mtf_slurm.git import checkout
from mtf_slurm.states import JobState

__all__ = ["sweep"]

# What was preempted, or lost its node, may come back by itself.
_OVER = frozenset(
    {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.TIMEOUT}
)


def sweep(
    commands: Commands,
    jobs: Iterable[Job],
    folders: Collection[Path],
    cleanup: str,
    *,
    are_replaced: bool = False,
) -> None:
    """Remove the checkouts of tasks that have ended; for who has the locks of their folders.

    Slurm is asked, if there are any, just before.

    Args:
        commands: What asks.
        jobs: Submissions.
        folders: Of experiments.
        cleanup: When a job removes its checkout: ``always``, ``success`` or ``never``.
        are_replaced: Whether others are submitted in their places.

    Raises:
        MtfSlurmError: If Slurm cannot be asked.
    """
    left: dict[Path, list[str]] = {}
    for job in jobs if cleanup != "never" else ():
        base, folder = job.base_id(), job.folder / "code"
        if base is None or not folder.is_dir():
            continue
        for job_id in job.ids(base).values():
            path = folder / task_of(job_id)
            if path.is_dir():
                left.setdefault(path, []).append(job_id)
    if not left:
        return
    outcomes = Outcomes(commands, {i for ids in left.values() for i in ids}, folders)
    for path, ids in left.items():
        states = {outcomes.state(i) for i in ids}
        comes_back = any(outcomes.sharing(i) or outcomes.is_others(i) for i in ids)
        are_over = all(s in _OVER or (are_replaced and s.is_final) for s in states)
        if are_over and not comes_back:
            status = int(states != {JobState.SUCCEEDED})
            with suppress(checkout.CheckoutError, OSError):
                checkout.remove(path, when=cleanup, status=status)
