"""Bring jobs back under their ids: those that are asked to, and those that left a mark.

What an experiment left when it ended keeps it from running again in its task, but for
``<job id>.requeued``, which is written before Slurm is asked, and taken back if it refuses. So a
requeue that is done runs it, whatever came back of it. One whose asker is killed in between is
done when the task runs next, if it ever does.

``<job id>.again`` asks to be brought back, until the job begins again or Slurm refuses it.

One asks at a time in a folder of experiments, under the lock of those who submit there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path

from mtf_slurm import _once, arrays, query
from mtf_slurm._outcomes import Outcomes, task_of
from mtf_slurm.command import Commands, NoAnswerError
from mtf_slurm.errors import SchedulerCommandError, SubmissionError
from mtf_slurm.query import Known
from mtf_slurm.states import JobState

__all__ = ["MAY_COME_BACK", "bring_back", "forget_marks", "requeue"]

MAY_COME_BACK = frozenset({JobState.PREEMPTED, JobState.TIMEOUT, JobState.FAILED})
"""States of jobs that may have left a mark to be brought back."""

_ACTIVE = frozenset({JobState.PENDING, JobState.RUNNING})
_NUM_REQUEUED = 100
# Of what scontrol says of one of several: "... for job 12", or "12_3: ...".
_NAMED = re.compile(r"(?:for job |^)(\d+(?:_\d+)?)(?=[\s:;]|$)", re.MULTILINE)


def requeue(
    commands: Commands,
    job_ids: Sequence[str],
    folders: Iterable[Path],
    *,
    lock_timeout_s: float,
) -> None:
    """Let jobs run again, from their checkpoints, under the same ids.

    Args:
        commands: What asks.
        job_ids: Which.
        folders: Of experiments, where the files of jobs lie.
        lock_timeout_s: How long to wait for who submits there, in seconds.

    Raises:
        SubmissionError: If an id is none, has become another's, or is not the last of its
            experiment; or if another submits for too long.
        SchedulerUnreachableError: If Slurm cannot be asked.
        SchedulerCommandError: If it refuses one: the others run again all the same. After
            some minutes it forgets what has ended; such an experiment is to be submitted again.
    """
    folders = tuple(folders)
    for job_id in job_ids:
        if query.base_of(job_id) is None:
            raise SubmissionError(job_id, "this is no job's id")
    paths, _ = _found(folders, job_ids)
    with ExitStack() as locks:
        for folder in sorted({_folder_of(path) for path in paths.values()}):
            locks.enter_context(_once.lock(folder, timeout_s=lock_timeout_s))
        paths, last = _found(folders, job_ids)
        outcomes = Outcomes(commands, {*job_ids, *paths}, folders)
        _check(outcomes, job_ids, paths, last)
        made = _ask_to_run({i: p for i, p in paths.items() if i in job_ids})
        before = {i: outcomes.state(i) for i in job_ids}  # with the marks, as after it
        refused: dict[str, SchedulerCommandError] = {}
        for some in _by_tasks(before):
            refused |= _refused(commands, some, folders, before, made)
        for job_id in refused.keys() & made.keys():
            made[job_id].unlink(missing_ok=True)
    for error in refused.values():
        raise error


def _check(
    outcomes: Outcomes,
    job_ids: Collection[str],
    paths: Mapping[str, Path],
    last: Mapping[Path, str],
) -> None:
    """Refuse what would run another's job, or an experiment that has a newer one.

    Raises:
        SubmissionError: Naming one.
    """
    for job_id in job_ids:
        if outcomes.is_others(job_id):
            reason = "Slurm lost this job, and gave its id to another: submit again"
            raise SubmissionError(job_id, reason)
    for job_id, path in paths.items():
        newer = last[path.parent]
        if newer != job_id and (job_id in job_ids or not outcomes.has_ended(job_id)):
            reason = f"{path.parent.name} has job {newer} since, and would run twice"
            raise SubmissionError(job_id, reason)


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
                with suppress(FileExistsError):  # of an earlier one, which may be done
                    mark.touch(exist_ok=False)
                    made[job_id] = mark
        except OSError as error:
            for left in made.values():
                left.unlink(missing_ok=True)
            reason = f"its folder cannot be written: {error}; it is not requeued"
            raise SubmissionError(job_id, reason) from error
    return made


def bring_back(
    commands: Commands,
    job_ids: Collection[str],
    folders: Iterable[Path],
    *,
    is_locked: bool = False,
) -> list[str]:
    """Requeue the jobs that could not do it where they ran.

    Such a job has left a mark; one of several in a task brings back all that have not ended.
    In a folder that cannot be written, and of ids that have become others', nothing is done.

    Args:
        commands: What asks.
        job_ids: Of jobs that have ended.
        folders: Of experiments, where the files of jobs lie.
        is_locked: Whether the caller has the locks of these.

    Returns:
        Those that wait or run again, or that another process sees to at this moment.

    Raises:
        SchedulerUnreachableError: If Slurm cannot be asked.
        SchedulerCommandError: If it refuses to answer.
        UnreadableReplyError: If its answer cannot be parsed.
    """
    folders = tuple(folders)
    back = set[str]()
    for folder in {_folder_of(path) for path in _marked(folders, job_ids).values()}:
        lock = nullcontext() if is_locked else _once.lock(folder, timeout_s=0.0)
        try:
            with lock:
                back |= _brought_back(commands, job_ids, folder, folders)
        except _once.BusyError:
            back |= {task_of(i) for i in _marked([folder], job_ids)}
        except SubmissionError:  # as of somebody who may only look
            continue
    if not back:
        return []
    left = Outcomes(commands, job_ids, folders, known=Known({}, is_whole=False))
    return [i for i in job_ids if task_of(i) in back and not left.has_ended(i)]


def _brought_back(
    commands: Commands, job_ids: Collection[str], folder: Path, folders: Collection[Path]
) -> set[str]:
    """Return which tasks wait or run again."""
    marks = _marked([folder], job_ids)
    paths, last = _found([folder], marks)
    outcomes = Outcomes(commands, paths, folders)
    before = {i: outcomes.state(i) for i in paths}
    back, asking, refused = set[str](), dict[str, Path](), set[str]()
    for job_id, mark in marks.items():
        row, task = outcomes.row(job_id), task_of(job_id)
        sharing = [i for i in paths if task_of(i) == task and not outcomes.has_ended(i)]
        if row is not None and row.state in _ACTIVE:
            back.add(task)
        elif any(last[paths[i].parent] != i for i in sharing):
            refused.add(job_id)
        elif outcomes.is_others(job_id):
            continue
        elif row is None or row.state in MAY_COME_BACK:
            asking[job_id] = mark
    for some in _by_tasks(asking):
        # Of what is refused another submission goes on.
        refused |= _refused(commands, some, folders, before, asking).keys()
    for job_id in refused:
        marks[job_id].unlink(missing_ok=True)
    return back | {task_of(i) for i in asking.keys() - refused}


def _by_tasks(job_ids: Collection[str]) -> list[list[str]]:
    """Return ids in parts of so many tasks as one command takes."""
    tasks = [*dict.fromkeys(map(task_of, job_ids))]
    parts = [{*part} for part in arrays.parted(tasks, _NUM_REQUEUED)]
    return [[i for i in job_ids if task_of(i) in part] for part in parts]


def _refused(
    commands: Commands,
    job_ids: Sequence[str],
    folders: Iterable[Path],
    before: Mapping[str, JobState],
    marks: Mapping[str, Path],
) -> dict[str, SchedulerCommandError]:
    """Requeue jobs, as far as Slurm does; return those that it does not, and why.

    Of several it requeues some, and names the others. One that it refuses, or of which there
    is no answer, may have come back all the same: it is there again, or has begun since.

    Args:
        commands: What asks.
        job_ids: Which.
        folders: Of experiments, where the files of jobs lie.
        before: How they were.
        marks: That are gone when their jobs have begun again.
    """

    def left() -> list[str]:
        outcomes = Outcomes(commands, job_ids, folders)
        now = {i: outcomes.state(i) for i in job_ids}
        begun = {i for i in job_ids if i in marks and not marks[i].exists()}
        back = {i for i in job_ids if now[i] in _ACTIVE and now[i] is not before[i]}
        return [i for i in job_ids if i not in begun | back]

    for attempt in range(commands.num_attempts):
        tasks = dict.fromkeys(map(task_of, job_ids))
        if not tasks:
            break
        try:
            commands.once(("scontrol", "requeue", ",".join(tasks)))
            break
        except NoAnswerError:
            if attempt == commands.num_attempts - 1:
                raise
            commands.sleep(commands.wait_s(attempt))
            job_ids = left()
        except SchedulerCommandError as error:
            rest = left()
            if len(tasks) == 1:
                return dict.fromkeys(rest, error)
            named = {*_NAMED.findall(error.stderr)} & tasks.keys()
            refused = dict.fromkeys((i for i in rest if task_of(i) in named), error)
            if not named:  # again, what runs would be requeued twice
                active = (i for i in rest if before[i] in _ACTIVE)
                refused |= dict.fromkeys(active, error)
            rest = [i for i in rest if i not in refused and before[i] not in _ACTIVE]
            alone = [[i for i in rest if task_of(i) == task] for task in tasks]
            for some in [rest] if named else alone:
                refused |= _refused(commands, some, folders, before, marks)
            return refused
    return {}


def forget_marks(
    folders: Iterable[Path], job_ids: Collection[str], *, lock_timeout_s: float
) -> None:
    """Let jobs not be brought back, and what was asked to run again not run.

    Raises:
        SubmissionError: If another requeues or submits for too long, or a mark cannot be
            taken away.
    """
    paths, _ = _found(folders, job_ids)
    own = [path for job_id, path in paths.items() if job_id in job_ids]
    marks = [mark for path in own for mark in (_mark(path), _asked(path))]
    left = [mark for mark in marks if mark.exists()]
    with ExitStack() as locks:
        for folder in sorted({_folder_of(mark) for mark in left}):
            locks.enter_context(_once.lock(folder, timeout_s=lock_timeout_s))
        for mark in left:
            try:
                mark.unlink(missing_ok=True)
            except OSError as error:
                reason = f"cannot be taken away, so that its job would come back: {error}"
                raise SubmissionError(str(mark), reason) from error


def _asked(path: Path) -> Path:
    """Return where the mark lies that lets an experiment run though it has ended."""
    return path.with_name(f"{path.name}.requeued")


def _mark(path: Path) -> Path:
    """Return where the mark lies by which a job asks to be brought back."""
    return path.with_name(f"{path.name}.again")


def _folder_of(path: Path) -> Path:
    """Return the folder of experiments in which a job's file lies."""
    return path.parents[1]


def _marked(folders: Iterable[Path], job_ids: Collection[str]) -> dict[str, Path]:
    """Return the marks of last jobs that share tasks with these."""
    paths, last = _found(folders, job_ids)
    marks = {i: _mark(path) for i, path in paths.items() if last[path.parent] == i}
    return {i: mark for i, mark in marks.items() if mark.exists()}


def _found(
    folders: Iterable[Path], job_ids: Collection[str]
) -> tuple[dict[str, Path], dict[Path, str]]:
    """Return the files, without their ends, of all jobs that share tasks with these.

    Then, for the folders of all experiments, their last jobs.
    """
    tasks = {task_of(job_id) for job_id in job_ids}
    found: dict[str, Path] = {}
    last: dict[Path, str] = {}
    for folder in folders if tasks else ():
        for job in arrays.jobs_in(folder):
            if base := job.base_id():
                for job_id, path in job.files(base).items():
                    last[path.parent] = job_id
                    if task_of(job_id) in tasks:
                        found[job_id] = path
    return found, last
