"""Bring jobs back under their ids: those that are asked to, and those that left a mark.

What an experiment left when it ended keeps it from running again in its task, but for
``<job id>.requeued``, which is written before Slurm is asked, and taken back if it refuses. So a
requeue that is done runs it, whatever came back of it. One whose asker is killed in between is
done when the task runs next, if it ever does.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mtf_slurm import arrays, query
from mtf_slurm._outcomes import Outcomes, task_of
from mtf_slurm.command import Commands
from mtf_slurm.errors import SchedulerCommandError, SubmissionError
from mtf_slurm.states import JobState

__all__ = ["MAY_COME_BACK", "bring_back", "forget_marks", "requeue"]

MAY_COME_BACK = frozenset({JobState.PREEMPTED, JobState.TIMEOUT, JobState.FAILED})
"""States of jobs that may have left a mark to be brought back."""

_ACTIVE = frozenset({JobState.PENDING, JobState.RUNNING})
_NUM_REQUEUED = 100
# Of what scontrol says of one of several: "... for job 12", or "12_3: ...".
_NAMED = re.compile(r"(?:for job |^)(\d+(?:_\d+)?)(?=[\s:;]|$)", re.MULTILINE)


def requeue(commands: Commands, job_ids: Sequence[str], folders: Iterable[Path]) -> None:
    """Let jobs run again, from their checkpoints, under the same ids.

    Args:
        commands: What asks.
        job_ids: Which.
        folders: Of experiments, where the files of jobs lie.

    Raises:
        SubmissionError: If an id is none, or has become another's.
        SchedulerUnreachableError: If Slurm cannot be asked.
        SchedulerCommandError: If it refuses one: the others run again all the same. After
            some minutes it forgets what has ended; such an experiment is to be submitted again.
    """
    folders = tuple(folders)
    for job_id in job_ids:
        if query.base_of(job_id) is None:
            raise SubmissionError(job_id, "this is no job's id")
    outcomes = Outcomes(commands, job_ids, folders)
    for job_id in job_ids:
        if outcomes.is_others(job_id):
            reason = "Slurm lost this job, and gave its id to another: submit again"
            raise SubmissionError(job_id, reason)
    made = _ask_to_run(_files(folders, job_ids))
    before = {i: outcomes.state(i) for i in job_ids}  # with the marks, as after it
    refused: dict[str, SchedulerCommandError] = {}
    for tasks in arrays.parted([*dict.fromkeys(map(task_of, before))], _NUM_REQUEUED):
        some = {*tasks}
        own = [i for i in before if task_of(i) in some]
        refused |= _refused(commands, own, folders, before)
    for job_id in refused.keys() & made.keys():
        made[job_id].unlink(missing_ok=True)
    _forget_asking(folders, before.keys() - refused.keys())
    for error in refused.values():
        raise error


def _ask_to_run(paths: Mapping[str, Path]) -> dict[str, Path]:
    """Let experiments that have ended run when their jobs begin again; return new marks.

    Raises:
        SubmissionError: If that cannot be written.
    """
    made = {}
    for job_id, path in paths.items():
        mark = _asked(path)
        try:
            if path.with_name(f"{path.name}.exit").exists():
                with suppress(FileExistsError):  # of one who asks at the same time
                    mark.touch(exist_ok=False)
                    made[job_id] = mark
        except OSError as error:
            for left in made.values():
                left.unlink(missing_ok=True)
            reason = f"its folder cannot be written: {error}; it is not requeued"
            raise SubmissionError(job_id, reason) from error
    return made


def bring_back(
    commands: Commands, job_ids: Collection[str], folders: Iterable[Path]
) -> list[str]:
    """Requeue the jobs that could not do it where they ran; return their ids.

    Such a job has left a mark. It is held by who requeues it, so one does. One whose id has
    become another's stays as it is.

    Args:
        commands: What asks.
        job_ids: Of jobs that have ended.
        folders: Of experiments, where the files of jobs lie.

    Raises:
        SchedulerUnreachableError: If Slurm cannot be asked.
        SchedulerCommandError: If it refuses to answer.
        UnreadableReplyError: If its answer cannot be parsed.
    """
    folders = tuple(folders)
    marked = {
        job_id: path
        for job_id, path in _files(folders, job_ids).items()
        if any(mark.exists() for mark in _marks(path))
    }
    if not marked:
        return []
    outcomes = Outcomes(commands, marked, folders)
    own = [(i, path) for i, path in marked.items() if not outcomes.is_others(i)]
    back: list[str] = []
    for some in arrays.parted(own, _NUM_REQUEUED):
        with ExitStack() as held:
            marks = {i: held.enter_context(_taken(path)) for i, path in some}
            ours = {i: mark for i, mark in marks.items() if mark is not None}
            # Of what is refused another submission goes on.
            refused = _refused(commands, [*ours], folders, {})
            back += [i for i in ours if i not in refused]
            for mark in ours.values():
                mark.unlink(missing_ok=True)
    return back


def _refused(
    commands: Commands,
    job_ids: Sequence[str],
    folders: Iterable[Path],
    before: Mapping[str, JobState],
) -> dict[str, SchedulerCommandError]:
    """Requeue jobs, as far as Slurm does; return those that it does not, and why.

    Of several it requeues some, and names the others. One that it refuses may be there again
    after an answer that was lost.

    Args:
        commands: What asks.
        job_ids: Which.
        folders: Of experiments, where the files of jobs lie.
        before: How they were, of those whose state tells whether they were requeued.
    """
    if not job_ids:
        return {}
    tasks = dict.fromkeys(map(task_of, job_ids))
    try:
        commands.run(("scontrol", "requeue", ",".join(tasks)))
    except SchedulerCommandError as error:
        outcomes = Outcomes(commands, job_ids, folders)
        now = {i: outcomes.state(i) for i in job_ids}
        left = [i for i in job_ids if now[i] not in _ACTIVE or now[i] is before.get(i)]
        named = {*_NAMED.findall(error.stderr)} & tasks.keys()
        if len(tasks) == 1:
            return dict.fromkeys(left, error)
        refused = dict.fromkeys((i for i in left if task_of(i) in named), error)
        rest = [i for i in left if i not in refused and before.get(i) not in _ACTIVE]
        if not named:  # again, what runs would be requeued twice
            refused |= dict.fromkeys((i for i in left if i not in rest), error)
        alone = [[i for i in rest if task_of(i) == task] for task in tasks]
        for some in [rest] if named else alone:
            refused |= _refused(commands, some, folders, before)
        return refused
    return {}


def forget_marks(folders: Iterable[Path], job_ids: Iterable[str]) -> None:
    """Let jobs not be brought back, and what was asked to run again not run."""
    paths = _forget_asking(folders, job_ids)
    for path in paths.values():
        _asked(path).unlink(missing_ok=True)


def _forget_asking(folders: Iterable[Path], job_ids: Iterable[str]) -> dict[str, Path]:
    """Let jobs not be brought back; return where their files lie."""
    paths = _files(folders, job_ids)
    for path in paths.values():
        with _taken(path) as mark:
            if mark is not None:
                mark.unlink(missing_ok=True)
    return paths


def _asked(path: Path) -> Path:
    """Return where the mark lies that lets an experiment run though it has ended."""
    return path.with_name(f"{path.name}.requeued")


def _marks(path: Path) -> tuple[Path, Path]:
    """Return where the mark of a job lies: as it was left, and as it was taken."""
    return path.with_name(f"{path.name}.again"), path.with_name(f".{path.name}.again")


@contextmanager
def _taken(path: Path) -> Iterator[Path | None]:
    """Yield the mark of a job, held against others; None where there is none to be had.

    One whose taker was killed is there to be had again.
    """
    left, taken = _marks(path)
    try:
        with suppress(FileNotFoundError):
            left.replace(taken)
        fd = os.open(taken, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = os.fstat(fd).st_nlink > 0
        except BlockingIOError:
            is_held = False
        yield taken if is_held else None
    finally:
        os.close(fd)


def _files(folders: Iterable[Path], job_ids: Iterable[str]) -> dict[str, Path]:
    """Return where the files of jobs lie, without their ends."""
    wanted = set(job_ids)
    found: dict[str, Path] = {}
    for folder in folders if wanted else ():
        for job in arrays.jobs_in(folder):
            if base := job.base_id():
                found |= {i: p for i, p in job.files(base).items() if i in wanted}
    return found
