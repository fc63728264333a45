"""Bring jobs back under their ids: those that are asked to, and those that left a mark.

Marks lie beside the other files of a job, and say:

* ``<job id>.requeued``: it is to run when its task begins again, though it has ended. That is
  written before Slurm is asked, and taken back if it refuses: a requeue that is done runs it,
  whatever came back of it. One whose asker is killed in between is done when the task runs
  next, if it ever does.
* ``<job id>.again``: it asks to be brought back.
* ``<job id>.coming``: Slurm has been asked to.

The last two are gone when the job begins again. One asks at a time in a folder of experiments,
under the lock of those who submit there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path

from mtf_slurm import _once, arrays, query
from mtf_slurm._answers import forget
from mtf_slurm._outcomes import Outcomes, task_of
from mtf_slurm.command import Commands, NoAnswerError
from mtf_slurm.errors import SchedulerCommandError, SubmissionError
from mtf_slurm.states import JobState

__all__ = ["MAY_COME_BACK", "bring_back", "forget_marks", "requeue"]

MAY_COME_BACK = frozenset({JobState.PREEMPTED, JobState.TIMEOUT, JobState.FAILED})
"""States of jobs that may have left a mark to be brought back."""

_ACTIVE = frozenset({JobState.PENDING, JobState.RUNNING})
_NUM_REQUEUED = 100
_TOLD_S = 2.0  # a question that takes longer is not told of
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
    outcomes = Outcomes(commands, job_ids, folders)
    with ExitStack() as locks:
        paths = _files(outcomes, job_ids)
        for folder in sorted({_folder_of(path) for path in paths.values()}):
            locks.enter_context(_once.lock(folder, timeout_s=lock_timeout_s))
        outcomes = Outcomes(commands, job_ids, folders)
        asked = _each(outcomes, job_ids)
        _check(commands, outcomes, asked)
        made = _ask_to_run({i: paths[i] for i in asked if i in paths})
        before = {i: outcomes.state(i) for i in asked}  # with the marks, as after it
        refused: dict[str, SchedulerCommandError] = {}
        for some in _by_tasks(asked):
            refused |= _refused(commands, some, folders, before, made)
        for job_id in refused.keys() & made.keys():
            made[job_id].unlink(missing_ok=True)
        _tell(paths, [i for i in asked if i not in refused])
    for error in refused.values():
        raise error


def _check(commands: Commands, outcomes: Outcomes, job_ids: Collection[str]) -> None:
    """Refuse what would run another's job, or an experiment that has a newer one.

    Raises:
        SubmissionError: Naming one.
    """
    for job_id in job_ids:
        if outcomes.is_others(job_id):
            reason = "Slurm lost this job, and gave its id to another: submit again"
            raise SubmissionError(job_id, reason)
    paths = _files(outcomes, job_ids)
    newer = _newer(commands, paths)
    for job_id, name in newer.items():
        if job_id in job_ids or not outcomes.has_ended(job_id):
            reason = f"{paths[job_id].parent.name} has job {name} since: requeue that one"
            raise SubmissionError(job_id, reason)


def _ask_to_run(paths: Mapping[str, Path]) -> dict[str, Path]:
    """Let experiments that have ended run when their jobs begin again; return new marks.

    Raises:
        SubmissionError: If that cannot be written.
    """
    made = {}
    for job_id, path in paths.items():
        mark = _mark(path, "requeued")
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
    outcomes: Outcomes,
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
        outcomes: By which they have ended.
        job_ids: Which.
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
    by_folder: dict[Path, list[str]] = {}
    for job_id, path in _marked(outcomes, job_ids).items():
        by_folder.setdefault(_folder_of(path), []).append(job_id)
    left = {i for i in _files(outcomes, job_ids) if not outcomes.has_ended(i)}
    back = set[str]()
    for folder, marked in by_folder.items():
        lock = nullcontext() if is_locked else _once.lock(folder, timeout_s=0.0)
        try:
            with lock:
                back |= _brought_back(commands, marked, folders)
        except _once.BusyError:
            back |= {*map(task_of, marked)}
        except SubmissionError:  # as of somebody who may only look
            continue
    return [i for i in job_ids if task_of(i) in back and i in left]


def _brought_back(
    commands: Commands, job_ids: Sequence[str], folders: Collection[Path]
) -> set[str]:
    """Return which tasks wait or run again."""
    outcomes = Outcomes(commands, job_ids, folders)
    paths = _files(outcomes, job_ids)
    newer = {i for i in _newer(commands, paths) if not outcomes.has_ended(i)}
    twice = {*map(task_of, newer)}
    back, asking = set[str](), dict[str, Path]()
    for job_id, path in _marked(outcomes, job_ids).items():
        row, mark = outcomes.row(job_id), _mark(path, "again")
        if outcomes.is_others(job_id):
            continue
        if row is not None and row.state in _ACTIVE:
            back.add(task_of(job_id))
        elif not mark.exists():  # it came back, and ended before it began
            _mark(path, "coming").unlink(missing_ok=True)
        elif task_of(job_id) in twice:
            mark.unlink(missing_ok=True)
        elif row is None or row.state in MAY_COME_BACK:
            asking[job_id] = mark
    before = {i: outcomes.state(i) for i in asking}
    wishes = {i: _said(mark) for i, mark in asking.items()}
    for some in _by_tasks(asking):
        refused = _refused(commands, some, folders, before, asking)
        for job_id in some:
            _used(asking[job_id], wishes[job_id], is_refused=job_id in refused)
        _tell(paths, [i for i in some if i not in refused])
        back |= {task_of(i) for i in some if i not in refused}
    return back


def _used(mark: Path, wish: bytes | None, *, is_refused: bool) -> None:
    """Note what became of a wish, unless its job has begun, and perhaps has another."""
    if _said(mark) != wish:
        return
    with suppress(FileNotFoundError):
        if is_refused:  # another submission goes on
            mark.unlink()
        else:
            mark.replace(mark.with_suffix(".coming"))


def _tell(paths: Mapping[str, Path], job_ids: Collection[str]) -> None:
    """Let followers ask anew for jobs that were requeued, and all that share their tasks."""
    tasks = {*map(task_of, job_ids)}
    ids: dict[Path, list[str]] = {}
    for job_id, path in paths.items():
        if task_of(job_id) in tasks:
            ids.setdefault(_folder_of(path), []).append(job_id)
    for folder, own in ids.items():
        forget(folder, own, timeout_s=_TOLD_S)


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
    left = partial(_not_back, commands, folders, before, marks)
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
            job_ids = left(job_ids)
        except SchedulerCommandError as error:
            rest = left(job_ids)
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


def _not_back(
    commands: Commands,
    folders: Iterable[Path],
    before: Mapping[str, JobState],
    marks: Mapping[str, Path],
    job_ids: Sequence[str],
) -> list[str]:
    """Return which jobs seem to be as they were before they were requeued."""
    outcomes = Outcomes(commands, job_ids, folders)
    found = []
    for job_id in job_ids:
        was, now = before[job_id], outcomes.state(job_id)
        has_begun = job_id in marks and not marks[job_id].exists()
        is_back = now in _ACTIVE or (was is JobState.CANCELLED and now.is_final)
        if not (has_begun or (is_back and now is not was)):
            found.append(job_id)
    return found


def forget_marks(
    outcomes: Outcomes, job_ids: Collection[str], *, lock_timeout_s: float
) -> None:
    """Let jobs not be brought back, and what was asked to run again not run.

    Raises:
        SubmissionError: If another requeues or submits for too long, or a mark cannot be
            taken away.
    """
    paths = _files(outcomes, job_ids)
    own = [paths[i] for i in _each(outcomes, job_ids) if i in paths]
    marks = [_mark(path, end) for path in own for end in ("again", "requeued")]
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


def _mark(path: Path, end: str) -> Path:
    """Return where a mark of a job lies, whose files are at *path*."""
    return path.with_name(f"{path.name}.{end}")


def _said(mark: Path) -> bytes | None:
    """Return how often its job had come back when it left a mark; None if that is not told."""
    try:
        return mark.read_bytes()
    except OSError:
        return None


def _folder_of(path: Path) -> Path:
    """Return the folder of experiments in which a job's file lies."""
    return path.parents[1]


def _files(outcomes: Outcomes, job_ids: Iterable[str]) -> dict[str, Path]:
    """Return where the files of all lie that share tasks with these, without their ends."""
    return {i: path for job_id in job_ids for i, path in outcomes.files(job_id).items()}


def _each(outcomes: Outcomes, job_ids: Iterable[str]) -> list[str]:
    """Return the id of each experiment that is meant: of an array, of a task, or itself."""
    found: dict[str, None] = {}
    for job_id in job_ids:
        files = {} if "." in job_id else outcomes.files(job_id)
        found |= dict.fromkeys(files or [job_id])
    return [*found]


def _marked(outcomes: Outcomes, job_ids: Iterable[str]) -> dict[str, Path]:
    """Return the files of those that share tasks with these, and have come back or want to."""
    return {
        job_id: path
        for job_id, path in _files(outcomes, job_ids).items()
        if any(_mark(path, end).exists() for end in ("again", "coming"))
    }


def _newer(commands: Commands, paths: Mapping[str, Path]) -> dict[str, str]:
    """Return the last jobs of experiments that have newer ones; for who has the locks."""
    names: dict[Path, set[str]] = {}
    for path in paths.values():
        names.setdefault(_folder_of(path), set()).add(path.parent.name)
    last: dict[Path, str] = {}
    for folder, some in names.items():
        jobs = _once.recover(commands, arrays.jobs_in(folder))
        found = arrays.last_of(jobs, some)
        last |= {folder / name: job_id for name, (job_id, _) in found.items()}
    found_newer = {i: last.get(path.parent, i) for i, path in paths.items()}
    return {i: job_id for i, job_id in found_newer.items() if job_id != i}
