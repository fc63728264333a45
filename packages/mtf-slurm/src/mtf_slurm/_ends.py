"""Why jobs failed and what they used, from what they left and from accounting.

An experiment that ended by itself left its exit status. Of one that never began, because the
script before it failed or its code could not be checked out, Slurm says the status, and what
was written tells why: in the experiment's own ``.err`` for a job of one; else in the
submission's ``slurm.log``, which all tasks of an array share. There only the lines that name
the task are of it for certain.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mtf_slurm._outcomes import Outcomes, task_of
from mtf_slurm.arrays import Job
from mtf_slurm.command import Commands
from mtf_slurm.errors import MtfSlurmError
from mtf_slurm.follow.efficiency import Efficiency, efficiency
from mtf_slurm.states import JobState

__all__ = ["End", "ends"]

_TAIL_BYTES = 64 * 1024
_REASON_CHARS = 600
_SIGNALLED = range(129, 193)  # a shell's status: 128 and the signal's number
_NO_MEMORY = "OUT_OF_MEMORY"
_PATIENCE_S = 15.0  # whoever asks has other things to do
_LOG = "slurm.log"
# Of Slurm and of task.sh about what they ran, and lines without any words.
_NOISE = re.compile(r"(?:srun|slurmstepd|slurmd|mtf-slurm)(?:[-\[]\S+)?: |[\W_]*$")
# What task.sh says of a run after which another comes.
_COMES_BACK = re.compile(r"(?:cannot ask|asked) to come back")
_WHY = {
    JobState.CANCELLED: "it was cancelled",
    JobState.PREEMPTED: "it asked to be continued, or was preempted, and did not come back",
    JobState.TIMEOUT: "it reached its time limit, or the warning before it (signal_s)",
}


class End(NamedTuple):
    """How a job ended; None where it is not known, or not accounted.

    Attributes:
        reason: Why it failed; empty where there is nothing to say.
        wall_s: How long it ran, in seconds; of one that came back, the last time.
        cpu_s: What its processes used of all CPUs together, in seconds.
        max_rss_bytes: The most memory that one of its steps held.
    """

    reason: str = ""
    wall_s: float | None = None
    cpu_s: float | None = None
    max_rss_bytes: int | None = None


def ends(
    commands: Commands, job_ids: Sequence[str], folders: Iterable[Path]
) -> list[End]:
    """Return how jobs ended, in order, as far as Slurm answers; each is asked for once.

    What several in one task used is not known of each.

    Args:
        commands: What asks.
        job_ids: Which.
        folders: Of experiments, where the files of jobs lie.
    """
    once = commands.within(_PATIENCE_S)
    try:
        outcomes = Outcomes(once, job_ids, folders)
    except MtfSlurmError:
        return [End()] * len(job_ids)
    ended = [i for i in job_ids if outcomes.state(i).is_final]
    used = {job.job_id: job for job in _accounted(once, ended)}
    found = []
    for job_id in job_ids:
        if job_id not in ended:
            found.append(End())
            continue
        job = used.get(task_of(job_id)) if outcomes.row(job_id) else None
        reason = _reason(outcomes, job_id, job)
        if job is None or "." in job_id:
            found.append(End(reason))
        else:
            found.append(End(reason, job.elapsed_s, job.cpu_used_s, job.mem_used_bytes))
    return found


def _accounted(commands: Commands, job_ids: Sequence[str]) -> list[Efficiency]:
    if not job_ids:
        return []
    try:
        jobs = efficiency(job_ids, commands=commands).jobs
    except MtfSlurmError:
        return []  # as at sites without accounting
    return [job for job in jobs if job.state is not None and job.state.is_final]


def _reason(outcomes: Outcomes, job_id: str, used: Efficiency | None) -> str:
    owner = outcomes.experiment(job_id)
    left = owner[0].end(owner[1], job_id) if owner else None
    if owner is None or left is None:  # it was ended before it could say anything
        has_failed = used and used.state is not JobState.SUCCEEDED
        what = f"Slurm says {used.said}" if used and has_failed else ""
        if owner is None or outcomes.state(job_id) is not JobState.FAILED:
            return what
        return _of_script(outcomes, job_id, owner, used)
    status, state = left
    if state is not JobState.FAILED:
        return _WHY.get(state, "")
    what = f"exit code {status}"
    if status in _SIGNALLED:
        what = _killed_by(status - 128)
    if used and used.said == _NO_MEMORY:
        what += f"; Slurm says {used.said}"
    job, name = owner
    said = _last_line(job.experiments_folder / name / f"{job_id}.err")
    return f"{what}: {said}" if said else what


def _of_script(
    outcomes: Outcomes, job_id: str, owner: tuple[Job, str], used: Efficiency | None
) -> str:
    """Return why a task failed whose experiment left no end, by what was written last."""
    what = "Slurm says that it failed"
    if used:
        what = f"Slurm says {used.said}, exit code {used.exit_code.removesuffix(':0')}"
    job, name = owner
    err = job.experiments_folder / name / f"{job_id}.err"
    log = job.folder / _LOG
    is_shared = len(job.tasks) > 1
    is_one = not is_shared and "." not in job_id
    row = outcomes.row(job_id)
    begun_s = 0.0 if is_one or row is None else row.start_s or 0.0
    # Elsewhere, what an earlier run of the experiment wrote is none of this one's words.
    said = _last_line(err) if _written_s(err) >= begun_s else ""
    if not said and not is_shared:
        said = _last_line(log)
    if said:
        return f"{what}: {said}"
    said = _last_of_task(err if is_one else log, task_of(job_id))
    where = f"see {log}" if is_shared and log.exists() else ""
    if said:
        return f"{what}: {said} ({where})" if where else f"{what}: {said}"
    return f"{what}; {where}" if where else what


def _killed_by(number: int) -> str:
    return f"killed by signal {number} ({signal.strsignal(number)})"


def _written_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _last_line(path: Path) -> str:
    """Return the last line of a file that a program wrote; empty if there is none."""
    return next((line for line in _tail(path) if not _NOISE.match(line)), "")


def _last_of_task(path: Path, task_id: str) -> str:
    """Return what task.sh said last of a task; empty if that is no reason."""
    own = f"mtf-slurm: job {task_id}: "
    lines = (line.removeprefix(own) for line in _tail(path) if line.startswith(own))
    said = next(lines, "")
    return "" if _COMES_BACK.match(said) else said


def _tail(path: Path) -> list[str]:
    """Return the last lines of a file, the last one first; none if it is not there."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line.strip()[:_REASON_CHARS] for line in reversed(lines)]
