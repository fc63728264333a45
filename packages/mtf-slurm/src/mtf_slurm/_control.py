"""Look jobs up, end them, bring them back: in few commands however many they are."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mtf_slurm import _once, arrays, query
from mtf_slurm._outcomes import Outcomes, task_of
from mtf_slurm.command import Commands, NoAnswerError
from mtf_slurm.errors import (
    SchedulerCommandError,
    SubmissionError,
    UnreadableReplyError,
)
from mtf_slurm.git.provenance import SUBMISSION_NAME
from mtf_slurm.states import JobState

__all__ = [
    "MAY_COME_BACK",
    "branches_in_use",
    "bring_back",
    "cancel",
    "latest",
    "requeue",
    "states_now",
    "wait",
]

_log = logging.getLogger("mtf_slurm")

T = TypeVar("T")

MAY_COME_BACK = frozenset({JobState.PREEMPTED, JobState.TIMEOUT, JobState.FAILED})
"""States of jobs that may have left a mark to be brought back."""

_BACK = frozenset({JobState.PENDING, JobState.RUNNING})
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
    owners = {job.base_id(): job for job in jobs}  # the last, where Slurm lost one
    last = arrays.last_of(jobs, set(names))
    ids = {n: i for n, (i, job) in last.items() if owners[query.base_of(i)] is job}
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
    folders = tuple(folders)
    known = dict.fromkeys(job_id for job_id in job_ids if query.base_of(job_id))
    if not known:
        return
    outcomes = Outcomes(commands, [*known], folders)
    known = dict.fromkeys(i for i in known if not outcomes.is_others(i))
    for job_id in known:
        if "." not in job_id:
            continue
        if others := [i for i in outcomes.sharing(job_id) if i not in known]:
            reason = (
                f"its task runs {', '.join(others)}, too: cancel all of them, or none"
            )
            raise SubmissionError(job_id, reason)
    _forget_marks(folders, known)
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
        SubmissionError: If an id is none, or has become another's.
        SchedulerUnreachableError: If Slurm cannot be asked.
        SchedulerCommandError: If it refuses: after some minutes it forgets what has ended,
            and the experiment is to be submitted again.
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
    for some in _parted(list(dict.fromkeys(map(task_of, job_ids))), _NUM_REQUEUED):
        own = [job_id for job_id in job_ids if task_of(job_id) in some]
        with _forgotten_ends(folders, own) as ends:
            commands.run(("scontrol", "requeue", ",".join(some)))
            ends.clear()


@contextmanager
def _forgotten_ends(
    folders: Iterable[Path], job_ids: Iterable[str]
) -> Iterator[dict[Path, bytes]]:
    """Take away how jobs ended, else they do not run; put back what is left in the end."""
    ends: dict[Path, bytes] = {}
    for path in _files(folders, job_ids).values():
        file = path.with_name(f"{path.name}.exit")
        with suppress(FileNotFoundError):
            ends[file] = file.read_bytes()
            file.unlink()
    try:
        yield ends
    finally:
        for file, text in ends.items():
            if not file.exists():
                file.write_bytes(text)


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
    for some in _parted(own, _NUM_REQUEUED):
        with ExitStack() as held:
            marks = {i: held.enter_context(_taken(path)) for i, path in some}
            ours = {i: mark for i, mark in marks.items() if mark is not None}
            back += _requeued(commands, [*ours], folders)
            for mark in ours.values():
                mark.unlink(missing_ok=True)
    return back


def _requeued(
    commands: Commands, job_ids: Sequence[str], folders: Iterable[Path]
) -> list[str]:
    """Requeue jobs, as far as Slurm does; return those that wait or run again."""
    if not job_ids:
        return []
    try:
        commands.run(("scontrol", "requeue", ",".join(map(task_of, job_ids))))
    except SchedulerCommandError:
        if len(job_ids) == 1:
            return []  # another submission goes on
    else:
        return list(job_ids)
    outcomes = Outcomes(commands, job_ids, folders)
    back = [i for i in job_ids if outcomes.state(i) in _BACK]
    for job_id in job_ids:
        if job_id not in back:
            back += _requeued(commands, [job_id], folders)
    return back


def states_now(
    commands: Commands, job_ids: Sequence[str], folders: Collection[Path]
) -> dict[str, JobState]:
    """Return how jobs are, when those are brought back that wait for that.

    Left out is what Slurm has lost, and given its id to another, and what left no end.

    Raises:
        SchedulerUnreachableError: If Slurm cannot be asked.
        SchedulerCommandError: If it refuses to answer.
        UnreadableReplyError: If its answer cannot be parsed.
    """
    outcomes = Outcomes(commands, job_ids, folders)
    states = {i: outcomes.state(i) for i in job_ids}
    unknown = [i for i, state in states.items() if state is JobState.UNKNOWN]
    for job_id in filter(outcomes.is_others, unknown):
        del states[job_id]
    ended = [job_id for job_id, state in states.items() if state in MAY_COME_BACK]
    return states | dict.fromkeys(bring_back(commands, ended, folders), JobState.PENDING)


def wait(  # noqa: PLR0913 -- each is set by name
    commands: Commands,
    job_ids: Sequence[str],
    folders: Collection[Path],
    *,
    interval_s: float,
    patience_s: float,
    timeout_s: float | None,
    on_progress: Callable[[Mapping[JobState, int]], None] | None,
) -> list[JobState]:
    """Wait until all jobs have ended; return their states.

    Args:
        commands: What asks.
        job_ids: Which.
        folders: Of experiments, where the files of jobs lie.
        interval_s: Between two questions, in seconds.
        patience_s: How long nobody may answer, or in a way that cannot be read, in seconds.
        timeout_s: After which to return, whatever the states are, in seconds.
        on_progress: Gets the number of jobs in each state, whenever it changes.

    Raises:
        SchedulerUnreachableError: If Slurm cannot be asked.
        SchedulerCommandError: If it refuses to answer.
        UnreadableReplyError: If its answers cannot be parsed.
    """
    heard_s = time.monotonic()
    deadline = math.inf if timeout_s is None else heard_s + timeout_s
    states = [JobState.UNKNOWN] * len(job_ids)
    last: Mapping[JobState, int] | None = None
    is_stale = False
    while True:
        left_s = max(1.0, deadline - time.monotonic())
        limit_s = min(commands.timeout_s, left_s)
        once = replace(commands, timeout_s=limit_s, num_attempts=1)
        try:
            found = states_now(once, job_ids, folders)
        except (NoAnswerError, UnreadableReplyError) as error:
            now = time.monotonic()
            if now - heard_s >= patience_s and now < deadline:
                raise
            if not is_stale:
                _log.warning("states stay as they were, for now: %s", error)
            is_stale = True
        else:
            if is_stale:
                _log.warning("Slurm answers again")
            is_stale, heard_s = False, time.monotonic()
            states = [found.get(job_id, JobState.UNKNOWN) for job_id in job_ids]
            counts = Counter(states)
            if on_progress is not None and counts != last:
                on_progress(counts)
            last = counts
            if all(state.is_final for state in states):
                return states
        wait_s = min(interval_s, deadline - time.monotonic())
        if wait_s <= 0:
            return states
        time.sleep(wait_s)


def _forget_marks(folders: Iterable[Path], job_ids: Iterable[str]) -> None:
    """Let jobs not be brought back."""
    for path in _files(folders, job_ids).values():
        with _taken(path) as mark:
            if mark is not None:
                mark.unlink(missing_ok=True)


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


def branches_in_use(commands: Commands, folders: Collection[Path]) -> set[str]:
    """Return the branches of those experiments whose jobs have not ended.

    Those of all jobs that Slurm has are among them, wherever their experiments lie, as far as
    that can be read.

    Args:
        commands: What asks how jobs are.
        folders: Of experiments, whose jobs may be unknown to Slurm for a moment.

    Raises:
        MtfSlurmError: If Slurm cannot be asked.
        OSError: If one of *folders* cannot be read.
    """
    shown = [arrays.job_at(Path(path)) for path in query.folders(commands)]
    files: list[tuple[str, Path]] = []  # ids may come again
    read = set()
    for folder in {*folders, *(job.experiments_folder for job in shown if job)}:
        try:
            for job in arrays.jobs_in(folder):
                files += job.files(job.base_id() or _UNKNOWN).items()
        except OSError:
            if folder in folders:
                raise
            continue  # another user's own
        read.add(folder)
    outcomes = Outcomes(commands, {i for i, _ in files if query.base_of(i)}, read)
    live = {path.parent for i, path in files if not outcomes.state(i).is_final}
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


def _parted(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[at : at + size] for at in range(0, len(items), size)]
