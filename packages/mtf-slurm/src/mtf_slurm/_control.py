"""Look jobs up, end them, bring them back: in few commands however many they are."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from mtf_slurm import _once, arrays, query
from mtf_slurm._outcomes import Outcomes, task_of
from mtf_slurm.command import Commands
from mtf_slurm.errors import SchedulerCommandError, SubmissionError
from mtf_slurm.git.provenance import SUBMISSION_NAME
from mtf_slurm.states import JobState

__all__ = [
    "MAY_COME_BACK",
    "branches_in_use",
    "bring_back",
    "cancel",
    "latest",
    "requeue",
]

MAY_COME_BACK = frozenset({JobState.PREEMPTED, JobState.TIMEOUT, JobState.FAILED})
"""States of jobs that may have left a mark to be brought back."""

_NUM_CANCELLED = 200
_NUM_REQUEUED = 100
_UNKNOWN = "0"  # stands for the id of a job whose answer was lost
# What scancel says of jobs that are to be passed over.
_OVER = re.compile("invalid job id|already completing|already finished", re.IGNORECASE)


def latest(
    commands: Commands, folder: Path, names: Sequence[str], *, lock_timeout_s: float
) -> list[str | None]:
    """Return the last job of each experiment in *folder*; None where none is known.

    Raises:
        MtfSlurmError: If Slurm cannot be asked, or another submits for too long.
    """
    if not arrays.jobs_in(folder):
        return [None] * len(names)
    with _once.lock(folder, timeout_s=lock_timeout_s):
        jobs = _once.recover(commands, arrays.jobs_in(folder))
    last = arrays.last_of(jobs, set(names))
    ids = {name: job_id for name, (job_id, _) in last.items()}
    outcomes = Outcomes(commands, [*ids.values()], (folder,))
    known = {n: i for n, i in ids.items() if outcomes.state(i) is not JobState.UNKNOWN}
    return [known.get(name) for name in names]


def cancel(commands: Commands, job_ids: Sequence[str], folders: Iterable[Path]) -> None:
    """Ask jobs to end, without waiting. What has ended, or is unknown, is passed over.

    Args:
        commands: What asks.
        job_ids: Which.
        folders: Of experiments, to be searched for those that Slurm does not know.

    Raises:
        SubmissionError: If an experiment shares its task with others that are to go on.
        SchedulerUnreachableError: If Slurm cannot be asked.
        SchedulerCommandError: If it refuses.
    """
    known = dict.fromkeys(job_id for job_id in job_ids if query.base_of(job_id))
    packed = [job_id for job_id in known if "." in job_id]
    if packed:
        outcomes = Outcomes(commands, packed, folders)
        for job_id in packed:
            if others := [i for i in outcomes.sharing(job_id) if i not in known]:
                reason = (
                    f"its task runs {', '.join(others)}, too: cancel all of them, or none"
                )
                raise SubmissionError(job_id, reason)
    tasks = arrays.ranges(dict.fromkeys(map(task_of, known)))
    refusals = []
    for some in _parted(tasks, _NUM_CANCELLED):
        try:
            commands.run(("scancel", *some))
        except SchedulerCommandError as error:
            if not all(map(_OVER.search, error.stderr.splitlines())):
                refusals.append(error)
    if refusals:
        raise refusals[0]


def requeue(commands: Commands, job_ids: Sequence[str], folders: Iterable[Path]) -> None:
    """Let jobs run again, from their checkpoints, under the same ids.

    Args:
        commands: What asks.
        job_ids: Which.
        folders: Of experiments, where the files of jobs lie.

    Raises:
        SubmissionError: If an id is none.
        SchedulerUnreachableError: If Slurm cannot be asked.
        SchedulerCommandError: If it refuses: after some minutes it forgets what has ended,
            and the experiment is to be submitted again.
    """
    for job_id in job_ids:
        if query.base_of(job_id) is None:
            raise SubmissionError(job_id, "this is no job's id")
    packed = [job_id for job_id in job_ids if "." in job_id]
    for path in _files(folders, packed).values():
        path.with_name(f"{path.name}.exit").unlink(missing_ok=True)  # else it stays ended
    tasks = list(dict.fromkeys(map(task_of, job_ids)))
    for some in _parted(tasks, _NUM_REQUEUED):
        commands.run(("scontrol", "requeue", ",".join(some)))


def bring_back(
    commands: Commands, job_ids: Collection[str], folders: Iterable[Path]
) -> list[str]:
    """Requeue the jobs that could not do it where they ran; return their ids.

    Such a job has left a mark. It is taken away by who requeues it, so one does.

    Args:
        commands: What asks.
        job_ids: Of jobs that have ended.
        folders: Of experiments, where the files of jobs lie.

    Raises:
        SchedulerUnreachableError: If Slurm cannot be asked.
    """
    back = []
    for job_id, path in _files(folders, job_ids).items():
        mark = path.with_name(f"{path.name}.again")
        taken = path.with_name(f".{path.name}.again")
        try:
            mark.replace(taken)
        except FileNotFoundError:
            continue
        try:
            commands.run(("scontrol", "requeue", task_of(job_id)))
        except SchedulerCommandError:
            continue  # it has forgotten the job: another submission goes on
        except BaseException:
            taken.replace(mark)
            raise
        finally:
            taken.unlink(missing_ok=True)
        back.append(job_id)
    return back


def branches_in_use(commands: Commands, folders: Collection[Path]) -> set[str]:
    """Return the branches of those experiments whose jobs have not ended.

    Args:
        commands: What asks how jobs are.
        folders: Of experiments.

    Raises:
        MtfSlurmError: If Slurm cannot be asked.
    """
    files: dict[str, Path] = {}
    for folder in folders:
        for job in arrays.jobs_in(folder):
            files |= job.files(job.base_id() or _UNKNOWN)
    outcomes = Outcomes(commands, [i for i in files if query.base_of(i)], folders)
    live = {path.parent for i, path in files.items() if not outcomes.state(i).is_final}
    branches = set()
    for folder in live:
        with suppress(OSError, ValueError, LookupError, TypeError):
            said = (folder / SUBMISSION_NAME).read_text(encoding="utf-8")
            branches.add(str(json.loads(said)["branch"]))
    return branches


def _files(folders: Iterable[Path], job_ids: Iterable[str]) -> dict[str, Path]:
    """Return where the files of jobs lie, without their ends."""
    wanted = set(job_ids)
    found: dict[str, Path] = {}
    for folder in folders if wanted else ():
        for job in arrays.jobs_in(folder):
            if base := job.base_id():
                found |= {i: p for i, p in job.files(base).items() if i in wanted}
    return found


def _parted(items: Sequence[str], size: int) -> list[Sequence[str]]:
    return [items[at : at + size] for at in range(0, len(items), size)]
