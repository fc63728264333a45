"""Look jobs up, wait for them and end them: in few commands however many they are."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mtf_slurm import _once, arrays, query
from mtf_slurm._again import MAY_COME_BACK, bring_back, forget_marks
from mtf_slurm._outcomes import Outcomes, task_of
from mtf_slurm._sweep import sweep
from mtf_slurm.command import Commands, NoAnswerError
from mtf_slurm.errors import (
    SchedulerCommandError,
    SubmissionError,
    UnreadableReplyError,
)
from mtf_slurm.git.provenance import SUBMISSION_NAME
from mtf_slurm.states import JobState

__all__ = [
    "branches_in_use",
    "cancel",
    "latest",
    "states_now",
    "sweep_all",
    "wait",
]

_log = logging.getLogger("mtf_slurm")

_NUM_CANCELLED = 200
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


def cancel(
    commands: Commands,
    job_ids: Sequence[str],
    folders: Iterable[Path],
    *,
    lock_timeout_s: float,
) -> None:
    """Ask jobs to end, without waiting. What has ended, or is unknown, is passed over.

    Args:
        commands: What asks.
        job_ids: Which.
        folders: Of experiments, to be searched for those that Slurm does not know.
        lock_timeout_s: How long to wait for who brings back what is to end, in seconds.

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
    known = dict.fromkeys(
        i for i in known if not (outcomes.is_others(i) or _is_done(outcomes, i))
    )
    for job_id in known:
        if "." not in job_id:
            continue
        if others := [i for i in outcomes.sharing(job_id) if i not in known]:
            reason = (
                f"its task runs {', '.join(others)}, too: cancel all of them, or none"
            )
            raise SubmissionError(job_id, reason)
    refusals: list[Exception] = []
    try:
        forget_marks(outcomes, known, lock_timeout_s=lock_timeout_s)
    except SubmissionError as error:
        refusals.append(error)
    tasks = arrays.ranges(dict.fromkeys(map(task_of, known)))
    for some in arrays.parted(tasks, _NUM_CANCELLED):
        try:
            commands.run(("scancel", *some))
        except SchedulerCommandError as error:
            said = error.stderr.splitlines()
            if not (said and all(map(_OVER.search, said))):
                refusals.append(error)
    if refusals:
        raise refusals[0]


def _is_done(outcomes: Outcomes, job_id: str) -> bool:
    """Tell whether one of several in a task has ended, which goes on with others."""
    return "." in job_id and job_id not in outcomes.sharing(job_id)


def states_now(
    commands: Commands,
    job_ids: Sequence[str],
    folders: Collection[Path],
    *,
    is_locked: bool = False,
) -> dict[str, JobState]:
    """Return how jobs are, when those are brought back that wait for that.

    Left out is what Slurm has lost, and given its id to another, and what left no end.

    Args:
        commands: What asks.
        job_ids: Which.
        folders: Of experiments, where the files of jobs lie.
        is_locked: Whether the caller has the locks of these.

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
    back = bring_back(commands, outcomes, ended, folders, is_locked=is_locked)
    return states | dict.fromkeys(back, JobState.PENDING)


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
        once = commands.within(deadline - time.monotonic())
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


def sweep_all(commands: Commands, folders: Collection[Path], cleanup: str) -> None:
    """Remove what killed jobs left in folders that can be written, where nobody submits.

    Raises:
        MtfSlurmError: If Slurm cannot be asked.
        OSError: If one of *folders* cannot be read.
    """
    for folder in folders if cleanup != "never" else ():
        if jobs := arrays.jobs_in(folder):
            with suppress(SubmissionError), _once.lock(folder, timeout_s=0.0):
                sweep(commands, jobs, folders, cleanup)


def branches_in_use(commands: Commands, folders: Collection[Path]) -> set[str]:
    """Return the branches of those experiments whose jobs have not ended, or will come back.

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
    # What is to come back is not final, either.
    live = {path.parent for i, path in files if i in outcomes.sharing(i)}
    branches = set()
    for folder in live:
        with suppress(OSError, ValueError, LookupError, TypeError):
            said = (folder / SUBMISSION_NAME).read_text(encoding="utf-8")
            branches.add(str(json.loads(said)["branch"]))
    return branches
